"""Fold terms that differ only in constants back into an axis.

A python loop over sub-networks is a sum of terms with ``K[h, 0, f, d]``, ``K[h, 1, f, d]``, ...; heads that
are concatenated are terms with ``[h=0]``, ``[h=1]``, ... Both are one term over an axis. Leaves that are
different tensors in each term (a ModuleList) become one stacked leaf.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import sympy

from mhf_compile import notation
from mhf_compile.notation import Axis, Delta, Factor, Func, Index, Leaf, Size, Tensor, Term


@dataclass(frozen=True)
class Stacked:
    """Tensors of one shape stacked along a new first dimension."""

    parts: tuple[Any, ...]

    @property
    def shape(self) -> tuple[Size, ...]:
        """The sizes, the new dimension first."""
        return (len(self.parts), *self.parts[0].shape)

    def __repr__(self) -> str:
        return f"stack({', '.join(map(repr, self.parts))})"


def parts(tensor: Any) -> Iterator[Any]:
    """The tensors that a tensor is stacked of; itself if it is no stack."""
    if isinstance(tensor, Stacked):
        for part in tensor.parts:
            yield from parts(part)
    else:
        yield tensor


class _Unfoldable(Exception):
    """The terms are no progression."""


def fold(terms: Sequence[Term], splits: dict[Axis, Index]) -> list[Term]:
    """The same sum in fewer terms, where terms of one form make up an axis.

    A free axis whose constants were folded becomes the index of the new axes: it is added to ``splits``.
    """
    terms = [_ordered(term) for term in terms]
    while True:
        folded = [notation.resolved(term, splits) for term in _folded(_joined(terms), splits)]
        if len(folded) in (1, len(terms)):
            return folded
        terms = folded


def _folded(terms: Sequence[Term], splits: dict[Axis, Index]) -> list[Term]:
    """The same sum, with each progression of terms as one."""
    groups: dict[object, list[tuple[Term, list[object]]]] = {}
    for term in terms:
        form, constants = _form(term)
        groups.setdefault(form, []).append((term, constants))
    folded: list[Term] = []
    for group in groups.values():
        try:
            folded.append(_covered(_fold(group), splits))
        except _Unfoldable:
            folded.extend(term for term, _ in group)
    return folded


def _ordered(term: Term) -> Term:
    """A term with its factors in an order that does not hang on how they were written."""

    def rank(factor: Factor) -> tuple[str, ...]:
        match factor:
            case Leaf(value, indices):
                return "2", *map(str, value.shape), *map(place, indices)
            case Func(name, tuple() as inner):
                return ("0" if name else "1", name, *(r for t in inner for f in t.factors for r in rank(f)))
            case Func(name, Leaf() as leaf):
                return "1", name, *rank(leaf)
            case Delta(axis, index):
                return "3", axis.name, place(index)
        raise AssertionError(factor)

    def place(index: Index) -> str:
        return "+".join(f"{stride}*{names.get(axis, axis.size)}" for stride, axis in index.digits)

    free = dict.fromkeys(axis for factor in term.factors for axis in factor.axes if axis not in term.bound)
    names = {axis: axis.name for axis in free}
    return replace(term, factors=tuple(sorted(term.factors, key=rank)))


# -- pieces next to each other ------------------------------------------------------------------------------


def _joined(terms: list[Term]) -> list[Term]:
    """The same sum, with terms that are equal but for adjacent ranges of an axis, of any sizes, as one."""
    groups: dict[object, list[Term]] = {}
    for term in terms:
        tensors = tuple(leaf.value for leaf in notation.leaves(term.factors))
        groups.setdefault((term.coefficient, tensors), []).append(term)
    result: list[Term] = []
    for group in groups.values():
        uneven = len({tuple(axis.size for axis in term.bound) for term in group}) > 1
        position = 0
        while uneven and position < len(group):
            others = (other for other in group if other is not group[position])
            found = next(((o, j) for o in others if (j := _adjacent(group[position], o)) is not None), None)
            if found is None:
                position += 1
            else:
                group[position] = found[1]
                group.remove(found[0])
                position = 0
        result += group
    return result


def _adjacent(first: Term, second: Term) -> Term | None:
    """One term for two of which the second begins where the first ends, along an axis of both.

    A range of one entry has no axis; it may also be the entry before the first.
    """
    for x in first.bound:
        rest = [axis for axis in first.bound if axis is not x]
        if len(first.bound) == len(second.bound):
            pairs = dict(zip(first.bound, second.bound, strict=True))
            size = pairs[x].size
        elif len(rest) == len(second.bound):
            pairs, size = dict(zip(rest, second.bound, strict=True)), 1
        else:
            continue
        if any(axis.size != pairs[axis].size for axis in rest):
            continue
        whole = Axis(notation.size_of(x.size + size), pieced=True)
        if _is_moved(first, second, dict(pairs), x, x.size):
            return notation.substitute(first, {x: Index.over(whole)})
        if x not in pairs and _is_moved(first, second, dict(pairs), x, -1):
            return notation.substitute(first, {x: Index(-1, ((1, whole),))})
    return None


def _is_moved(first: Term, second: Term, names: dict[Axis, Axis], x: Axis, by: Size) -> bool:
    """Whether the second term is the first, moved along x; ``names`` are its axes for those of the first."""

    def term(a: Term, b: Term) -> bool:
        if (a.coefficient, len(a.factors), len(a.bound)) != (b.coefficient, len(b.factors), len(b.bound)):
            return False
        if any(c.size != d.size for c, d in zip(a.bound, b.bound, strict=True)):
            return False
        names.update(zip(a.bound, b.bound, strict=True))
        return all(map(factor, a.factors, b.factors))

    def factor(a: Factor, b: Factor) -> bool:
        match a, b:
            case Leaf(), Leaf():
                same = a.value == b.value and len(a.index) == len(b.index)
                return same and all(map(index, a.index, b.index))
            case Func(name, tuple() as inner), Func(other, tuple() as another):
                return name == other and len(inner) == len(another) and all(map(term, inner, another))
            case Func(name, Leaf() as leaf), Func(other, Leaf() as another):
                return name == other and factor(leaf, another)
            case Delta(), Delta():
                return names.get(a.axis, a.axis) is b.axis and index(a.index, b.index)
        return False

    def index(a: Index, b: Index) -> bool:
        step = sum(notation.times(stride, by) for stride, axis in a.digits if axis is x)
        kept = (digit for digit in a.digits if digit[1] is not x or x in names)
        digits = tuple((stride, names.get(axis, axis)) for stride, axis in kept)
        return digits == b.digits and b.offset == notation.size_of(a.offset + step)

    return len(first.factors) == len(second.factors) and all(map(factor, first.factors, second.factors))


# -- terms that make up an axis -----------------------------------------------------------------------------


def _form(term: Term) -> tuple[object, list[object]]:
    """What terms of one progression share, and the constants and tensors in which they may differ."""
    constants: list[object] = []
    names: dict[Axis, object] = {}

    def axis(axis: Axis) -> object:
        return names.get(axis, axis)

    def bind(axes: Sequence[Axis]) -> None:
        for bound in axes:
            names[bound] = (len(names), bound.size)

    def index(index: Index) -> object:
        constants.append(index.offset)
        return tuple((stride, axis(a)) for stride, a in index.digits)

    def tensor(value: Tensor) -> object:
        constants.append(value)
        return type(value), tuple(value.shape), getattr(value, "dtype", None), getattr(value, "device", None)

    def factor(factor: Factor) -> object:
        match factor:
            case Leaf(value, indices):
                return tensor(value), tuple(map(index, indices))
            case Func(name, tuple() as inner):
                return name, tuple(map(form, inner))
            case Func(name, Leaf(value, indices)):
                return name, tensor(value), tuple(map(index, indices))
            case Delta(where, at):
                return "delta", axis(where), index(at)
        raise AssertionError(factor)

    def form(term: Term) -> object:
        bind(term.bound)
        return term.coefficient, tuple(axis(a) for a in term.bound), tuple(map(factor, term.factors))

    return form(term), constants


def _fold(group: list[tuple[Term, list[object]]]) -> Term:
    """One term for a progression of terms in one or several axes."""
    if len(group) == 1:
        return group[0][0]
    columns = list(zip(*(constants for _, constants in group), strict=True))
    varying = [column for column in columns if len(set(column)) > 1]
    if not varying:
        return replace(group[0][0], coefficient=group[0][0].coefficient * len(group))
    outermost = min(varying, key=lambda column: len(set(column)))
    alike: dict[object, list[tuple[Term, list[object]]]] = {}
    for member, constant in zip(group, outermost, strict=True):
        alike.setdefault(constant, []).append(member)
    if len(alike) == len(group):
        return _progression(group)
    inner = [_fold(part) for part in alike.values()]
    forms = [_form(term) for term in inner]
    if any(form != forms[0][0] for form, _ in forms):
        raise _Unfoldable
    return _fold([(term, constants) for term, (_, constants) in zip(inner, forms, strict=True)])


def _progression(group: list[tuple[Term, list[object]]]) -> Term:
    """One term over a new axis for terms whose constants are each affine in the position."""
    columns = list(zip(*(constants for _, constants in group), strict=True))
    numbers = [c for c in columns if all(isinstance(n, int) for n in c) and len(set(c)) == len(c)]
    if numbers:
        order = sorted(range(len(group)), key=lambda row: numbers[0][row])
        group = [group[row] for row in order]
        columns = [tuple(column[row] for row in order) for column in columns]
    axis = Axis(len(group), pieced=True)
    term, _ = group[0]
    steps = [_step(column) for column in columns]
    rebuilt = _rebuild(term, iter(zip(columns, steps, strict=True)), axis)
    return replace(rebuilt, bound=(*rebuilt.bound, axis))


def _step(column: Sequence[object]) -> int | None:
    """The positive difference of consecutive numbers, 0 of equal entries, None of different tensors."""
    if len(set(column)) == 1:
        return 0
    if not all(isinstance(entry, int) for entry in column):
        if any(isinstance(entry, (int, sympy.Expr)) for entry in column):
            raise _Unfoldable
        return None
    differences = {b - a for a, b in pairwise(column)}  # type: ignore[operator]
    if len(differences) != 1 or min(differences) < 0:
        raise _Unfoldable
    return int(differences.pop())


def _rebuild(term: Term, columns: Iterator[tuple[Sequence[Any], int | None]], axis: Axis) -> Term:
    """The first term of a progression with its constants replaced; visits them in the order of ``_form``."""

    def index(index: Index) -> Index:
        _, step = next(columns)
        return replace(index, digits=notation.by_stride((*index.digits, (step, axis)))) if step else index

    def entry(leaf: Leaf) -> Leaf:
        column, step = next(columns)
        if step is None:
            return Leaf(Stacked(tuple(column)), (Index.over(axis), *map(index, leaf.index)))
        return Leaf(leaf.value, tuple(map(index, leaf.index)))

    def factor(factor: Factor) -> Factor:
        match factor:
            case Leaf():
                return entry(factor)
            case Func(name, tuple() as inner):
                return Func(name, tuple(_rebuild(t, columns, axis) for t in inner))
            case Func(name, Leaf() as leaf):
                return Func(name, entry(leaf))
            case Delta(where, at):
                return Delta(where, index(at))
        raise AssertionError(factor)

    return replace(term, factors=tuple(map(factor, term.factors)))


def _covered(term: Term, splits: dict[Axis, Index]) -> Term:
    """A term without the deltas that run over their whole axis: there the axis is the index, everywhere."""
    for delta in term.factors:
        if not isinstance(delta, Delta) or not delta.index.digits or not delta.index.covers(delta.axis.size):
            continue
        digits = delta.index.axes
        if not set(digits) <= set(term.bound):  # another delta has made them this axis' own: a diagonal
            continue
        rest = replace(
            term,
            factors=tuple(f for f in term.factors if f is not delta),
            bound=tuple(axis for axis in term.bound if axis not in digits),
        )
        whole = splits.setdefault(delta.axis, delta.index)
        if [(stride, axis.size) for stride, axis in whole.digits] != [
            (s, a.size) for s, a in delta.index.digits
        ]:
            return term
        names = {
            own: Index.over(shared)
            for own, shared in zip(digits, whole.axes, strict=True)
            if own is not shared
        }
        return _covered(notation.substitute(rest, {**names, delta.axis: whole}), splits)
    return term
