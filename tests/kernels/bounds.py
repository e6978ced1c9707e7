"""What a call of the operator should give, and how far rounding may take it from that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from tests.kernels import battery
from tests.kernels.battery import formula, results
from tests.kernels.drawn import (
    BLOCKED,
    Call,
)

SINGLE = torch.finfo(torch.float32)

RELU: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu_squared": lambda x: torch.relu(x) ** 2,
}
"""Torch's, whose slope is 0 at 0 and 1 at NaN; those of the battery's clamp are 1 and 0."""


@contextmanager
def definition(**activations: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The formula of the battery, with these activations besides."""
    with patch.dict(battery.ACTIVATIONS, {**RELU, **activations}):
        yield


def exactly(call: Call, operands: tuple[Tensor | None, ...], grad: Tensor) -> dict[str, Tensor]:
    """The result and all gradients in float64, in which no product of float32 overflows or underflows."""
    with definition():
        found = results(formula, operands, grad, torch.float64, call.constants)
    return dict(zip(["out", *call.given], (x.detach() for x in found), strict=True))


def magnitudes(
    call: Call,
    operands: tuple[Tensor | None, ...],
    grad: Tensor,
    activation: Callable[[Tensor], Tensor],
    least: float = 0.0,
) -> dict[str, Tensor]:
    """The formula and its gradients on magnitudes, none of which is less than `least`, in float64."""

    def of(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.double().abs().clamp(min=least)

    constants = ("bound", *(max(least, abs(x)) for x in call.constants[1:]))
    with definition(bound=activation):
        found = results(formula, tuple(map(of, operands)), of(grad), torch.float64, constants)
    return dict(zip(["out", *call.given], (x.detach() for x in found), strict=True))


def limits(call: Call, operands: tuple[Tensor | None, ...], grad: Tensor) -> dict[str, Tensor]:
    """What neither a result nor a value on the way to it exceeds in magnitude, whatever the order of factors.

    Where no magnitude is less than 1, no factor makes anything smaller, and the product of some factors is at
    most that of all. For x >= 1 no activation exceeds 2 x^3, no slope 6 x^2, and nor does a part of either.
    """
    return magnitudes(call, operands, grad, lambda x: 2 * x**3, least=1.0)


def roundings(call: Call, operands: tuple[Tensor | None, ...], grad: Tensor) -> dict[str, Tensor]:
    """How far rounding may take a result from the exact one; each entry for itself.

    A sum of n products errs by less than n u times the sum of magnitudes, u the unit roundoff. So each result
    errs by less than C u times the formula on magnitudes, with the activations' `BOUNDS`, where C counts the
    operations in a row:

        gate                D products, the scale, the bias; of degree 4 at most in activations and slopes
        up, d_hidden        D products and the bias, O products
        activation, slope   8 each
        the rest            6 products: of both with up, d_hidden, r and the scales
        the result          a sum over E and F, over tokens and heads of a group, or over F

    A result is rounded to its dtype in the end; Triton rounds hidden, d_gate and d_up as well, and the sums
    over chunks of those: up to three in a row. Chunks round gate, of degree 4, up and d_hidden, too. Below
    the normal numbers a rounding is by half of the smallest number there is, times the other factors. There
    Triton's interpreter takes any bfloat16 for any other, also in an operand.
    """
    own = torch.finfo(getattr(torch, call.dtype))
    single = min(own.eps, SINGLE.eps) / 2
    rows, tokens = call.subnetworks * call.width, call.batch * call.length * call.group
    count = 4 * (call.head_dim + 2) + call.head_dim + 1 + call.out_dim + 16 + 6 + max(2 * rows, tokens)
    halves = 0 if call.way in BLOCKED else 9 if in_chunks(call) else 3
    bound = magnitudes(call, operands, grad, BOUNDS.get(call.activation, BOUNDS["silu"]))
    below = limits(call, operands, grad)
    errors = {}
    for name in bound:
        last = torch.finfo(getattr(torch, call.r_dtype)) if name == "r" else own
        relative = count * single + halves * own.eps / 2 + last.eps / 2
        absolute = sum(n * x.smallest_normal * x.eps for n, x in ((count, SINGLE), (halves, own), (1, last)))
        if halves and call.dtype == "bfloat16":
            absolute += (len(call.everything) + halves + 1) * own.smallest_normal
        errors[name] = relative * bound[name] + absolute * below[name]
    return errors


BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: 1.2 * x + x**2,
    "gelu_tanh": lambda x: 1.2 * x + x**2 + x**4,  # 1 - tanh^2 cancels, and is multiplied by x^3 in the slope
    "sigmoid": lambda x: 1 + x + x**2,
}
"""Functions that increase, as do their slopes. Each bounds its activation, and how far that errs where x does
by as much as itself; its slope so bounds the slope. Silu's does for the others."""


def gates(call: Call, operands: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor]:
    """All gates, and the sums of the magnitudes of their terms, in float64."""

    def of(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        gate = torch.einsum("bthd,hefd->bthef", q, k.repeat_interleave(call.group, 0)) * scale
        return gate if bias is None else gate + bias.repeat_interleave(call.group, 0)

    q, k, _, _, _, bias, _ = (None if x is None else x.double() for x in operands)
    assert q is not None and k is not None
    magnitude = of(q.abs(), k.abs(), None if bias is None else bias.abs(), abs(call.gate_scale))
    return of(q, k, bias, call.gate_scale), magnitude


def in_chunks(call: Call) -> bool:
    """Whether backward goes by chunks, where gates are rounded to the operands' dtype before their bias."""
    return call.way.endswith(" in chunks")


def smooth(call: Call, operands: tuple[Tensor | None, ...]) -> bool:
    """Whether rounding cannot decide on which side of relu's kink a gate is.

    A sum of D products, times a scale, and a bias err by less than (D + 2) u times the sum of magnitudes, and
    below the normal numbers by half of the smallest number each. In half precision eager errs more; that is
    then allowed to us. A gate is 0 in any arithmetic where all its terms are.
    """
    if call.activation != "relu":
        return True
    gate, magnitude = gates(call, operands)
    smallest = SINGLE.smallest_normal * SINGLE.eps * max(1.0, abs(call.gate_scale))
    near = (call.head_dim + 2) * (SINGLE.eps * magnitude + smallest)
    if in_chunks(call):
        own = torch.finfo(getattr(torch, call.dtype))
        near += own.eps * magnitude + own.smallest_normal * own.eps
    near = gate.abs() <= near
    return not (near & (magnitude > 0)).any()
