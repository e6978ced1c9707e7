"""Expressions in one entry, and the activations that they are.

An expression is known by what it computes: it is evaluated, and its slope, and compared with each function
that the op knows. So no spelling is named here; one that is none of them keeps its text as its name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch

from mhf_compile.kernels.activations import ACTIVATIONS
from mhf_compile.notation import ONE

Expression = tuple[tuple[Fraction, tuple["X | Call", ...]], ...]
"""A sum of products, in which X is the entry that all of it depends on."""


@dataclass(frozen=True)
class X:
    """The entry that an expression depends on."""

    def __repr__(self) -> str:
        return "x"


@dataclass(frozen=True)
class Call:
    """A named function of an expression."""

    name: str
    argument: Expression

    def __repr__(self) -> str:
        return f"{self.name}({text(self.argument)})"


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{name: activation.function for name, activation in ACTIVATIONS.items()},
    "exp": torch.exp,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "tanh": torch.tanh,
    "reciprocal": torch.reciprocal,
}
"""What expressions are evaluated with; one with another function is none that the op knows."""


def times(a: Expression, b: Expression) -> Expression:
    """The product of two expressions, multiplied out."""
    return tuple((c * d, (*f, *g)) for c, f in a for d, g in b)


def functions(expression: Expression) -> set[str]:
    """The functions that an expression is made of."""
    calls = [f for _, factors in expression for f in factors if isinstance(f, Call)]
    return {call.name for call in calls}.union(*(functions(call.argument) for call in calls))


def varies(expression: Expression) -> bool:
    """Whether an expression depends on the entry at all."""
    return any(isinstance(f, X) or varies(f.argument) for _, factors in expression for f in factors)


def text(expression: Expression) -> str:
    """An expression for people, its numbers with all their digits."""
    terms = []
    for coefficient, factors in expression:
        number = repr(float(coefficient)).removesuffix(".0")
        names = [number] * (coefficient != 1 or not factors) + list(map(repr, factors))
        terms.append("*".join(names))
    return " + ".join(terms) or "0"


def evaluate(expression: Expression, x: torch.Tensor) -> torch.Tensor:
    """An expression at points. Raises KeyError for a function that is not among FUNCTIONS."""
    total = torch.zeros_like(x)
    for coefficient, factors in expression:
        value = torch.full_like(x, float(coefficient))
        for factor in factors:
            value = value * (
                x if isinstance(factor, X) else FUNCTIONS[factor.name](evaluate(factor.argument, x))
            )
        total = total + value
    return total


@dataclass(frozen=True)
class Known:
    """An activation that the op knows: ``factor * name(scale * x)``."""

    name: str
    factor: Fraction = ONE
    scale: Fraction = ONE


@lru_cache(maxsize=4096)
def identify(expression: Expression) -> Known | None:
    """The activation that an expression is; None where it is none.

    ``x * sigmoid(1.702 * x)`` is a silu of ``1.702 * x``, divided by 1.702. Values and slopes agree at points
    between -6 and 6, zero among them, and at some up to 90, up to the rounding of float64: some 100
    operations on numbers below ``1 + abs(x)**3``. ``clamp(x, min=0)`` is no relu: its slope at zero is 1.
    """
    content = next((coefficient for coefficient, _ in expression if coefficient), None)
    if content is None:
        return None
    expression = tuple((coefficient / content, factors) for coefficient, factors in expression)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        x = _points().requires_grad_()
        try:
            found = _with_slope(evaluate(expression, x), x)
        except (KeyError, OverflowError):
            return None
        near = x.detach().abs() <= 6
        if not found[:, near].isfinite().all():
            return None
        seen = found.isfinite().all(0)  # far out, eager may overflow where the op does not
        slack = 100 * torch.finfo(torch.float64).eps * (1 + x.detach().abs() ** 3)
        for scale, (name, activation) in itertools.product(_scales(expression), ACTIVATIONS.items()):
            wanted = _with_slope(activation.function(float(scale) * x), x)
            largest = (wanted[0].abs() * near).argmax()
            ratio = float(found[0][largest] / wanted[0][largest]) * float(scale)
            factor = Fraction(ratio).limit_denominator(64) / scale if math.isfinite(ratio) else Fraction(0)
            difference = (found - float(factor) * wanted).abs()
            if factor and bool((difference <= slack * abs(float(factor)))[:, seen].all()):
                return Known(name, factor * content, scale)
    return None


def _points() -> torch.Tensor:
    """Points to compare functions at: a dense grid around zero, and powers of two far out."""
    grid = torch.linspace(-6, 6, 49, dtype=torch.float64, device="cpu")
    far = 2 ** torch.arange(3, 6.75, 0.25, dtype=torch.float64, device="cpu")
    return torch.cat([grid, grid * 0.9173, far, -far])


def _with_slope(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    (slope,) = torch.autograd.grad(y.sum(), x, allow_unused=True)
    return torch.stack([y.detach(), torch.zeros_like(x) if slope is None else slope])


def _scales(expression: Expression) -> list[Fraction]:
    """The factors that x stands with in an expression's functions, after 1."""
    scales = [ONE]
    for call in (f for _, factors in expression for f in factors if isinstance(f, Call)):
        match call.argument:
            case ((scale, (X(),)),) if abs(scale) not in scales:
                scales.append(abs(scale))
        scales += [scale for scale in _scales(call.argument) if scale not in scales]
    return scales
