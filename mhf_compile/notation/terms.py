"""Sums of products of tensor entries and of elementwise functions of such sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

from mhf_compile.notation.index import Axis, Index, Unreadable
from mhf_compile.notation.sizes import Size, at_most

ONE = Fraction(1)


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
