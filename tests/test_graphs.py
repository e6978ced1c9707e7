"""Graphs that torch.export and torch.fx made: rewritten, and given back in their kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.nn.functional import silu

from mhf_compile.api import rewrite

BATCH = Dim("batch")


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu(self.gate(x)) * self.up(x))


class Network(nn.Module):
    """A feed-forward that is itself an output, beside another one, which a buffer is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = Gated(), nn.Dropout(0.0)
        self.register_buffer("shift", torch.ones(8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.first(x)
        return {"first": first, "shifted": self.drop(first) + self.shift}


def exported(dynamic: bool = False, decomposed: bool = False, **options: Any) -> ExportedProgram:
    shapes = {"x": {0: BATCH}} if dynamic else None
    program = torch.export.export(Network().eval(), (torch.ones(4, 8),), dynamic_shapes=shapes, **options)
    return program.run_decompositions() if decomposed else program


def calls_of(module: fx.GraphModule) -> int:
    return sum(str(node.target) == "mhf.flash_mhf.default" for node in module.graph.nodes)


def check(module: Any, batch: int = 4) -> None:
    """Require eager's values, up to the order of sums of 12 products."""
    x = torch.randn(batch, 8)
    for name, expected in Network().eval()(x).items():
        torch.testing.assert_close(module(x)[name], expected, rtol=1e-5, atol=1e-5)


class Summed(nn.Module):
    """Sub-networks with weights for each token, added up in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.networks, self.route = nn.ModuleList([Gated(), Gated()]), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for network, weight in zip(self.networks, self.route(x).softmax(-1).unbind(-1), strict=True):
            result += weight[:, None] * network(x)
        return result


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_sum_of_sub_networks_is_one_call(decomposed: bool) -> None:
    """Decomposed, a buffer of zeros is one that is filled with the number 0."""
    program = torch.export.export(Summed(), (torch.ones(4, 8),))
    _, report = rewrite(program.run_decompositions() if decomposed else program, dense="always")
    assert [rewrite.subnetworks for rewrite in report.rewrites] == [2]


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_exported_program(dynamic: bool, decomposed: bool, tmp_path: Path) -> None:
    program = exported(dynamic, decomposed)
    before = str(program)
    rewritten, report = rewrite(program, strict=True, dense="always")
    assert (len(report.rewrites), report.misses) == (1, ())
    assert str(program) == before
    assert calls_of(rewritten.graph_module) == 1
    batch = 7 if dynamic else 4
    check(rewritten.module(), batch)
    # what a program has beside its graph
    signatures = rewritten.graph_signature, program.graph_signature
    assert signatures[0].input_specs == signatures[1].input_specs
    assert [spec.kind for spec in signatures[0].output_specs] == [
        spec.kind for spec in signatures[1].output_specs
    ]
    assert {name: id(tensor) for name, tensor in rewritten.state_dict.items()} == {
        name: id(tensor) for name, tensor in program.state_dict.items()
    }
    assert str(rewritten.range_constraints) == str(program.range_constraints)
    # what may be done with it
    shapes = ({0: BATCH},) if dynamic else None
    again = torch.export.export(rewritten.module(), (torch.ones(4, 8),), dynamic_shapes=shapes)
    check(again.module(), batch)
    check(rewritten.run_decompositions().module(), batch)
    torch.export.save(rewritten, tmp_path / "program.pt2")
    check(torch.export.load(tmp_path / "program.pt2").module(), batch)


def test_a_program_without_a_match_is_given_back() -> None:
    program = torch.export.export(nn.Linear(8, 8), (torch.ones(4, 8),))
    rewritten, report = rewrite(program, strict=True)
    assert rewritten is program
    assert report.rewrites == ()


def test_a_submodule_that_is_preserved() -> None:
    program = exported(preserve_module_call_signature=("first",))
    rewritten, report = rewrite(program, strict=True, dense="always")
    assert len(report.rewrites) == 1
    check(torch.export.unflatten(rewritten))


def test_a_strict_export() -> None:
    """Dynamo's values stand beside torch.export's at some of its nodes."""
    program = exported(strict=True)
    assert {"val", "example_value"} <= {key for node in program.graph.nodes for key in node.meta}
    rewritten, report = rewrite(program, strict=True, dense="always")
    assert (len(report.rewrites), calls_of(rewritten.graph_module)) == (1, 1)
    check(rewritten.module())


def test_gradients_of_an_exported_program() -> None:
    rewritten, _ = rewrite(exported(), strict=True, dense="always")
    model, module = Network().eval(), rewritten.module()
    x = torch.randn(4, 8)
    for part in (model, module):
        part(x)["shifted"].square().sum().backward()
    expected = dict(model.named_parameters())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_module_of_an_exported_program(dynamic: bool) -> None:
    module = exported(dynamic).module()
    assert isinstance(module, fx.GraphModule)
    rewritten, report = rewrite(module, [torch.ones(4, 8)], strict=True, dense="always")
    assert (len(report.rewrites), calls_of(rewritten), calls_of(module)) == (1, 1, 0)
    check(rewritten, 7 if dynamic else 4)
    assert not any("example_value" in node.meta for node in (*rewritten.graph.nodes, *module.graph.nodes))
    again = torch.export.export(rewritten, (torch.ones(4, 8),))
    check(again.module())


def test_a_symbolic_trace_that_calls_modules() -> None:
    traced = fx.symbolic_trace(Network().eval())
    assert "call_module" in {node.op for node in traced.graph.nodes}
    rewritten, report = rewrite(traced, [torch.ones(4, 8)], strict=True, dense="always")
    assert (len(report.rewrites), calls_of(rewritten)) == (1, 1)
    check(rewritten, 7)
    assert [node.target for node in rewritten.graph.find_nodes(op="call_module", target="drop")] == ["drop"]
    assert {id(p) for p in rewritten.parameters()} == {id(p) for p in traced.parameters()}
    assert not any("example_value" in node.meta for node in (*rewritten.graph.nodes, *traced.graph.nodes))


def test_a_symbolic_trace_of_fake_tensors() -> None:
    with FakeTensorMode():
        traced, x = fx.symbolic_trace(Network().eval()), torch.ones(4, 8)
        rewritten, report = rewrite(traced, [x], strict=True, dense="always")
        assert (len(report.rewrites), rewritten(x)["first"].shape) == (1, (4, 8))


def test_a_symbolic_trace_without_a_match_is_as_it_was() -> None:
    traced = fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()))
    rewritten, report = rewrite(traced, [torch.ones(4, 8)], strict=True)
    assert report.rewrites == ()
    assert rewritten.code == traced.code
    assert [node.meta.keys() for node in rewritten.graph.nodes] == [n.meta.keys() for n in traced.graph.nodes]


# -- errors -------------------------------------------------------------------------------------------------


def test_a_lifted_graph_is_told_what_to_do() -> None:
    said = r"the graph takes 7 inputs \(p_first.*\), and 1 example inputs are given; "
    with pytest.raises(ValueError, match=said) as raised:
        rewrite(exported().graph_module, [torch.ones(4, 8)])
    assert str(raised.value).endswith("pass the program itself or its module()")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], r"the graph takes 1 inputs \(x\), and 0 example inputs are given$"),
        ([torch.ones(4, 8)] * 2, r"the graph takes 1 inputs \(x\), and 2 example inputs are given$"),
        (None, r"example inputs are needed for x: the graph knows no shapes$"),
    ],
)
def test_a_wrong_number_of_inputs(inputs: list[Tensor] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rewrite(fx.symbolic_trace(Gated()), inputs)


@pytest.mark.parametrize(
    ("example", "found"),
    [
        (3, "a int"),
        (torch.ones(4, 8).double(), r"a torch.float64 tensor of shape \[4, 8\]"),
        (torch.ones(4, 9), r"a torch.float32 tensor of shape \[4, 9\]"),
        (torch.ones(4, 8, 1), r"a torch.float32 tensor of shape \[4, 8, 1\]"),
    ],
)
def test_an_input_of_another_kind(example: object, found: str) -> None:
    module: Any = exported().module()
    want = r"and the graph was made for a torch.float32 tensor of shape \[4, 8\]"
    with pytest.raises(ValueError, match=f"input x: the example is {found}, {want}"):
        rewrite(module, [example])


def test_what_is_no_graph() -> None:
    with pytest.raises(TypeError, match="and this is a Gated; to rewrite what a model runs, compile it"):
        rewrite(Gated(), [torch.ones(4, 8)])  # type: ignore[type-var]


# -- other processes ----------------------------------------------------------------------------------------


def test_a_fresh_process_that_imports_the_package_runs_what_was_saved(tmp_path: Path) -> None:
    """A saved program, and a package of AOTInductor."""
    rewritten, _ = rewrite(exported(), strict=True, dense="always")
    torch.export.save(rewritten, tmp_path / "program.pt2")
    torch._inductor.aoti_compile_and_package(rewritten, package_path=str(tmp_path / "package.pt2"))
    x = torch.randn(4, 8)
    torch.save((x, Network().eval()(x)), tmp_path / "expected.pt")
    program = """
import torch, mhf_compile
x, expected = torch.load("expected.pt")
loaded = torch.export.load("program.pt2").module(), torch._inductor.aoti_load_package("package.pt2")
for module in loaded:
    for name, found in module(x).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-5)
print(len(loaded))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
