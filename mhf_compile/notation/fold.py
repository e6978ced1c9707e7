"""Fold terms that differ only in constants back into an axis.

A python loop over sub-networks is a sum of terms with ``K[h, 0, f, d]``, ``K[h, 1, f, d]``, ...; heads that
are concatenated are terms with ``[h=0]``, ``[h=1]``, ... Both are one term over an axis. Leaves that are
different tensors in each term (a ModuleList) become one stacked leaf.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import sympy

from mhf_compile import notation
from mhf_compile.notation import Axes, Axis, Delta, Factor, Func, Index, Leaf, Size, Term, Unreadable


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


def fold(terms: Sequence[Term]) -> tuple[list[Term], Axes]:
    """The same sum in fewer terms, where terms of one form make up an axis.

    Returns:
        The terms, and what became of the axes: a free axis whose constants were folded is cut into the new
        axes, which are pieced. What else is read in terms of it takes that over by ``Axes.adopt``.
    """
    axes = Axes()
    terms = [_ordered(term) for term in terms]
    while True:
        folded = [axes.resolve(term) for term in _folded(_joined(terms, axes), axes)]
        if len(folded) in (1, len(terms)):
            return folded, axes
        terms = folded


def _folded(terms: Sequence[Term], axes: Axes) -> list[Term]:
    """The same sum, with each progression of terms as one."""
    groups: dict[Term, list[_Member]] = {}
    for term in terms:
        form, constants = _form(term)
        groups.setdefault(form, []).append((term, constants))
    folded: list[Term] = []
    for group in groups.values():
        try:
            folded.append(_covered(_fold(group, axes), axes))
        except _Unfoldable:
            folded.extend(term for term, _ in group)
    return folded


def _ordered(term: Term) -> Term:
    """A term with its factors in an order that does not hang on how they were written."""
    bound = set(term.bound)
    free = {axis for factor in term.factors for axis in factor.axes if axis not in bound}

    def place(index: Index) -> str:
        return "+".join(f"{stride}*{axis if axis in free else axis.size}" for stride, axis in index.digits)

    def words(factor: Factor) -> tuple[str, ...]:
        match factor:
            case Leaf(value, indices):
                return "2", *map(str, value.shape), *map(place, indices)
            case Func(name):
                return "0" if name and factor.sums else "1", name
            case Delta(axis, index):
                return "3", axis.name, place(index)

    def rank(factor: Factor) -> tuple[str, ...]:
        return tuple([word for inner in notation.walk((factor,)) for word in words(inner)])

    return replace(term, factors=tuple(sorted(term.factors, key=rank)))


# -- pieces next to each other ------------------------------------------------------------------------------


def _joined(terms: list[Term], axes: Axes) -> list[Term]:
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
            term = group[position]
            others = (other for other in group if other is not term)
            joint = next(((o, j) for o in others if (j := _adjacent(term, o, axes)) is not None), None)
            if joint is None:
                position += 1
            else:
                other, group[position] = joint
                group.remove(other)
                position = 0
        result += group
    return result


def _adjacent(first: Term, second: Term, axes: Axes) -> Term | None:
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
        whole = Axis(notation.size_of(x.size + size))
        if _is_moved(first, second, pairs, x, x.size):
            axes.pieced.add(whole)
            return notation.substitute(first, {x: Index.over(whole)})
        if x not in pairs and _is_moved(first, second, pairs, x, -1):
            axes.pieced.add(whole)
            return notation.substitute(first, {x: Index(-1, ((1, whole),))})
    return None


def _is_moved(first: Term, second: Term, pairs: dict[Axis, Axis], x: Axis, by: Size) -> bool:
    """Whether the second term is the first, moved along x; ``pairs`` are its axes for those of the first."""
    names = {axis: Index.over(other) for axis, other in pairs.items()}
    names[x] = Index(by, names[x].digits if x in names else ())
    with contextlib.suppress(Unreadable, LookupError):
        return notation.numbered(notation.substitute(first, names)) == notation.numbered(second)
    return False


# -- terms that make up an axis -----------------------------------------------------------------------------


_Member = tuple[Term, list[object]]
"""A term of a group of one form, and its constants."""


@dataclass(frozen=True)
class _Kind:
    """A tensor that may be any of its kind."""

    type: type
    shape: tuple[Size, ...]
    dtype: object
    device: object


def _form(term: Term) -> tuple[Term, list[object]]:
    """What terms of one progression share, and the constants and tensors in which they may differ."""
    constants: list[object] = []

    def index(index: Index) -> Index:
        constants.append(index.offset)
        return Index(0, index.digits)

    def leaf(leaf: Leaf) -> Leaf:
        value = leaf.value
        constants.append(value)
        dtype, device = getattr(value, "dtype", None), getattr(value, "device", None)
        kind = _Kind(type(value), tuple(value.shape), dtype, device)
        return Leaf(kind, tuple([index(i) for i in leaf.index]))

    def delta(delta: Delta) -> Sequence[Factor]:
        return (Delta(delta.axis, index(delta.index)),)

    return notation.mapped(notation.numbered(term), leaf, delta), constants


def _fold(group: list[_Member], axes: Axes) -> Term:
    """One term for a progression of terms in one or several axes."""
    if len(group) == 1:
        return group[0][0]
    columns = list(zip(*(constants for _, constants in group), strict=True))
    varying = [column for column in columns if len(set(column)) > 1]
    if not varying:
        return replace(group[0][0], coefficient=group[0][0].coefficient * len(group))
    outermost = min(varying, key=lambda column: len(set(column)))
    parts: dict[object, list[_Member]] = {}
    for member, constant in zip(group, outermost, strict=True):
        parts.setdefault(constant, []).append(member)
    if len(parts) == len(group):
        return _grid(group, axes)
    return _fold_again([_fold(part, axes) for part in parts.values()], axes)


def _fold_again(terms: list[Term], axes: Axes) -> Term:
    """One term for a progression of terms that are progressions."""
    forms = [_form(term) for term in terms]
    if any(form != forms[0][0] for form, _ in forms):
        raise _Unfoldable
    return _fold([(term, constants) for term, (_, constants) in zip(terms, forms, strict=True)], axes)


def _grid(group: list[_Member], axes: Axes) -> Term:
    """One term for terms that all differ: over an axis, or several that tensors have in different orders."""
    columns = list(zip(*(constants for _, constants in group), strict=True))
    numbers = [c for c in columns if all(isinstance(n, int) for n in c) and len(set(c)) == len(c)]
    if numbers:
        group = [group[row] for row in sorted(range(len(group)), key=lambda row: numbers[0][row])]
    for size in range(len(group), 1, -1):
        if len(group) % size == 0:
            with contextlib.suppress(_Unfoldable):
                rows = [group[first : first + size] for first in range(0, len(group), size)]
                return _fold_again([_progression(row, axes) for row in rows], axes)
    raise _Unfoldable


def _progression(group: list[_Member], axes: Axes) -> Term:
    """One term over a new axis for terms whose constants are each affine in the position."""
    columns = list(zip(*(constants for _, constants in group), strict=True))
    steps = [_step(column) for column in columns]
    axis = Axis(len(group))
    axes.pieced.add(axis)
    term, _ = group[0]
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

    def leaf(leaf: Leaf) -> Leaf:
        column, step = next(columns)
        inner = tuple([index(i) for i in leaf.index])
        if step == 0:
            return Leaf(leaf.value, inner)
        return Leaf(Stacked(tuple(column)), (Index.over(axis), *inner))

    def delta(delta: Delta) -> Sequence[Factor]:
        return (Delta(delta.axis, index(delta.index)),)

    return notation.mapped(term, leaf, delta)


def _covered(term: Term, axes: Axes) -> Term:
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
        whole = axes.cuts.setdefault(delta.axis, delta.index)
        if [(stride, axis.size) for stride, axis in whole.digits] != [
            (s, a.size) for s, a in delta.index.digits
        ]:
            return term
        names = {
            own: Index.over(shared)
            for own, shared in zip(digits, whole.axes, strict=True)
            if own is not shared
        }
        return _covered(notation.substitute(rest, {**names, delta.axis: whole}), axes)
    return term
