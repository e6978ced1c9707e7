"""Sums of products of tensor entries and of elementwise functions of such sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Protocol

from mhf_compile.notation.index import Axis, Index, Unreadable
from mhf_compile.notation.sizes import Size, at_most

ONE = Fraction(1)
ZERO = Fraction(0)


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


@dataclass(frozen=True, init=False)
class Func:
    """An elementwise function of entries (until they are read) or of sums of terms; unnamed, one sum."""

    name: str
    arguments: tuple[Leaf | tuple[Term, ...], ...]

    def __init__(self, name: str, *arguments: Leaf | tuple[Term, ...]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "arguments", arguments)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes it runs over."""
        free = (axis for term in self.terms for axis in term.free)
        return tuple(dict.fromkeys((*(axis for leaf in self.entries for axis in leaf.axes), *free)))

    @property
    def entries(self) -> tuple[Leaf, ...]:
        """The entries that it is a function of."""
        return tuple(argument for argument in self.arguments if isinstance(argument, Leaf))

    @property
    def sums(self) -> tuple[tuple[Term, ...], ...]:
        """The sums that it is a function of."""
        return tuple(argument for argument in self.arguments if not isinstance(argument, Leaf))

    @property
    def terms(self) -> tuple[Term, ...]:
        """What is added up in the sums that it is a function of."""
        return tuple(term for terms in self.sums for term in terms)

    def __repr__(self) -> str:
        inner = (str(a) if isinstance(a, Leaf) else equation(a) for a in self.arguments)
        return f"{self.name}({', '.join(inner)})"


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


# -- visiting and rebuilding ---------------------------------------------------------------------------------


def walk(factors: Sequence[Factor]) -> Iterator[Factor]:
    """Every factor, each function before those inside it."""
    for factor in factors:
        yield factor
        if isinstance(factor, Func):
            yield from factor.entries
            for term in factor.terms:
                yield from walk(term.factors)


def mapped(
    term: Term,
    leaf: Callable[[Leaf], Leaf] = lambda leaf: leaf,
    delta: Callable[[Delta], Sequence[Factor]] = lambda delta: (delta,),
    bound: Callable[[Axis], Sequence[Axis]] = lambda axis: (axis,),
) -> Term:
    """A term with its leaves, deltas and bound axes replaced, in the order of ``walk``; functions stay."""
    factors: list[Factor] = []
    for factor in term.factors:
        if isinstance(factor, Leaf):
            factors.append(leaf(factor))
        elif isinstance(factor, Delta):
            factors += delta(factor)
        else:
            inner = (
                leaf(a) if isinstance(a, Leaf) else tuple([mapped(t, leaf, delta, bound) for t in a])
                for a in factor.arguments
            )
            factors.append(Func(factor.name, *inner))
    return Term(term.coefficient, tuple(factors), tuple([own for axis in term.bound for own in bound(axis)]))


def leaves(factors: Sequence[Factor]) -> Iterator[Leaf]:
    """Every leaf of some factors, those inside functions too."""
    return (factor for factor in walk(factors) if isinstance(factor, Leaf))


def reindexed(term: Term, change: Callable[[Index], Index]) -> Term:
    """A term with every index changed; bound axes become the axes of theirs. Raises Unreadable."""

    def leaf(leaf: Leaf) -> Leaf:
        return Leaf(leaf.value, tuple([change(index) for index in leaf.index]))

    def delta(delta: Delta) -> Sequence[Factor]:
        match change(Index.over(delta.axis)), change(delta.index):
            case Index(0, ((1, axis),)), index:
                return (Delta(axis, index),)
            case where, Index(constant, ()):
                return deltas(where, constant)
        raise Unreadable(f"{delta} where {delta.axis} is cut")

    return mapped(term, leaf, delta, lambda axis: change(Index.over(axis)).axes)


def substitute(term: Term, axes: Mapping[Axis, Index]) -> Term:
    """A term with axes replaced by indices. Raises Unreadable."""
    return reindexed(term, lambda index: index.substitute(axes))


def renamed(term: Term, name: Callable[[Tensor], Tensor]) -> Term:
    """A term with other tensors in place of those that its factors are entries of."""
    return mapped(term, lambda leaf: Leaf(name(leaf.value), leaf.index))


def numbered(term: Term) -> Term:
    """A term whose bound axes are known by their place and size: equal for terms that differ in axes only."""
    inside = (f for f in walk(term.factors) if isinstance(f, Func))
    bound = (axis for t in (term, *(t for f in inside for t in f.terms)) for axis in t.bound)
    return substitute(term, {axis: Index.over(_number(n, axis.size)) for n, axis in enumerate(bound)})


@cache
def _number(number: int, size: Size) -> Axis:
    return Axis(size, f"#{number}")


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
    digits: list[Delta] = []
    remaining = int(constant) - int(index.offset)
    for position, (stride, axis) in enumerate(index.digits):
        below = Index(0, index.digits[position + 1 :])
        if not isinstance(axis.size, int) or not at_most(below.last, int(stride) - 1):
            raise Unreadable(f"{index} is not a number in mixed radix")
        digit, remaining = divmod(remaining, int(stride))
        if not 0 <= digit < axis.size:
            raise LookupError(constant)
        digits.append(Delta(axis, Index(digit)))
    if remaining:
        raise LookupError(constant)
    return tuple(digits)
