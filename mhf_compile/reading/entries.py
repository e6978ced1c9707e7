"""What the rules of all operations share: entries of operands, numbers, products."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from mhf_compile.notation import Axes, Index, Leaf, Term, Unreadable
from mhf_compile.tape.values import Op, Value

Indices = tuple[Index, ...]

Reading = Callable[[Op, int, Indices, Axes], list[Term]]
"""(operation, which output, which entry, the axes) -> the terms that add up to it. Raises Unreadable, and
LookupError where an index is outside of what it is of."""


def dimension(dim: int, rank: int) -> int:
    """A dimension counted from the front."""
    return dim % rank if rank else 0


def entry(value: Value, index: Indices) -> Leaf:
    """The entry of a value that is broadcast to the rank of an index."""
    index = index[len(index) - value.rank :]
    return Leaf(value, tuple(Index() if size == 1 else i for i, size in zip(index, value.shape, strict=True)))


_IRRATIONAL = (math.sqrt(0.5), math.sqrt(2 / math.pi))
"""Numbers of the definitions of gelu: what is written for them may differ in the last places."""


def scalar(number: object) -> Fraction:
    """A number of a program. Raises Unreadable where it is none, or not finite."""
    if not isinstance(number, (int, float)) or not math.isfinite(number):
        raise Unreadable(f"the scalar {number}")
    for known in _IRRATIONAL:
        if math.isclose(number, known, rel_tol=1e-15):
            return Fraction(known)
        if math.isclose(number * known, 1, rel_tol=1e-15):
            return 1 / Fraction(known)
    return Fraction(number)


def inverse(number: object) -> Fraction:
    """One over a number of a program. Raises Unreadable where it is none, or 0."""
    divisor = scalar(number)
    if divisor == 0:
        raise Unreadable("a division by zero")
    return 1 / divisor


def times(coefficient: Fraction, operand: object, index: Indices) -> Term:
    """A number times an operand, which is a tensor, broadcast, or a number too."""
    if isinstance(operand, Value):
        return Term(coefficient, (entry(operand, index),))
    return Term(coefficient * scalar(operand))


def multiply(*terms: Term) -> Term:
    """The product of terms that share no bound axis."""
    coefficient = math.prod((t.coefficient for t in terms), start=Fraction(1))
    return Term(coefficient, sum((t.factors for t in terms), ()), sum((t.bound for t in terms), ()))
