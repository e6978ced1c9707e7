"""Index notation: what a tensor expression means, whatever way it was written.

A tensor entry ``x[i, j]`` is a :class:`Leaf`; a sum of products of leaves and elementwise functions is
a tuple of :class:`Term`. The position along one dimension is an :class:`Index`: a constant plus digits
of a mixed-radix number, ``offset + sum(stride * axis)``. Views, permutations, slices, chunks and
expansions only rearrange digits, so they vanish here; ``repr`` prints the equation.

Sizes are ints, or sympy expressions for sizes that Dynamo keeps symbolic. Arithmetic on them never
asks the shape environment anything, so it cannot add a guard.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Protocol, TypeAlias

import sympy

Size: TypeAlias = "int | sympy.Expr"


class Unreadable(Exception):
    """An operation whose meaning has no index notation here; its result is a leaf."""


def size_of(size: object) -> Size:
    """A Python int, ``torch.SymInt`` or sympy expression as a Size."""
    if isinstance(size, int):
        return size
    expression = sympy.sympify(getattr(getattr(size, "node", None), "expr", size))
    return int(expression) if expression.is_Integer else expression


@lru_cache(maxsize=65536)
def times(a: Size, b: Size) -> Size:
    """The product of two sizes."""
    return a * b if isinstance(a, int) and isinstance(b, int) else size_of(sympy.expand(a * b))


@lru_cache(maxsize=65536)
def quotient(a: Size, b: Size) -> Size | None:
    """``a / b`` where b divides a for every value of the symbols, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    ratio = sympy.cancel(sympy.sympify(a) / b)
    return size_of(ratio) if ratio.is_integer else None


@lru_cache(maxsize=65536)
def at_most(a: Size, b: Size) -> bool:
    """Whether ``a <= b`` for every value of the symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a <= b
    return bool(sympy.factor(sympy.sympify(b) - a).is_nonnegative)


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes; 1 of none."""
    result: Size = 1
    for size in sizes:
        result = times(result, size)
    return result


UNTOLD = 8192
"""What a size is taken to be that is known only when the program runs."""


def known(size: Size, hints: Mapping[sympy.Symbol, int]) -> int:
    """A size as a number: its value, where it is symbolic, for some values of the symbols.

    A symbol that only the data tell has none; it is taken to be large.
    """
    if isinstance(size, int):
        return size
    return int(size.subs(hints).subs(dict.fromkeys(size.free_symbols, UNTOLD)))


ONE = Fraction(1)

_serial = itertools.count()


class Axis:
    """An axis of iteration, 0 <= axis < size. Axes are equal only to themselves.

    ``pieced`` is one that was put together from pieces, or read in pieces, whose sizes are numbers in the
    program.
    """

    __slots__ = ("name", "pieced", "size")

    def __init__(self, size: Size, name: str = "", pieced: bool = False) -> None:
        self.size = size
        self.pieced = pieced
        self.name = name or f"a{next(_serial)}"

    def __repr__(self) -> str:
        return self.name


Digit = tuple[Size, Axis]
"""(stride, axis): the axis counts in steps of stride."""


@dataclass(frozen=True, slots=True)
class Index:
    """The position ``offset + sum(stride * axis)`` along one dimension; digits most significant first."""

    offset: Size = 0
    digits: tuple[Digit, ...] = ()

    @staticmethod
    def over(axis: Axis) -> Index:
        """The index that runs along a whole dimension."""
        return Index(0, ((1, axis),))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes it runs over."""
        return tuple(axis for _, axis in self.digits)

    @property
    def last(self) -> Size:
        """The largest position the index takes."""
        span: Size = self.offset
        for stride, axis in self.digits:
            span = span + times(stride, axis.size) - stride
        return size_of(span)

    def affine(self, stride: Size = 1, offset: Size = 0) -> Index:
        """``offset + stride * self``."""
        if stride == 1 and offset == 0:
            return self
        digits = tuple((times(stride, s), axis) for s, axis in self.digits)
        return Index(size_of(offset + times(stride, self.offset)), digits)

    def covers(self, size: Size) -> bool:
        """Whether the index takes every position of a dimension exactly once, in order."""
        count: Size = 1
        for stride, axis in reversed(self.digits):
            if stride != count:
                return False
            count = times(count, axis.size)
        return self.offset == 0 and count == size

    def substitute(self, axes: Mapping[Axis, Index]) -> Index:
        """The index with some axes replaced by indices."""
        if not any(axis in axes for _, axis in self.digits):
            return self
        offset, digits = self.offset, list[Digit]()
        for stride, axis in self.digits:
            inner = axes[axis].affine(stride) if axis in axes else Index(0, ((stride, axis),))
            offset = size_of(offset + inner.offset)
            digits.extend(inner.digits)
        return Index(offset, by_stride(digits))

    def __repr__(self) -> str:
        parts = [f"{axis}" if stride == 1 else f"{stride}*{axis}" for stride, axis in self.digits]
        return "+".join(parts + [str(self.offset)] * (self.offset != 0 or not parts))


def by_stride(digits: Sequence[Digit]) -> tuple[Digit, ...]:
    """Digits most significant first; symbolic strides, which have no order, stay where they are."""
    if all(isinstance(stride, int) for stride, _ in digits):
        return tuple(sorted(digits, key=lambda digit: -digit[0]))
    return tuple(digits)


def flatten(indices: Sequence[Index], shape: Sequence[Size]) -> Index:
    """The row-major position of several indices in a shape."""
    offset: Size = 0
    digits: list[Digit] = []
    stride: Size = 1
    for index, size in zip(reversed(indices), reversed(shape), strict=True):
        scaled = index.affine(stride)
        offset = offset + scaled.offset
        digits = [*scaled.digits, *digits]
        stride = times(stride, size)
    return Index(size_of(offset), tuple(digits))


Split = Callable[[Axis, Size], Index]
"""split(axis, low): cut an axis into two digits, the lower of size low, everywhere."""


def divide(index: Index, size: Size, split: Split) -> tuple[Index, Index]:
    """(high, low) with ``index = high * size + low`` and ``0 <= low < size`` for all axes.

    Raises Unreadable where the digits do not fall apart at ``size``.
    """
    if size == 0:
        raise Unreadable("a dimension of size 0")
    high: list[Digit] = []
    low: list[Digit] = []
    for stride, axis in index.digits:
        step = quotient(stride, size)
        if step is not None:
            high.append((step, axis))
        elif at_most(times(stride, axis.size), size):
            low.append((stride, axis))
        else:
            radix = quotient(size, stride)
            if radix is None or quotient(axis.size, radix) is None:
                raise Unreadable(f"{axis} of size {axis.size} is cut at {size}")
            (_, upper), (_, lower) = split(axis, radix).digits
            high.append((1, upper))
            low.append((stride, lower))
    if index.offset == 0:
        carry, rest = 0, 0
    elif isinstance(index.offset, int) and isinstance(size, int):
        carry, rest = divmod(index.offset, size)
    else:
        raise Unreadable("a symbolic offset")
    remainder = Index(rest, tuple(low))
    if not at_most(remainder.last, size_of(size - 1)):
        raise Unreadable(f"{remainder} runs past {size}")
    return Index(carry, tuple(high)), remainder


def unflatten(index: Index, shape: Sequence[Size], split: Split) -> tuple[Index, ...]:
    """The indices in a shape of a row-major position. Raises Unreadable."""
    indices: list[Index] = []
    for size in reversed(shape[1:]):
        index, low = divide(index, size, split)
        indices.append(low)
    return (index, *reversed(indices)) if shape else ()


class Tensor(Protocol):
    """What a leaf must know of its tensor: a value of the tape, or a stack of such values."""

    @property
    def shape(self) -> tuple[Size, ...]:
        """The sizes."""
        ...


@dataclass(frozen=True)
class Leaf:
    """One entry of a tensor."""

    value: Tensor
    index: tuple[Index, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes it runs over."""
        return tuple(axis for index in self.index for axis in index.axes)

    def __repr__(self) -> str:
        return f"{self.value}[{', '.join(map(repr, self.index))}]"


@dataclass(frozen=True)
class Func:
    """An elementwise function of an entry (until it is read) or of a sum of terms; unnamed, that sum."""

    name: str
    argument: Leaf | tuple[Term, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes it runs over."""
        if isinstance(self.argument, Leaf):
            return self.argument.axes
        return tuple(dict.fromkeys(axis for term in self.argument for axis in term.free))

    def __repr__(self) -> str:
        inner = self.argument if isinstance(self.argument, Leaf) else equation(self.argument)
        return f"{self.name}({inner})"


@dataclass(frozen=True)
class Delta:
    """1 where an axis equals an index, else 0: what a piece of a concatenation is multiplied with."""

    axis: Axis
    index: Index

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes it runs over."""
        return (self.axis, *self.index.axes)

    def __repr__(self) -> str:
        return f"[{self.axis}={self.index}]"


Factor = Leaf | Func | Delta


@dataclass(frozen=True)
class Term:
    """``coefficient * sum over bound of the product of factors``."""

    coefficient: Fraction = Fraction(1)
    factors: tuple[Factor, ...] = ()
    bound: tuple[Axis, ...] = ()

    @property
    def free(self) -> tuple[Axis, ...]:
        """The axes of its factors that it does not sum over."""
        inside = dict.fromkeys(axis for factor in self.factors for axis in factor.axes)
        return tuple(axis for axis in inside if axis not in self.bound)

    def __repr__(self) -> str:
        names = [*(str(self.coefficient),) * (self.coefficient != 1), *map(repr, self.factors)]
        body = " * ".join(names) or "1"
        return f"sum_{{{','.join(axis.name for axis in self.bound)}}} {body}" if self.bound else body


def equation(terms: Sequence[Term]) -> str:
    """Terms as text."""
    return " + ".join(map(repr, terms)) or "0"


def leaves(factors: Sequence[Factor]) -> Iterator[Leaf]:
    """Every leaf of some factors, those inside functions too."""
    for factor in factors:
        if isinstance(factor, Leaf):
            yield factor
        elif isinstance(factor, Func):
            if isinstance(factor.argument, Leaf):
                yield factor.argument
            else:
                for term in factor.argument:
                    yield from leaves(term.factors)


def substitute(term: Term, axes: Mapping[Axis, Index]) -> Term:
    """A term with axes replaced by indices; bound axes by the axes of their index."""

    def visit(factor: Factor) -> Factor:
        match factor:
            case Leaf(value, index):
                return Leaf(value, tuple(i.substitute(axes) for i in index))
            case Func(name, Leaf() as leaf):
                inner = visit(leaf)
                assert isinstance(inner, Leaf)
                return Func(name, inner)
            case Func(name, argument):
                return Func(name, tuple(substitute(t, axes) for t in argument))  # type: ignore[union-attr]
        return factor

    factors: list[Factor] = []
    for factor in term.factors:
        if isinstance(factor, Delta) and factor.axis in axes and not factor.index.digits:
            factors.extend(deltas(axes[factor.axis], factor.index.offset))
        elif isinstance(factor, Delta):
            if factor.axis in axes:
                raise Unreadable(f"{factor} where {factor.axis} is cut")
            factors.append(Delta(factor.axis, factor.index.substitute(axes)))
        else:
            factors.append(visit(factor))
    bound = [a for axis in term.bound for a in (axes[axis].axes if axis in axes else (axis,))]
    return replace(term, factors=tuple(factors), bound=tuple(bound))


def renamed(term: Term, name: Callable[[Tensor], Tensor]) -> Term:
    """A term with other tensors in place of those that its factors are entries of."""

    def visit(factor: Factor) -> Factor:
        match factor:
            case Leaf(value, index):
                return Leaf(name(value), index)
            case Func(called, Leaf(value, index)):
                return Func(called, Leaf(name(value), index))
            case Func(called, tuple() as inner):
                return Func(called, tuple(renamed(t, name) for t in inner))
        return factor

    return replace(term, factors=tuple(map(visit, term.factors)))


def resolved(term: Term, splits: Mapping[Axis, Index]) -> Term:
    """A term in which the axes that were split, and those that they were split into, are their digits."""
    while inside := {axis: splits[axis] for f in term.factors for axis in f.axes if axis in splits}:
        term = substitute(term, inside)
    return term


def pinned(term: Term) -> Term:
    """A term in which an axis is, beside its delta, the index that the delta says it is."""
    where = {f.axis: f.index for f in term.factors if isinstance(f, Delta)}
    if not where:
        return term
    others = tuple(f for f in term.factors if not isinstance(f, Delta))
    kept = tuple(Delta(axis, index) for axis, index in where.items() if axis not in term.bound)
    bound = tuple(axis for axis in term.bound if axis not in where)
    moved = substitute(Term(term.coefficient, others), where)
    return replace(moved, factors=(*kept, *moved.factors), bound=bound)


def deltas(index: Index, constant: Size) -> tuple[Delta, ...]:
    """Factors that are 1 where an index equals a constant.

    Raises Unreadable where that is not known, and LookupError where the index never equals the constant.
    """
    if not all(isinstance(number, int) for number in (constant, index.offset, *(s for s, _ in index.digits))):
        raise Unreadable("a piece at a symbolic position")
    found: list[Delta] = []
    remaining = int(constant) - int(index.offset)
    for position, (stride, axis) in enumerate(index.digits):
        below = Index(0, index.digits[position + 1 :])
        if not isinstance(axis.size, int) or not at_most(below.last, int(stride) - 1):
            raise Unreadable(f"{index} is not a number in mixed radix")
        digit, remaining = divmod(remaining, int(stride))
        if not 0 <= digit < axis.size:
            raise LookupError(constant)
        found.append(Delta(axis, Index(digit)))
    if remaining:
        raise LookupError(constant)
    return tuple(found)
