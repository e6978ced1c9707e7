"""Errors of the implementations of the operator against float64, and whether ours repeats itself bit by bit.

The law is that of the tests (`tests/kernels/battery.py`): at most twice the error that the plain formula has
in the same dtype, and what rounding alone may do where a result is a handful of numbers and eager is luckier
than its dtype warrants: one unit roundoff of the dtype, and eight of float32 for the values before it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

import mhf_compile
from benchmarks.formula import formula
from benchmarks.gpu.peers import EAGER, OURS, operands
from benchmarks.gpu.protocol import Lab, Op, Shape
from benchmarks.gpu.results import Errors
from benchmarks.gpu.timing import Failure, attempt, release

TENSORS = ("out", "dq", "dk", "du", "dv", "dr")


def check(shape: Shape, dtype: torch.dtype, lab: Lab) -> Iterator[Errors]:
    """Compare ours, eager and the other peers at a shape, with two gradients of the output."""
    release()
    torch.manual_seed(0)
    model = shape.model
    xs = operands(model, shape.tokens, dtype, lab.protocol.device)
    peers = {name: peer.function for name, peer in lab.peers.items()}
    functions: dict[str, Op] = {EAGER: formula, **peers, OURS: mhf_compile.flash_mhf}
    for gradient, grad in (("normal", torch.randn_like(xs[0])), ("sum", xs[0].new_ones(()).expand_as(xs[0]))):
        exact = results(formula, [x.detach().double().requires_grad_() for x in xs], grad.double())
        errors: dict[str, dict[str, float]] = {}
        failures: dict[str, str] = {}
        for name, function in functions.items():
            if name in lab.lost:
                failures[name] = lab.lost[name]
                continue
            with lab.turn(name):
                found = attempt(lab.clock, error_of, function, xs, grad, exact)
            if isinstance(found, Failure):
                failures[name] = found.why
            else:
                errors[name] = found
        with lab.turn(OURS):
            equal = OURS in errors and attempt(lab.clock, repeats_itself, functions[OURS], xs, grad) is True
        floor = (torch.finfo(dtype).eps + 8 * torch.finfo(torch.float32).eps) / 2
        name = str(dtype).removeprefix("torch.")
        yield Errors(shape.size, model.head_dim, shape.tokens, name, gradient, errors, floor, equal, failures)


def results(function: Op, xs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Output and gradients."""
    out = function(*xs)
    return [out.detach(), *torch.autograd.grad(out, xs, grad)]


def error_of(function: Op, xs: list[Tensor], grad: Tensor, exact: list[Tensor]) -> dict[str, float]:
    """The relative error of each of `TENSORS`."""
    got = results(function, xs, grad)
    return {
        name: float((x.double() - want).norm() / want.norm())
        for name, x, want in zip(TENSORS, got, exact, strict=True)
    }


def repeats_itself(function: Op, xs: list[Tensor], grad: Tensor) -> bool:
    """Whether two runs give the same bits."""
    first, second = (results(function, xs, grad) for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
