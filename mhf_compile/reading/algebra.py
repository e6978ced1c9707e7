"""Sums and products of entries, and sums over axes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from mhf_compile import notation
from mhf_compile.notation import Axes, Axis, Func, Index, Leaf, Term, Unreadable
from mhf_compile.reading.entries import Indices, dimension, entry, inverse, multiply, scalar, times
from mhf_compile.tape.values import Op, Value

POWERS = (1, 2, 3, 4)
"""The powers that are read as products."""

# -- entry by entry -----------------------------------------------------------------------------------------


def add(op: Op, out: int, index: Indices, axes: Axes, sign: int = 1) -> list[Term]:
    """The sum ``a + sign * alpha * b``."""
    return [times(Fraction(1), op.args[0], index), times(sign * _alpha(op), op.args[1], index)]


def subtract_from(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The difference ``b - alpha * a``, of rsub."""
    return [times(-_alpha(op), op.args[0], index), times(Fraction(1), op.args[1], index)]


def _alpha(op: Op) -> Fraction:
    return scalar(op.kwargs.get("alpha", op.args[2] if len(op.args) > 2 else 1))


def negate(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The entry times -1."""
    return [times(Fraction(-1), op.args[0], index)]


def product(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The product ``a * b``."""
    return [multiply(*(times(Fraction(1), operand, index) for operand in op.args[:2]))]


def divide(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The quotient ``a / b``, which is ``a * reciprocal(b)``."""
    if op.kwargs.get("rounding_mode") is not None:
        raise Unreadable("a division that rounds")
    above, below = op.args
    if not isinstance(below, Value):
        return [times(inverse(below), above, index)]
    divisor = Term(factors=(Func("reciprocal", entry(below, index)),))
    return [multiply(times(Fraction(1), above, index), divisor)]


def add_product(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The sum ``a + value * b * c``, of addcmul."""
    value = scalar(op.kwargs.get("value", 1))
    first, second = times(value, op.args[1], index), times(Fraction(1), op.args[2], index)
    return [times(Fraction(1), op.args[0], index), multiply(first, second)]


def power(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A small whole power: a product."""
    base, exponent = op.args
    if not isinstance(base, Value) or exponent not in POWERS:
        raise Unreadable(f"the power {exponent}")
    return [multiply(*[times(Fraction(1), base, index)] * int(exponent))]


# -- sums over axes -----------------------------------------------------------------------------------------


def matmul(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The product ``a @ b`` of matrices and vectors, or ``beta * bias + alpha * a @ b``."""
    *bias, a, b = op.args
    axis = Axis(a.shape[-1])
    inner = Index.over(axis) if axis.size != 1 else Index()
    rows, columns = index[: a.rank - 1], index[a.rank - 1 :]
    left, right = (
        Leaf(a, (*rows, inner)),
        Leaf(b, (*rows[: b.rank - 2], inner, *columns) if b.rank > 1 else (inner,)),
    )
    terms = [Term(scalar(op.kwargs.get("alpha", 1)), (left, right), (axis,) * (axis.size != 1))]
    beta = scalar(op.kwargs.get("beta", 1))
    return [times(beta, operand, index) for operand in bias if beta] + terms


def convolution(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A convolution of kernel 1, which is a product of channels, in each of its groups."""
    source, weight, bias, stride, padding, _, transposed, _, groups = op.args
    if transposed or {1, *weight.shape[2:], *stride} != {1} or {0, *padding} != {0}:
        raise Unreadable("a convolution of several positions")
    batch, channel, *places = index
    axis = Axis(weight.shape[1])
    inner = Index.over(axis) if axis.size != 1 else Index()
    group, _ = axes.divide(channel, notation.size_of(weight.shape[0] // groups))
    own = notation.flatten((group, inner), (groups, axis.size))
    factors = (
        Leaf(source, (batch, own, *places)),
        Leaf(weight, (channel, inner, *(Index() for _ in places))),
    )
    terms = [Term(factors=factors, bound=(axis,) * (axis.size != 1))]
    return [*terms, Term(factors=(Leaf(bias, (channel,)),))] if bias is not None else terms


def total(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """Of sum(x, dims=all, keepdim=False)."""
    source = op.args[0]
    dims = op.args[1] if len(op.args) > 1 and op.args[1] else tuple(range(source.rank))
    reduced = {dimension(d, source.rank) for d in ((dims,) if isinstance(dims, int) else dims)}
    keepdim = len(op.args) > 2 and op.args[2]
    remaining = iter(index)
    inner: list[Index] = []
    bound: list[Axis] = []
    for d, size in enumerate(source.shape):
        if d not in reduced:
            inner.append(next(remaining))
            continue
        if keepdim:
            next(remaining)
        bound += [Axis(size)] * (size != 1)
        inner.append(Index.over(bound[-1]) if size != 1 else Index())
    return [Term(factors=(Leaf(source, tuple(inner)),), bound=tuple(bound))]


def mean(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The sum, divided by how many entries it has."""
    (term,) = total(op, out, index, axes)
    return [replace(term, coefficient=inverse(notation.product([axis.size for axis in term.bound])))]
