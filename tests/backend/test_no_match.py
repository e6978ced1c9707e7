"""Law 1, do no harm: what is not rewritten is compiled as it came."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters

import mhf_compile
from mhf_compile import backend
from tests.backend.models import MODELS, Convolutions, Missed, Mlp, registered


def described(module: fx.GraphModule) -> list[tuple[object, ...]]:
    return [
        (n, n.op, n.name, n.target, str(n.args), str(n.kwargs), tuple(n.users)) for n in module.graph.nodes
    ]


def metas(module: fx.GraphModule) -> list[dict[str, int]]:
    """Which object stands in each entry of each node's meta."""
    return [{key: id(value) for key, value in node.meta.items()} for node in module.graph.nodes]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_reaches_the_inner_compiler_node_for_node(model: type[nn.Module]) -> None:
    seen: list[Any] = []

    def inner(module: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> fx.GraphModule:
        seen.append((module, module.graph, described(module), metas(module), module.code, inputs, kwargs))
        return module

    def outer(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        inner(module, inputs)
        return backend.flashmhf(module, inputs, options={"flashmhf.inner": "spy", "flashmhf.strict": True})

    x = torch.randn(2, 6, 48)
    eager = model()
    compiled = copy.deepcopy(eager)
    expected = eager(x.clone())
    with registered("spy", inner):
        found = torch.compile(compiled, backend=outer)(x.clone())
    before, after = seen
    assert before[0] is after[0]
    assert before[1] is after[1]
    assert before[2:6] == after[2:6]
    assert after[6] == {}
    assert torch.equal(found, expected)
    assert [r.rewrites for r in mhf_compile.last_reports()] == [()]
    (report,) = mhf_compile.last_reports()
    assert (len(report.misses), len(report.others)) == (model in (Mlp, Missed), model is Convolutions)


def test_bit_equal_to_inductor() -> None:
    """All the models in one, values and gradients."""

    def outcome(name: str) -> list[Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(*(kind() for kind in MODELS))
        x = torch.randn(2, 6, 48, requires_grad=True)
        result = torch.compile(model, backend=name)(x)
        result.square().mean().backward()
        return [result, x.grad, *(p.grad for p in model.parameters()), *model.buffers()]

    expected = outcome("inductor")
    assert counters["stats"]["unique_graphs"] == 1
    for a, b in zip(expected, outcome("flashmhf"), strict=True):
        assert torch.equal(a, b)
