"""What an analysis shares with the rest of the process: modes, caches, threads, disks."""

from __future__ import annotations

import errno
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx
from torch._inductor import codecache
from torch._inductor.utils import fresh_inductor_cache
from torch.nn import attention, functional
from torch.utils.checkpoint import checkpoint

import mhf_compile
from mhf_compile import backend
from mhf_compile.report.report import Report
from mhf_compile.tape.recorder import record
from mhf_compile.tape.tape import Tape
from tests.faults.stages import (
    AROUND,
    STRICT,
    UNSEEN,
    broken,
    captured,
    check_right,
    fails,
    feed_forward,
    forget,
    outcome,
    tensors,
    unchanged,
    world,
)
from tests.programs import BY_NAME

# -- in the middle of recording -----------------------------------------------------------------------------


def attended(x: Tensor) -> Tensor:
    with attention.sdpa_kernel([attention.SDPBackend.MATH]):
        return functional.scaled_dot_product_attention(x[None], x[None], x[None])[0]


def deterministic(x: Tensor) -> Tensor:
    torch.use_deterministic_algorithms(True, warn_only=True)
    y = x.relu()
    torch.use_deterministic_algorithms(False)
    return y


def gradient(x: Tensor) -> Tensor:
    return torch.func.grad(lambda y: (y * y.relu()).sum())(x)


def tangent(x: Tensor) -> Tensor:
    return torch.func.jvp(lambda y: y * y.relu(), (x,), (x,))[1]


def mapped(x: Tensor) -> Tensor:
    return torch.vmap(torch.vmap(torch.relu))(x)


def cast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", torch.float16, cache_enabled=False):
        with torch.autocast("cpu", enabled=False):
            x = x.relu()
        return x @ x


def inferred(x: Tensor) -> Tensor:
    with torch.inference_mode(), torch.inference_mode(False), torch.no_grad(), torch.enable_grad():
        return x.relu()


def without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.relu()


def without_hooks(x: Tensor) -> Tensor:
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        return x.relu()


def checkpointed(x: Tensor) -> Tensor:
    result: Tensor = checkpoint(cast, x, use_reentrant=False)
    return result


@pytest.mark.parametrize(
    "function",
    [
        attended,
        deterministic,
        gradient,
        tangent,
        mapped,
        cast,
        inferred,
        without_gradients,
        without_hooks,
        checkpointed,
    ],
    ids=lambda f: f.__name__,
)
def test_the_modes_of_a_graph_are_left_whichever_node_fails(function: Callable[[Tensor], Tensor]) -> None:
    failed: list[str] = []

    def around(module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
        before = world()
        record(module)
        assert world() == before
        graphs = [part.graph for part in module.modules() if isinstance(part, fx.GraphModule)]
        for node in [node for graph in graphs for node in graph.nodes if node.op.startswith("call_")]:
            kept = node.op, node.target
            node.op, node.target = "call_function", fails
            with pytest.raises(ZeroDivisionError, match="planted"):
                record(module)
            node.op, node.target = kept
            assert world() == before, node
            failed.append(node.name)
        return module

    x = torch.randn(3, 3)
    expected = function(x)
    assert torch.equal(torch.compile(function, backend=around, fullgraph=True)(x), expected)
    assert failed


# -- what is cached -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", [*AROUND, *UNSEEN])
def test_what_is_cached_does_not_depend_on_where(
    around: str, graph: fx.GraphModule, inputs: list[Any]
) -> None:
    _, expected = mhf_compile.rewrite(graph, inputs, strict=True)
    forget()
    state = torch.get_rng_state()
    with {**AROUND, **UNSEEN}[around]():
        check_right(mhf_compile.rewrite(graph, inputs, strict=True)[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert mhf_compile.rewrite(graph, inputs, strict=True)[1] == expected


def test_the_proof_draws_from_no_generator_of_the_program() -> None:
    """Entries of a buffer that nothing reads are random in the proof."""
    spelling = BY_NAME["buffered_heads"]
    module, given = captured(spelling.program, spelling.tensors())
    state = torch.get_rng_state()
    _, report = mhf_compile.rewrite(module, given, strict=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert report.rewrites[0].proof == "exact"


# -- threads ------------------------------------------------------------------------------------------------


def at_once(*functions: Callable[[], object]) -> None:
    """Run functions in a thread each, all starting together; an error in one is raised here."""
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], object]) -> None:
        start.wait(timeout=60)
        function()

    with ThreadPoolExecutor(len(functions)) as pool:
        for future in [pool.submit(run, function) for function in functions]:
            future.result(timeout=120)


def test_threads_compile_different_models_at_once(caplog: pytest.LogCaptureFixture) -> None:
    names = ["one_einsum", "exponential", "grouped", "biased"]

    def compile_and_run(name: str) -> None:
        spelling = BY_NAME[name]
        given = spelling.tensors()
        expected = outcome(spelling.program, given)
        found = outcome(torch.compile(spelling.program, backend="flashmhf", options=STRICT), given)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()

    def explain(name: str) -> None:
        spelling = BY_NAME[name]  # one that no other thread compiles
        for _ in range(2):
            report = mhf_compile.explain(spelling.program, *spelling.tensors())
            assert ([r.proof for r in report.rewrites], report.misses) == (["exact"], ())

    before = world()
    jobs = [*(partial(compile_and_run, name) for name in names), *[partial(explain, "x_sigmoid_x")] * 2]
    at_once(*jobs)
    after = world()
    after["generated code"] = before["generated code"]
    assert after == before
    reports = mhf_compile.last_reports()
    assert len(reports) == len(names)
    assert [(len(r.rewrites), r.misses, r.notes) for r in reports] == [(1, (), ())] * len(names)
    assert sorted(str(r.rewrites[0].subnetworks) for r in reports) == ["1", "1", "1", "4"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_threads_rewrite_one_graph_one_after_the_other(graph: fx.GraphModule, inputs: list[Any]) -> None:
    """The copies share their fake tensors; the garbage collector is one for all."""
    inside: list[int] = []
    reports: list[Report] = []

    def alone(module: fx.GraphModule) -> Tape:
        inside.append(threading.get_ident())
        time.sleep(0.01)
        assert inside == [threading.get_ident()]
        assert not gc.isenabled()
        tape = record(module)
        inside.clear()
        return tape

    def rewrite() -> None:
        for _ in range(2):
            reports.append(mhf_compile.rewrite(graph, inputs, strict=True)[1])

    with unchanged(graph, ["generated code"]), mock.patch.object(backend, "record", alone):
        at_once(*[rewrite] * 4)
    assert reports == [reports[0]] * 8
    check_right(reports[0])


def test_an_interrupted_thread_keeps_no_other_waiting(graph: fx.GraphModule, inputs: list[Any]) -> None:
    reports: list[Report] = []
    with broken("proof", 1, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        mhf_compile.rewrite(graph, inputs)
    thread = threading.Thread(
        target=lambda: reports.append(mhf_compile.rewrite(graph, inputs, strict=True)[1]), daemon=True
    )
    thread.start()
    thread.join(timeout=60)
    check_right(reports[0])


def test_explain_forgets_only_what_it_compiled_itself() -> None:
    compilations: list[str] = []

    def counting(module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
        compilations.append(threading.current_thread().name)
        return module

    given = [x.detach() for x in tensors()]
    other = torch.compile(feed_forward, backend=counting)

    @torch.compiler.disable
    def meanwhile() -> None:
        thread = threading.Thread(target=other, args=given, name="other")
        thread.start()
        thread.join()

    def model(x: Tensor) -> Tensor:
        meanwhile()
        return x + 1

    mhf_compile.explain(model, given[0])
    other(*given)
    assert compilations == ["other"]


# -- caches of others ---------------------------------------------------------------------------------------


def test_a_full_disk_under_inductors_cache() -> None:
    given = [x.detach() for x in tensors()]
    written: list[str] = []
    write = codecache.write_atomic

    def full(path: str, *args: Any, **kwargs: Any) -> None:
        if not {"fxgraph", "aotautograd"}.isdisjoint(Path(path).parts):
            written.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        write(path, *args, **kwargs)

    with mock.patch.object(codecache, "write_atomic", full), fresh_inductor_cache():
        found = torch.compile(feed_forward, backend="flashmhf", options={"flashmhf.strict": True})(*given)
    torch.testing.assert_close(found, feed_forward(*given))
    assert written
    assert len(mhf_compile.last_reports()[0].rewrites) == 1
