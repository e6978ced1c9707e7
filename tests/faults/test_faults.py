"""Faults planted in every stage of the analysis: the model runs, nothing leaks, the next is rewritten."""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import fx

import mhf_compile
from mhf_compile import backend
from mhf_compile.graphs import copied_module
from mhf_compile.options import parse
from mhf_compile.report.report import Report
from tests.comparison import counted_calls
from tests.faults.stages import (
    AROUND,
    EAGER,
    ERRORS,
    FILLING,
    OPERATED,
    STAGES,
    STRICT,
    UNSEEN,
    broken,
    check_right,
    feed_forward,
    forget,
    outcome,
    program,
    shapes,
    tensors,
    unchanged,
    watched,
    world,
)


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The reports in the structured trace; the log is on."""
    artifacts: list[str] = []
    monkeypatch.setattr(backend, "trace_structured_artifact", lambda _, __, text: artifacts.append(text()))
    caplog.set_level(logging.INFO, "mhf_compile")
    return artifacts


@pytest.fixture(scope="module")
def calls(compiled: tuple[fx.GraphModule, list[Any]]) -> dict[str, int]:
    """How often each stage is called when the graph is analysed; of those that only tell of it, nothing."""
    counted: dict[str, int] = {}
    for stages in (FILLING, [stage for stage in STAGES if stage not in FILLING]):
        if stages is FILLING:
            forget()
        with ExitStack() as stack:
            for stage in stages:
                stack.enter_context(watched(stage, partial(counted.__setitem__, stage)))
            backend.flashmhf(copied_module(compiled[0]), compiled[1], options=STRICT)
    return counted


def check_failed(report: Report, caplog: pytest.LogCaptureFixture, error: type[BaseException]) -> None:
    """Check that a failure is in the report and, once and with its traceback, in the log."""
    assert report == Report(notes=(f"the analysis failed, with {error.__name__}: planted",))
    records = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [(r.name, r.levelname) for r in records] == [("mhf_compile.backend", "WARNING")]
    assert records[0].exc_info is not None
    assert records[0].exc_info[0] is error and records[0].exc_info[2] is not None


def state_that_may_change(stage: str) -> list[str]:
    operated = stage in OPERATED or stage == "an operand is built"  # for the proof, then for the rewrite
    return ["generated code"] if operated else []


@pytest.mark.parametrize("later", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_error_leaves_everything_as_it_was(
    stage: str,
    later: bool,
    graph: fx.GraphModule,
    inputs: list[Any],
    calls: dict[str, int],
    caplog: pytest.LogCaptureFixture,
    traced: list[str],
) -> None:
    error = ERRORS[(list(STAGES).index(stage) + 2 * later) % len(ERRORS)]
    at = calls.get(stage, 1) if later else 1
    if stage in FILLING:
        forget()
    with unchanged(graph, state_that_may_change(stage)), broken(stage, at, error):
        result = backend.flashmhf(graph, inputs, options=EAGER)
    (report,) = mhf_compile.last_reports()
    check_failed(report, caplog, error)
    assert traced == [report.to_json()]
    with counted_calls() as fused:
        found = outcome(result, inputs)
    assert fused == [0]
    assert all(map(torch.equal, found, outcome(program, inputs[-4:])))

    backend.flashmhf(graph, inputs, options=STRICT)
    check_right(mhf_compile.last_reports()[-1])
    for a, b in zip(outcome(graph, inputs), found, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("stage", STAGES)
def test_strict_raises_and_leaves_everything_as_it_was(
    stage: str,
    graph: fx.GraphModule,
    inputs: list[Any],
    calls: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    at = calls.get(stage, 1) if stage not in FILLING else 1
    raises = pytest.raises(LookupError, match="planted")
    with unchanged(graph, state_that_may_change(stage)), broken(stage, at, LookupError), raises:
        backend.flashmhf(graph, inputs, options=STRICT)
    assert mhf_compile.last_reports() == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_goes_through_and_leaves_everything_as_it_was(
    stage: str, graph: fx.GraphModule, inputs: list[Any], calls: dict[str, int]
) -> None:
    interrupt = (KeyboardInterrupt, SystemExit, GeneratorExit)[list(STAGES).index(stage) % 3]
    at = (calls.get(stage, 1) + 1) // 2
    if stage in FILLING:
        forget()
    raises = pytest.raises(interrupt, match="planted")
    with unchanged(graph, state_that_may_change(stage)), broken(stage, at, interrupt), raises:
        backend.flashmhf(graph, inputs, options=EAGER)
    assert mhf_compile.last_reports() == []
    backend.flashmhf(graph, inputs, options=STRICT)
    check_right(mhf_compile.last_reports()[0])


def test_a_collector_that_is_off_stays_off(graph: fx.GraphModule, inputs: list[Any]) -> None:
    gc.disable()
    try:
        with unchanged(graph), broken("proof", 1, RuntimeError):
            backend.flashmhf(graph, inputs, options=EAGER)
        backend.flashmhf(graph, inputs, options=STRICT)
        assert not gc.isenabled()
    finally:
        gc.enable()


# -- in torch.compile ---------------------------------------------------------------------------------------

SOME = ("record", "an operation is recorded", "unify", "an operation of the proof", "erase", "trace")


@pytest.mark.parametrize(("stage", "around"), [*zip(SOME, AROUND, strict=True)])
def test_a_compiled_model_works_after_an_error(
    stage: str, around: str, calls: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    function = torch.compile(program, backend="flashmhf", options=EAGER)
    given = tensors()
    with AROUND[around](), broken(stage, calls.get(stage, 1), RuntimeError):
        before = world()
        found = function(*given)
        after = world()
        expected = program(*given)
    after["generated code"] = before["generated code"]
    assert after == before
    assert torch.equal(found, expected)
    if found.requires_grad:
        found_, expected_ = (torch.autograd.grad(x.square().sum(), given) for x in (found, expected))
        assert all(map(torch.equal, found_, expected_))
    (report,) = mhf_compile.last_reports()
    check_failed(report, caplog, RuntimeError)
    torch._dynamo.reset()
    torch.compile(program, backend="flashmhf", options=STRICT)(*given)
    check_right(mhf_compile.last_reports()[-1])


@pytest.mark.parametrize(("stage", "around"), [*zip(SOME, UNSEEN, strict=True)])
def test_an_error_leaves_what_looks_on_as_it_was(
    stage: str, around: str, graph: fx.GraphModule, inputs: list[Any], calls: dict[str, int]
) -> None:
    with unchanged(graph, state_that_may_change(stage)), UNSEEN[around](), broken(stage, 1, RuntimeError):
        (note,) = backend.analyse(graph, parse(EAGER)[0]).notes
    assert note == "the analysis failed, with RuntimeError: planted"


@pytest.mark.parametrize("stage", SOME)
def test_a_model_compiles_after_an_interrupt(stage: str, calls: dict[str, int]) -> None:
    def press(number: int) -> None:
        if number == (calls.get(stage, 1) + 1) // 2:
            signal.raise_signal(signal.SIGINT)

    function = torch.compile(program, backend="flashmhf", options=STRICT)
    given = tensors()
    before = world()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with watched(stage, press), pytest.raises(KeyboardInterrupt):
            function(*given)
    finally:
        signal.signal(signal.SIGINT, handler)
    after = world()
    after["generated code"] = before["generated code"]
    assert after == before
    assert mhf_compile.last_reports() == []
    for a, b in zip(outcome(function, given), outcome(program, given), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    check_right(mhf_compile.last_reports()[0])


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_another_inner_compiler_gets_the_graph_after_an_error(inner: str) -> None:
    given = [x.detach() for x in tensors()]
    function = torch.compile(feed_forward, backend="flashmhf", options={"flashmhf.inner": inner})
    with broken("redirect", 1, RuntimeError):
        found = function(*given)
    torch.testing.assert_close(found, feed_forward(*given))
    assert len(mhf_compile.last_reports()[0].notes) == 1


@pytest.mark.parametrize("stage", SOME)
def test_symbols_are_as_they_were(stage: str) -> None:
    checked: list[fx.GraphModule] = []

    def around(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        for error in (RuntimeError, KeyboardInterrupt):
            expected = pytest.raises(KeyboardInterrupt) if error is KeyboardInterrupt else nullcontext()
            with unchanged(module, ["generated code"]), broken(stage, 1, error), expected:
                backend.flashmhf(module, inputs, options=EAGER)
        before = shapes(module)
        result = backend.flashmhf(module, inputs, options=STRICT)
        assert shapes(module) == before
        checked.append(module)
        return result

    given = tensors()
    torch._dynamo.mark_dynamic(given[0], 0)
    torch.compile(feed_forward, backend=around)(*given)
    assert len(checked) == 1
    assert isinstance(mhf_compile.last_reports()[-1].rewrites[0].tokens, str)
