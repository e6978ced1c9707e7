"""The functions beside the backend: explain a model, rewrite a graph; and what the package exports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import silu

import mhf_compile
from mhf_compile import NotRewritten, OptionError, Report
from mhf_compile.api import rewrite
from tests.comparison import LONGEST_SUM, counted_calls
from tests.programs import BY_NAME, D, F, H


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.k, self.u, self.v = (
            nn.Parameter(torch.randn(H, F, D, generator=generator).double() * 0.3) for _ in range(3)
        )

    def forward(self, q: Tensor, *, scale: float = 1.0, broken: bool = False) -> Tensor:
        gate, up = (torch.einsum("bthd,hfd->bthf", q, w) for w in (self.k, self.u))
        out = scale * torch.einsum("bthf,hfo->btho", silu(gate) * up, self.v)
        if broken:
            torch._dynamo.graph_break()
            gate, up = (torch.einsum("bthd,hfd->bthf", out, w) for w in (self.k, self.u))
            hidden = silu(gate) * up
            out = out + torch.einsum("bthf,hfo->btho", hidden, self.v) + hidden.mean()
        return out


class Doubled(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, q: Tensor) -> Tensor:
        return self.network(q, scale=2.0)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def query() -> Tensor:
    return torch.randn(2, 5, H, D, generator=torch.Generator().manual_seed(1)).double()


def close(found: Tensor, expected: Tensor) -> bool:
    """Two sums in another order: each off by at most half a unit in the last place for every product."""
    bound = LONGEST_SUM * torch.finfo(torch.float64).eps
    return float((found - expected).norm() / expected.norm()) <= bound


def result_of(module: fx.GraphModule, inputs: list[Any]) -> Tensor:
    """What a graph gives; Dynamo's give it in a tuple."""
    found = module(*inputs)
    return found[0] if isinstance(found, (tuple, list)) else found


def calls_of(module: fx.GraphModule) -> int:
    return sum(str(node.target) == "mhf.flash_mhf.default" for node in module.graph.nodes)


# -- explain ------------------------------------------------------------------------------------------------


def test_explain_with_keyword_arguments() -> None:
    report = mhf_compile.explain(Network(), query(), scale=3.0)
    assert (len(report.rewrites), report.misses) == (1, ())
    assert report.rewrites[0].tokens == 10
    assert mhf_compile.explain(Network(), scale=3.0, q=query()) == report


def test_explain_takes_all_graphs_together() -> None:
    report = mhf_compile.explain(Network(), query(), broken=True)
    assert (len(report.rewrites), len(report.misses)) == (1, 1)
    assert "used elsewhere" in report.misses[0].reason


def test_explain_a_compiled_model_again_and_again() -> None:
    network = Network()
    expected = mhf_compile.explain(network, query())
    assert len(expected.rewrites) == 1
    for compiled in (torch.compile(network, backend="eager"), torch.compile(network, backend="flashmhf")):
        assert mhf_compile.explain(compiled, query()) == expected
    run = torch.compile(network, backend="flashmhf", options={"flashmhf.inner": "eager"})
    run(query())
    assert mhf_compile.explain(run, query()) == expected
    assert mhf_compile.explain(network, query()) == expected


def test_explain_leaves_the_model_as_it_was() -> None:
    network = Network()
    before = dict(vars(network))
    parameters = [p.clone() for p in network.parameters()]
    mhf_compile.explain(network, query())
    after = vars(network)
    assert all(after[name] is value for name, value in before.items())
    for a, b in zip(parameters, network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert mhf_compile.last_reports() == []
    with counted_calls() as calls:
        network(query())
    assert calls == [0]


def test_explain_a_model_of_nothing() -> None:
    report = mhf_compile.explain(nn.Linear(3, 3), torch.ones(2, 3))
    assert report == Report(modules=(("", "Linear"),))


def test_explain_with_options() -> None:
    spelling = BY_NAME["dense"]
    (miss,) = mhf_compile.explain(spelling.program, *spelling.tensors()).misses
    assert "flashmhf.dense is 'auto'" in miss.reason
    assert 'to "always"' in miss.advice
    options = {"flashmhf.dense": "always", "flashmhf.prove": "never"}
    (rewrite,) = mhf_compile.explain(spelling.program, *spelling.tensors(), options=options).rewrites
    assert rewrite.proof == "not proved"
    with pytest.raises(OptionError, match=r"flashmhf\.dens'"):
        mhf_compile.explain(spelling.program, *spelling.tensors(), options={"flashmhf.dens": "always"})


def test_what_the_op_cannot_run_on_is_a_miss() -> None:
    reason = "the op has no kernels for a GPU"
    with mock.patch("mhf_compile.rewriting.refusals.unsupported", lambda device, dtype: reason):
        (miss,) = mhf_compile.explain(Network(), query()).misses
    assert miss.reason == reason


def test_explain_requires_of_all_graphs_together() -> None:
    def twice(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        first = BY_NAME["exponential"].program(q, k, u, v)
        torch._dynamo.graph_break()
        return BY_NAME["exponential"].program(first, k, u, v)

    tensors = BY_NAME["exponential"].tensors()
    assert len(mhf_compile.explain(twice, *tensors, options={"flashmhf.require": 2}).rewrites) == 2
    with pytest.raises(NotRewritten, match=r"flashmhf\.require is 3, but 2 of 2"):
        mhf_compile.explain(twice, *tensors, options={"flashmhf.require": 3})


class Broken(nn.Module):
    """A loop with a graph break in it, after which Dynamo compiles the layers, which share their code."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(D), Network().float()) for _ in range(layers))
        self.tied = self.layers[1]

    def forward(self, q: Tensor) -> Tensor:
        for layer in (*self.layers, self.tied):
            torch._dynamo.graph_break()
            q = layer(q)
        return q


def test_explain_names_the_modules_that_share_a_graph() -> None:
    report = mhf_compile.explain(Broken(4), query().float())
    assert [rewrite.module for rewrite in report.rewrites] == [f"layers.{n}.1" for n in (0, 1, 2, 3, 1)]
    assert report.modules[:3] == (("", "Broken"), ("layers", "ModuleList"), ("layers.0", "Sequential"))


def test_explain_knows_the_modules_of_a_compiled_model() -> None:
    network = Doubled(Network())
    compiled = torch.compile(network, backend="eager")
    modules = (("", "Doubled"), ("network", "Network"))
    assert mhf_compile.explain(compiled, query()).modules == modules
    network.compile(backend="eager")
    assert mhf_compile.explain(network, query()).modules == modules


# -- rewrite ------------------------------------------------------------------------------------------------


def graphs(kind: str) -> tuple[fx.GraphModule, list[Any]]:
    """The graph of a network, and what it is called with."""
    network, q = Network(), query()
    if kind == "symbolic_trace":
        return fx.symbolic_trace(Doubled(network)), [q]
    if kind == "export":
        module = torch.export.export(Doubled(network), (q,)).module()
        assert isinstance(module, fx.GraphModule)
        return module, [q]
    found: list[tuple[fx.GraphModule, list[Any]]] = []

    def collect(module: fx.GraphModule, inputs: list[Any]) -> fx.GraphModule:
        found.append((module, list(inputs)))
        return module

    torch.compile(network, backend=collect)(q, scale=2.0)
    (graph,) = found
    return graph


KINDS = ["dynamo", "symbolic_trace", "export"]


@pytest.mark.parametrize("kind", KINDS)
def test_rewrite(kind: str) -> None:
    module, inputs = graphs(kind)
    graph, code, nodes = module.graph, module.code, list(module.graph.nodes)
    metas = [dict(node.meta) for node in nodes]
    expected = result_of(module, inputs)
    rewritten, report = rewrite(module, inputs, strict=True)
    assert (len(report.rewrites), report.misses) == (1, ())
    assert report.rewrites[0].proof == "exact"
    assert calls_of(rewritten) == 1
    with counted_calls() as calls:
        assert close(result_of(rewritten, inputs), expected)
    assert calls == [1]
    # the given graph is as it was
    assert module.graph is graph
    assert list(module.graph.nodes) == nodes
    assert module.code == code
    assert [node.meta.keys() for node in nodes] == [meta.keys() for meta in metas]
    assert calls_of(module) == 0
    # the parameters are shared
    own = {id(p) for p in module.parameters()}
    assert {id(p) for p in rewritten.parameters()} == own


def test_rewrite_again_finds_nothing() -> None:
    module, inputs = graphs("dynamo")
    once, _ = rewrite(module, inputs)
    twice, report = rewrite(once, inputs)
    assert report == Report()
    assert twice.code == once.code


def test_rewrite_takes_the_backend_s_options() -> None:
    module, inputs = graphs("dynamo")
    _, report = rewrite(module, inputs, prove="never")
    assert report.rewrites[0].proof == "not proved"
    with pytest.raises(OptionError, match=r"unknown option 'flashmhf\.proof'; the options are"):
        rewrite(module, inputs, proof="never")


@pytest.mark.parametrize("options", [{}, {"workspace": 2**20}])
def test_a_workspace_is_an_argument_of_the_op(options: dict[str, int]) -> None:
    rewritten, _ = rewrite(*graphs("dynamo"), strict=True, **options)
    (call,) = (node for node in rewritten.graph.nodes if str(node.target) == "mhf.flash_mhf.default")
    assert call.args[-1] == options.get("workspace")


def test_rewrite_at_other_shapes_than_the_graph_was_made_of() -> None:
    module, _ = graphs("symbolic_trace")
    inputs = [torch.randn(7, 1, H, D).double()]
    rewritten, report = rewrite(module, inputs, strict=True)
    assert report.rewrites[0].tokens == 7
    assert close(rewritten(*inputs), module(*inputs))


def test_gradients_of_a_rewritten_graph() -> None:
    module, inputs = graphs("symbolic_trace")
    inputs[0].requires_grad_()
    rewritten, _ = rewrite(module, inputs, strict=True)
    wanted = [inputs[0], *module.parameters()]
    for a, b in zip(
        torch.autograd.grad(rewritten(*inputs).square().sum(), wanted),
        torch.autograd.grad(module(*inputs).square().sum(), wanted),
        strict=True,
    ):
        assert close(a, b)


# -- the package --------------------------------------------------------------------------------------------


def test_public_names() -> None:
    for name in mhf_compile.__all__:
        assert callable(getattr(mhf_compile, name))
    assert mhf_compile.__all__ == sorted(mhf_compile.__all__)
    with pytest.raises(AttributeError, match="module 'mhf_compile' has no attribute 'nothing'"):
        mhf_compile.nothing  # noqa: B018


@pytest.mark.parametrize(
    "program",
    [
        "import torch, mhf_compile; print(mhf_compile.__version__)",
        "import mhf_compile, torch; mhf_compile.flash_mhf; print(mhf_compile.__version__)",
    ],
)
def test_importing_while_pytorch_logs(program: str, tmp_path: Path) -> None:
    """With TORCH_LOGS, PyTorch looks the package up while it is itself loading."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TORCH_LOGS": "+mhf_compile,recompiles"},
    )
    assert (done.returncode, done.stdout.strip()) == (0, mhf_compile.__version__), done.stderr


def test_the_spellings_are_explained_alike() -> None:
    """explain says what the backend does."""
    spelling = BY_NAME["loop"]
    explained = mhf_compile.explain(spelling.program, *spelling.tensors())
    torch._dynamo.reset()
    torch.compile(spelling.program, backend="flashmhf", options={"flashmhf.inner": "eager"})(
        *spelling.tensors()
    )
    assert mhf_compile.last_reports() == [explained]
