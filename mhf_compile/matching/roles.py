"""The axes of an assignment, by the operands they occur in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from mhf_compile import notation
from mhf_compile.matching.reasons import (
    NoMatch,
    Progress,
    Stage,
    differing,
    misplaced,
    scaled_apart,
    uncontracted,
    value_of,
)
from mhf_compile.matching.unification import Assignment, Operand, Place
from mhf_compile.notation import Axis, Index, Leaf, Term
from mhf_compile.patterns import Pattern
from mhf_compile.patterns.pattern import RESULT, Purpose
from mhf_compile.reading.numbering import ValueNumbering
from mhf_compile.tape.values import Value

SCORE = "score"
"""Beside the operands that an axis occurs in: that it is summed inside a score."""

Dims = tuple[tuple[Axis, ...], ...]


class AxisRoles:
    """Tells which axis has which role in a pattern."""

    def __init__(self, pattern: Pattern, numbering: ValueNumbering) -> None:
        self.pattern = pattern
        self.numbering = numbering
        self.occurs = {
            letter: pattern.occurrences(letter) | ({SCORE} if role.is_contracted else set())
            for letter, role in pattern.roles.items()
        }
        scores = (where for where in self.occurs.values() if SCORE in where)
        self.scored = set(pattern.of(Purpose.WEIGHT)).intersection(*scores)
        """The weights that an input is contracted with."""

    def assign(
        self, places: Assignment, addends: Mapping[str, Fraction], index: tuple[Index, ...]
    ) -> tuple[dict[str, Operand], Dims, dict[str, tuple[Axis, ...]]]:
        """The operands of an assignment, the dimensions of its result, and the axes of each role.

        Args:
            places: what stands in each place of an operand.
            addends: what numbers are added to operands.
            index: the index of the result.

        Raises:
            NoMatch: an axis has no role.
        """
        operands = {name: self._operand(placed) for name, placed in self._aligned(places).items()}
        for name, number in addends.items():
            operand = operands.get(name, Operand((), ()))
            operands[name] = replace(operand, terms=(*operand.terms, Term(number)))
        roles: dict[str, list[Axis]] = {role: [] for role in self.pattern.roles}
        inner = {axis for placed in places.values() for place in placed for axis in place.inner}
        without: list[tuple[Axis, set[str]]] = []
        for axis, present in _occurrences(operands, index).items():
            role = self._role(present | ({SCORE} if axis in inner else set()))
            if role is None:
                without.append((axis, present))
            else:
                roles[role].append(axis)
        for axis, present in without[:1]:
            raise misplaced(self.pattern, axis, present, sum(map(len, roles.values())))
        if not all(roles[letter] for letter, role in self.pattern.roles.items() if role.is_required):
            (source, *_) = self.pattern.of(Purpose.INPUT)
            factor = operands.get(self.pattern.product)
            raise uncontracted(factor, operands[source], index, len(self.scored) > 1)
        first = {name: operand.entries[0] for name, operand in operands.items() if operand.entries}
        roles = self.pattern.distribute(roles, first)

        def dims(layout: Sequence[str]) -> Dims:
            return tuple(tuple(axis for role in dim.split() for axis in roles[role]) for dim in layout)

        laid_out = {
            name: replace(operand, dims=dims(self.pattern.operands[name].dims))
            for name, operand in operands.items()
        }
        return laid_out, dims(self.pattern.result), {role: tuple(axes) for role, axes in roles.items()}

    def _operand(self, places: Sequence[Place]) -> Operand:
        """What stands in the first place of an operand; in each other place there must be the same."""
        first, *others = places
        leaves, twins = _leaves(first.terms), list[Leaf]()
        for place in others:
            own = _leaves(place.terms)
            if len(own) != len(leaves):
                raise scaled_apart(leaves, own)
            for one, twin in zip(leaves, own, strict=True):
                if not (one.index == twin.index and self._same_tensor(one, twin)):
                    raise differing(one, twin)
            if [term.coefficient for term in first.terms] != [term.coefficient for term in place.terms]:
                raise differing(leaves[0], own[0])
            twins += own
        for leaf in leaves:
            if len(set(leaf.axes)) != len(leaf.axes):
                raise NoMatch(f"a diagonal of {leaf.value} is read", value_of(leaf), Progress(Stage.OPERANDS))
        return Operand(first.terms, (), tuple(twins))

    def _aligned(self, places: Assignment) -> Assignment:
        """What stands in each place, with the axes that its score sums over those of the first place."""
        names: dict[Axis, Index] = {}
        for first, *others in places.values():
            for other in others:
                for a, b in zip(_leaves(first.terms), _leaves(other.terms), strict=False):
                    if self._same_tensor(a, b) and len(a.index) == len(b.index):
                        names |= _aligned(a, b, first.inner, other.inner)
        return {
            name: [p._replace(terms=tuple(notation.substitute(t, names) for t in p.terms)) for p in placed]
            for name, placed in places.items()
        }

    def _same_tensor(self, a: Leaf, b: Leaf) -> bool:
        if isinstance(a.value, Value) and isinstance(b.value, Value):
            return self.numbering.same(a.value, b.value)
        return a.value == b.value

    def _role(self, present: set[str]) -> str | None:
        """The axis of the pattern that occurs in the same operands, if one does.

        An optional operand may lack any axis. An axis of the heads may be missing elsewhere too, where an
        operand is broadcast over it, or where the heads' results are added up.
        """
        optional = self.pattern.optional
        fitting = [role for role, where in self.occurs.items() if present <= where]
        roles = [r for r in fitting if self.occurs[r] - optional == present - optional]
        if not roles and self._makes_heads(present):
            roles = [r for r in fitting if r in self.pattern.broadcast]
        return min(roles, key=lambda role: len(self.occurs[role] - present), default=None)

    def _makes_heads(self, present: set[str]) -> bool:
        """Whether there is a result for each entry of an axis that just some operands have.

        That is so where the axis is in the scores: in an input, or in a weight that is contracted with one.
        """
        inputs, weights = self.pattern.of(Purpose.INPUT), set(self.pattern.of(Purpose.WEIGHT))
        if RESULT not in present:
            return present.issuperset(inputs) and not weights.isdisjoint(present)
        return present.issuperset(inputs) or not self.scored.isdisjoint(present)


def _aligned(a: Leaf, b: Leaf, inner: Sequence[Axis], other_inner: Sequence[Axis]) -> dict[Axis, Index]:
    """The axes of an entry for those that stand in their place in another one; all are summed."""
    return {
        other: Index.over(axis)
        for i, j in zip(a.index, b.index, strict=True)
        for (stride, axis), (other_stride, other) in zip(i.digits, j.digits, strict=False)
        if other in other_inner and axis in inner and stride == other_stride and axis.size == other.size
    }


def _leaves(terms: Sequence[Term]) -> list[Leaf]:
    return [leaf for term in terms for leaf in notation.leaves(term.factors)]


def _occurrences(operands: Mapping[str, Operand], index: tuple[Index, ...]) -> dict[Axis, set[str]]:
    """The operands that each axis occurs in; axes in the order of the result, then of the operands."""
    present: dict[Axis, set[str]] = {axis: {RESULT} for i in index for axis in i.axes}
    for name, operand in operands.items():
        for axis in operand.axes:
            present.setdefault(axis, set()).add(name)
    return present
