"""What holds in any state of PyTorch: what works with another backend works with this one.

The other is "aot_eager", which is also what compiles the rewritten graph.
"""

from __future__ import annotations

import gc
import logging
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensor

import mhf_compile
from tests.faults.stages import world
from tests.fuzz.property import Property
from tests.strategies.ambient import AROUND, CALLS, PROGRAMS, WITHIN, Compile, Program, Seen, arguments

COUNTS: Counter[str] = Counter()
"""What came of it."""

OPTIONS = {"flashmhf.inner": "aot_eager"}


@dataclass(frozen=True)
class Ambient:
    """A program, and the states that it is compiled and run in: the outermost first."""

    program: str
    call: str = "plainly"
    around: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    grad: bool = True

    @property
    def source(self) -> str:
        return f"from tests.fuzz.ambient import Ambient\n\nEXAMPLE = {self!r}\n"

    def function(self) -> Program:
        function = PROGRAMS[self.program]
        for name in reversed(self.within):
            function = WITHIN[name](function)
        return function


@dataclass
class Outcome:
    """What came of a program: results and gradients, what it raised, and what was seen of it."""

    tensors: list[Tensor] = field(default_factory=list)
    error: str = ""
    seen: list[int] = field(default_factory=list)
    """How many tensors hooks saw, in each run."""
    fakes: bool = False
    """Whether one of them was of a compilation."""
    random: Any = None
    """The state of the generators afterwards."""
    changed: list[str] = field(default_factory=list)
    """Of the world, what was another afterwards."""


def run(example: Ambient, compiled: Compile) -> Outcome:
    """Compile and run a program, then run it again.

    In a thread: what fails in the middle of a mode may leave it on, also with "aot_eager". It may also leave
    objects of PyTorch's that, whenever and in whichever thread they are thrown away, set the dispatcher back
    to what it was before them: so they are thrown away there, and of an error only its text is kept.
    """

    def run_alone() -> Outcome:
        try:
            return _run(example, compiled)
        finally:
            gc.collect()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run_alone).result()


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def _run(example: Ambient, compiled: Compile) -> Outcome:
    torch._dynamo.reset()
    torch.manual_seed(0)
    given = arguments(example.grad)
    function = compiled(example.function())
    found = Outcome()
    before = world()
    for _ in range(2):
        seen = Seen()
        try:
            with ExitStack() as stack:
                for name in example.around:
                    stack.enter_context(AROUND[name](compiled, seen))
                result = CALLS[example.call](function, *given)
                found.tensors.append(result)
                if result.requires_grad:
                    result.square().sum().backward()  # which a reentrant checkpoint needs
                    found.tensors += [tensor.grad for tensor in given if tensor.grad is not None]
                    for tensor in given:
                        tensor.grad = None
        except Exception:
            found.error = traceback.format_exc()
            break
        finally:
            found.seen.append(len(seen.kinds))
            found.fakes |= "FakeTensor" in seen.kinds
    if found.error:  # PyTorch may leave a dispatcher with which nothing runs
        return found
    after = world()
    found.random = after.pop("random")
    found.changed = [name for name in after if name != "generated code" and after[name] != before[name]]
    return found


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """The warnings of this package."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    log = logging.getLogger("mhf_compile")
    log.addHandler(handler)
    try:
        yield records
    finally:
        log.removeHandler(handler)


def what_works_under_another_backend_works_under_this_one(example: Ambient) -> None:
    def plain(program: Program) -> Program:
        return torch.compile(program, backend="aot_eager")

    def ours(program: Program) -> Program:
        return torch.compile(program, backend="flashmhf", options=OPTIONS)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = run(example, plain)
        with logged() as records:
            found = run(example, ours)
    reports = mhf_compile.last_reports()
    counters.clear()
    COUNTS["neither works" if wanted.error and found.error else "works"] += 1
    COUNTS["feed-forwards rewritten"] += sum(len(report.rewrites) for report in reports)
    assert [record.getMessage() for record in records] == []
    assert set(found.changed) <= set(wanted.changed)
    if wanted.error:
        return
    assert not found.error, found.error
    assert found.random == wanted.random
    assert len(found.tensors) == len(wanted.tensors)
    # Under autocast, products are rounded to bfloat16.
    low = "autocast" in (*example.around, *example.within)
    for a, b in zip(found.tensors, wanted.tensors, strict=True):
        assert (a.dtype, a.shape, a.requires_grad) == (b.dtype, b.shape, b.requires_grad)
        assert (a.is_inference(), isinstance(a, FakeTensor)) == (b.is_inference(), isinstance(b, FakeTensor))
        if not isinstance(a, FakeTensor):
            distance = float((a.detach().double() - b.detach().double()).norm())
            assert distance <= (0.05 if low else 1e-5) * float(b.detach().double().norm())
    assert not found.fakes or wanted.fakes
    # The first run compiles; checkpoints count what is saved and saved again.
    assert found.seen[0] == found.seen[1] or wanted.seen[0] != wanted.seen[1], (found.seen, wanted.seen)


def some(names: object, most: int) -> st.SearchStrategy[tuple[str, ...]]:
    chosen: list[str] = list(names)  # type: ignore[call-overload]
    return st.lists(st.sampled_from(chosen), max_size=most, unique=True).map(tuple)


EXAMPLES = st.builds(
    Ambient,
    program=st.sampled_from(list(PROGRAMS)),
    call=st.sampled_from(list(CALLS)),
    around=some(AROUND, 2),
    within=some(WITHIN, 2),
    grad=st.booleans(),
)

PROPERTIES = (Property(what_works_under_another_backend_works_under_this_one, EXAMPLES, 8),)
