"""Graphs that call modules, as torch.fx.symbolic_trace makes them, and constants in them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import silu

import mhf_compile
from mhf_compile.report.report import Report

B, T, H, D, F = 2, 5, 2, 6, 8


class Heads(nn.Module):
    """A normalised input, and heads that share a gate, an up and a down projection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(H * D)
        self.gate = nn.Linear(D, F, bias=False)
        self.up = nn.Linear(D, F)
        self.down = nn.Linear(F, D, bias=False)
        self.tail = nn.Sequential(nn.Dropout(0.5), nn.TransformerEncoderLayer(D, 2, F))

    def forward(self, x: Tensor) -> Tensor:
        q = self.norm(x.flatten(0, 1)).view(B, T, H, D)
        return self.tail(self.down(silu(self.gate(q)) * self.up(q)).flatten(0, 1))


def rewritten(model: nn.Module) -> tuple[fx.GraphModule, Report]:
    traced = fx.symbolic_trace(model)
    return mhf_compile.rewrite(traced, [torch.randn(B, T, H * D)], strict=True, dense="always")


def test_parameters_of_modules_that_are_called_are_operands() -> None:
    torch.manual_seed(0)
    model = Heads().double().eval()
    module, report = rewritten(model)
    assert len(report.rewrites) == 1
    assert not {"gate", "up", "down"} & {node.target for node in module.graph.find_nodes(op="call_module")}
    x = torch.randn(B, T, H * D, dtype=torch.float64)
    weights = list(model.parameters())
    results = [program(x) for program in (model, module)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), weights) for y in results))


def test_a_module_is_as_it_was_after_it_was_recorded() -> None:
    """Statistics, counters, and the random numbers of dropout."""
    model = Heads()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    attributes = {name: set(vars(part)) for name, part in model.named_modules()}
    state = torch.get_rng_state()
    assert rewritten(model)[1].rewrites
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randn(B, T, H * D)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == kept
    assert {name: set(vars(part)) for name, part in model.named_modules()} == attributes


@pytest.mark.parametrize(
    "hooked",
    [
        lambda model, hook: model.gate.register_forward_hook(hook),
        lambda model, hook: model.up.register_forward_pre_hook(lambda module, args: hook(module, args, None)),
    ],
    ids=["hook", "pre-hook"],
)
def test_a_module_with_hooks_is_left_alone_and_they_are_not_called(
    hooked: Callable[[Heads, Callable[..., None]], object],
) -> None:
    called: list[object] = []
    model = Heads().eval()
    hooked(model, lambda *args: called.append(args))
    module, report = rewritten(model)
    assert (report.rewrites, called) == ((), [])
    x = torch.randn(B, T, H * D)
    torch.testing.assert_close(module(x), model(x))


def test_hooks_of_all_modules_are_not_called() -> None:
    called: list[object] = []
    traced = fx.symbolic_trace(Heads())
    with nn.modules.module.register_module_forward_hook(lambda *args: called.append(args)):
        _, report = mhf_compile.rewrite(traced, [torch.randn(B, T, H * D)], strict=True, dense="always")
    assert len(report.rewrites) == 1
    assert called == []


def test_a_weight_that_two_modules_share() -> None:
    model = Heads().eval()
    model.up.weight = model.gate.weight
    module, report = rewritten(model)
    assert len(report.rewrites) == 1
    x = torch.randn(B, T, H * D)
    torch.testing.assert_close(module(x), model(x))


def test_a_tensor_that_no_module_registers() -> None:
    """It has no name in the graph, so what it is a factor of is no operand that could be passed."""

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.constants[0]

    Scaled.__module__ = "torch.nn"  # a leaf for symbolic_trace
    model = Heads().eval()
    model.tail = Scaled(D, D)
    model.tail.constants = [torch.randn(D)]
    module, report = rewritten(model)
    assert len(report.rewrites) == 1
    x = torch.randn(B, T, H * D)
    torch.testing.assert_close(module(x), model(x))
