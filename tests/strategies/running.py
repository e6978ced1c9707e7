"""Run a program that is given as text: eager and compiled."""

from __future__ import annotations

import linecache
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import mhf_compile
from mhf_compile.backend import flashmhf
from mhf_compile.report.report import Report
from tests.comparison import LONGEST_SUM, counted_calls

OPTIONS: dict[str, object] = {
    "flashmhf.strict": True,
    "flashmhf.inner": "eager",
    "flashmhf.dense": "always",
}

FILE = "drawn.py"
"""The file that a program seems to be in."""


def load(text: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model and the inputs of a program."""
    linecache.cache[FILE] = (len(text), None, text.splitlines(keepends=True), FILE)
    module = sys.modules["drawn"] = ModuleType("drawn")  # where pickle looks for classes
    exec(compile(text, FILE, "exec"), module.__dict__)
    model, inputs = module.make()
    return model, inputs


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings: of vmap without a batching rule, of a checkpoint without gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass
class Outcome:
    """What comes of a run: results, gradients of inputs and parameters, and what the backward raises."""

    results: list[Tensor]
    gradients: list[Tensor | None]
    raises: str = ""


def outcome(run: Callable[..., Any], model: nn.Module, inputs: tuple[Any, ...]) -> Outcome:
    result = run(*inputs)
    results = [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, Tensor)]
    wanted = [*inputs, *model.parameters()]
    losses = [t.square().mean() for t in results if t.requires_grad]
    gradients: list[Tensor | None] = []
    raises = ""
    if losses:
        try:
            gradients = list(torch.autograd.grad(torch.stack(losses).sum(), wanted, allow_unused=True))
        except RuntimeError as error:
            raises = str(error)[:60]
    return Outcome([t.detach() for t in results], gradients, raises)


@dataclass
class Compiled:
    """What came of a program compiled."""

    eager: Outcome
    outcome: Outcome
    calls: int
    reports: list[Report]

    @property
    def rewrites(self) -> int:
        return sum(len(report.rewrites) for report in self.reports)

    @property
    def reasons(self) -> list[str]:
        return [miss.reason for report in self.reports for miss in report.misses]

    @property
    def shown(self) -> str:
        return "\n".join(map(str, self.reports))


def compiled(text: str, dynamic: bool = False, **options: object) -> Compiled:
    """Run a program eager, and compiled; with sizes that are symbols, if ``dynamic``."""
    torch._dynamo.reset()
    flashmhf.reset()  # type: ignore[attr-defined]  # Dynamo resets the backends that it called itself
    model, inputs = load(text)
    with quiet():
        before = outcome(model, model, inputs)
        run = torch.compile(model, backend="flashmhf", dynamic=dynamic, options={**OPTIONS, **options})
        with counted_calls() as calls:
            after = outcome(run, model, inputs)
    return Compiled(before, after, calls[0], mhf_compile.last_reports())


def check_equal(after: Outcome, before: Outcome, eps: float = torch.finfo(torch.float64).eps) -> None:
    """That two runs are the same but for rounding."""
    assert after.raises == before.raises
    for a, b in zip([*after.results, *after.gradients], [*before.results, *before.gradients], strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            # Each is off by half a unit in the last place for each product summed, at most.
            assert a.dtype == b.dtype
            error = float((a.double() - b.double()).norm())
            assert error <= LONGEST_SUM * eps * float(b.double().norm()), (error, float(b.double().norm()))
