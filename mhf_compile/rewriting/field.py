"""Arithmetic modulo a prime p just below 2**20, exact in float64, and elementwise functions as tables.

Products are below 2**40 and sums of 8192 of them below 2**53. ``exp`` (with ``exp(x) * exp(-x) = 1``),
``erf`` (odd) and ``relu`` (x or 0) are random tables; sigmoid, tanh, silu and both gelus are made of these in
the field. Any other function is a random table, of its own for each choice of its parameters: what is equal
in the field is equal for every function.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

PRIME = 2**20 - 3
CHUNK = 2**13
"""The most products summed before reducing: CHUNK * PRIME**2 < 2**53."""

ROOTS = (math.sqrt(0.5), math.sqrt(2 / math.pi))
"""Irrational numbers of the definitions of gelu, which programs write in several ways."""


def rational(value: float) -> Fraction:
    """A number of a program; of what is one of the roots, or its inverse, up to rounding, that one."""
    for root in ROOTS:
        if math.isclose(value, root, rel_tol=1e-15):
            return Fraction(root)
        if math.isclose(value, 1 / root, rel_tol=1e-15):
            return 1 / Fraction(root)
    return Fraction(value)


def number(value: Fraction) -> int:
    """A rational number in the field."""
    return value.numerator * pow(value.denominator, -1, PRIME) % PRIME


def inverse(x: Tensor) -> Tensor:
    """One over x, and 0 of 0."""
    return table("reciprocal")[x.long()]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, or of batches of them, or of vectors."""
    result = torch.zeros((), dtype=torch.float64)
    for left, right in zip(a.split(CHUNK, -1), b.split(CHUNK, 0 if b.dim() == 1 else -2), strict=True):
        result = (result + left @ right) % PRIME
    return result


@cache
def table(name: str, *parameters: object) -> Tensor:
    """An elementwise function at every element of the field.

    Args:
        name: that of an ATen operation.
        parameters: its arguments beside the tensor, all of them.
    """
    x = torch.arange(PRIME, dtype=torch.float64)
    half = number(Fraction(1, 2))
    match name, *parameters:
        case ["reciprocal"]:
            return _inverses()
        case ["sigmoid"]:  # 1 / (1 + exp(-x))
            return inverse((1 + _reflected(table("exp"))) % PRIME)
        case ["tanh"]:  # 2 sigmoid(2 x) - 1
            return (2 * table("sigmoid")[(2 * x % PRIME).long()] - 1) % PRIME
        case ["erfc"]:
            return (1 - table("erf")) % PRIME
        case ["silu"]:
            return x * table("sigmoid") % PRIME
        case ["gelu", "none"]:  # x / 2 (1 + erf(x / sqrt(2)))
            inner = x * number(Fraction(ROOTS[0])) % PRIME
            return x * half % PRIME * (1 + table("erf")[inner.long()]) % PRIME
        case ["gelu", "tanh"]:  # x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))
            cube = x * x % PRIME * x % PRIME * number(Fraction(0.044715))
            inner = (x + cube) % PRIME * number(Fraction(ROOTS[1])) % PRIME
            return x * half % PRIME * (1 + table("tanh")[inner.long()]) % PRIME
        case ["relu"]:  # x where some bit is set, so that relu(x) relu(x) = x relu(x)
            return x * _random([name], 0, 2)
        case ["clamp_min", least]:
            return table("clamp", least, None)
        case ["clamp_max", most]:
            return table("clamp", None, most)
        case ["clamp", least, most] if least == -math.inf or most == math.inf:
            return table("clamp", None if least == -math.inf else least, None if most == math.inf else most)
        case ["celu", float(alpha)]:
            return table("elu", alpha, 1.0, 1 / alpha)
        case ["exp"]:  # exp(x) exp(-x) = 1
            some = _random([name], 1, PRIME)
            some[0] = 1
            return torch.where(x <= PRIME // 2, some, inverse(_reflected(some)))
        case ["erf"]:  # erf(-x) = -erf(x)
            some = _random([name], 0, PRIME)
            return (some - _reflected(some)) % PRIME
    return _random([name, *parameters], 0, PRIME)


SYMMETRIC = frozenset(["maximum", "minimum", "eq"])
"""Functions of two numbers in any order."""


def of_two(name: str, a: Tensor, b: Tensor) -> Tensor:
    """A function of two elements, by the name of an ATen operation; of a comparison 0 or 1."""
    match name:
        case "lt":
            return of_two("gt", b, a)
        case "le":
            return of_two("ge", b, a)
        case "ne":
            return 1 - of_two("eq", a, b)
    if name in SYMMETRIC:
        a, b = torch.minimum(a, b), torch.maximum(a, b)
    place = (a + table(f"the second of {name}")[b.long()]) % PRIME
    found = table(name)[place.long()]
    return found if name in ("maximum", "minimum") else found % 2


def _random(key: Sequence[object], low: int, high: int) -> Tensor:
    """Random numbers for each element of the field, other ones for another key."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little", signed=True)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (PRIME,), generator=generator).double()


def _inverses() -> Tensor:
    """The inverse of each element: g**i and g**(p - 1 - i) for the powers of a primitive root g."""
    factors = [n for n in range(2, PRIME) if (PRIME - 1) % n == 0 and all(n % m for m in range(2, n))]
    root = next(g for g in range(2, PRIME) if all(pow(g, (PRIME - 1) // f, PRIME) != 1 for f in factors))
    powers = torch.ones(1, dtype=torch.float64)
    while len(powers) < PRIME - 1:
        powers = torch.cat([powers, powers * pow(root, len(powers), PRIME) % PRIME])
    powers = powers[: PRIME - 1].long()
    inverses = torch.zeros(PRIME, dtype=torch.float64)
    inverses[powers] = powers.flip(0).roll(1).double()
    return inverses


def _reflected(values: Tensor) -> Tensor:
    """The table of f(-x)."""
    return values.flip(0).roll(1)
