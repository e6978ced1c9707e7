"""Errors of the analysis stay with it: the graph is compiled as it came."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn import functional

import mhf_compile
from mhf_compile import backend
from mhf_compile.rewriting import plan
from tests.backend.models import two_checkpoints, two_layers
from tests.comparison import counted_calls
from tests.faults.stages import EAGER, fails
from tests.programs import BY_NAME


def fails_the_second_time(original: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[int] = []

    def function(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return fails() if len(calls) == 2 else original(*args, **kwargs)

    return function


SURGEON = plan.Surgeon

STAGES: dict[str, Callable[[], Any]] = {
    "record": lambda: mock.patch.object(backend, "record", fails),
    "find": lambda: mock.patch.object(plan, "find", fails),
    "region": lambda: mock.patch.object(plan, "check", fails),
    "prove": lambda: mock.patch.object(plan.Proofs, "prove", fails),
    "second replacement, nothing done": lambda: mock.patch.object(
        SURGEON, "replace", fails_the_second_time(SURGEON.replace)
    ),
    "second replacement, nodes put in": lambda: mock.patch.object(
        SURGEON, "_redirect", fails_the_second_time(SURGEON._redirect)
    ),
    "second replacement, result redirected": lambda: mock.patch.object(
        SURGEON, "_erase", fails_the_second_time(SURGEON._erase)
    ),
    "describe": lambda: mock.patch.object(backend, "rewrite_of", fails),
    "finish": lambda: mock.patch.object(SURGEON, "finish", fails),
}


def texts(module: fx.GraphModule) -> list[tuple[str, ...]]:
    """A graph and its bodies as text; nodes may be other objects."""
    own = [
        (
            n.op,
            n.name,
            str(n.target),
            str(n.args),
            str(n.kwargs),
            str(sorted(n.meta)),
            n.meta.get("stack_trace", ""),
        )
        for n in module.graph.nodes
    ]
    bodies = [part for _, part in module.named_children() if isinstance(part, fx.GraphModule)]
    return [*own, (module.code,), *(line for body in bodies for line in texts(body))]


@pytest.mark.parametrize("program", [two_layers, two_checkpoints], ids=lambda p: p.__name__)
@pytest.mark.parametrize("stage", STAGES)
def test_an_internal_error_leaves_the_graph_alone(
    stage: str, program: Callable[..., Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    tensors = BY_NAME["loop"].tensors()
    expected = program(*tensors)
    graphs: list[list[tuple[str, ...]]] = []

    def around(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        graphs.append(texts(module))
        compiled = backend.flashmhf(module, inputs, options=EAGER)
        graphs.append(texts(module))
        return compiled

    caplog.clear()
    with STAGES[stage](), counted_calls() as calls:
        found = torch.compile(program, backend=around)(*tensors)
    assert torch.equal(found, expected)
    for a, b in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert torch.equal(a, b)
    assert calls == [0]
    before, after = graphs
    assert before == after
    (report,) = mhf_compile.last_reports()
    assert (report.rewrites, report.misses) == ((), ())
    assert re.fullmatch(r"the analysis failed, with \w+: .*", report.notes[0])
    (warning,) = [record for record in caplog.records if record.name.startswith("mhf_compile")]
    assert warning.levelname == "WARNING"
    assert warning.exc_info is not None
    assert warning.exc_info[0] is ZeroDivisionError


def gradients(result: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(result.square().sum(), tensors)


@pytest.mark.parametrize("stage", STAGES)
def test_strict_raises_an_internal_error(stage: str) -> None:
    options = {**EAGER, "flashmhf.strict": True}
    with STAGES[stage](), pytest.raises(BackendCompilerFailed, match="planted") as raised:
        torch.compile(two_layers, backend="flashmhf", options=options)(*BY_NAME["loop"].tensors())
    assert isinstance(raised.value.inner_exception, ZeroDivisionError)


def test_state_does_not_leak_from_an_error() -> None:
    def program(q: Tensor, k: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return functional.silu(torch.vmap(torch.matmul)(q, k)) + 1

    def state() -> tuple[object, ...]:
        return (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_cache_enabled(),
            torch._C._functorch.get_dynamic_layer_stack_depth(),
            torch._C._len_torch_dispatch_stack(),
        )

    states: list[object] = []

    def around(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        states.append(state())
        compiled = backend.flashmhf(module, inputs, options=EAGER)
        states.append(state())
        return compiled

    tensors = torch.randn(3, 4, 5), torch.randn(3, 5, 4)
    expected = program(*tensors)
    with mock.patch("mhf_compile.tape.tape.Tape.record", fails):
        found = torch.compile(program, backend=around)(*tensors)
    assert states[0] == states[1]
    assert torch.equal(found, expected)
