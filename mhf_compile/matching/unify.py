"""Unify a term of a program with a pattern's: which leaf is which operand, which axis has which role.

Leaves are tried in every order (there are few); an assignment stands if every axis occurs in just the
operands that an axis of the pattern occurs in. Layout, order and names play no part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

from mhf_compile import notation
from mhf_compile.matching.reasons import (
    SIZES,
    NoMatch,
    Progress,
    Stage,
    differing,
    misplaced,
    other_factors,
    value_of,
)
from mhf_compile.notation import Axis, Func, Index, Leaf, Size, Term
from mhf_compile.patterns import Pattern
from mhf_compile.patterns.pattern import RESULT, Purpose
from mhf_compile.reading.numbering import ValueNumbering
from mhf_compile.tape.values import Value

SCORE = "score"
"""Beside the operands that an axis occurs in: that it is summed inside a score."""

Names = Mapping[Value, str]


class _Placed(NamedTuple):
    """A leaf in the place of an operand: its coefficient, the axes summed inside its score, if it divides."""

    leaf: Leaf
    coefficient: Fraction = notation.ONE
    bound: tuple[Axis, ...] = ()
    divides: bool = False


Assignment = dict[str, list[_Placed]]
"""For each operand of a pattern every leaf in its place."""


@dataclass(frozen=True)
class Operand:
    """An operand of the op: a product of leaves (one, but for a pattern's ``product``) times a number.

    A pattern's ``product`` is divided by ``divisors``. To a bias ``addend`` is added; without a leaf that is
    all it is. ``dims`` gives for each dimension of the operand the axes it runs over, most significant first;
    an axis that a leaf does not have is broadcast. ``twins`` are other values, computed alike, that the
    program used in its place.
    """

    leaves: tuple[Leaf, ...]
    dims: tuple[tuple[Axis, ...], ...]
    coefficient: Fraction
    twins: tuple[Leaf, ...] = ()
    divisors: tuple[Leaf, ...] = ()
    addend: Fraction = notation.ZERO

    @property
    def entries(self) -> tuple[Leaf, ...]:
        """Every leaf that it is made of."""
        return (*self.leaves, *self.divisors)


@dataclass(frozen=True)
class Unification:
    """How a term is a pattern: its operands, the axes of the result, the sizes of the roles."""

    operands: Mapping[str, Operand]
    result: tuple[tuple[Axis, ...], ...]
    roles: Mapping[str, tuple[Axis, ...]]
    activation: str
    scalars: Mapping[str, Fraction]

    def size(self, *roles: str) -> Size:
        """The size of some roles: of all their axes together."""
        return notation.product([axis.size for role in roles for axis in self.roles[role]])


@dataclass
class _State:
    """A partial unification."""

    leaves: Assignment = field(default_factory=dict)
    scalars: dict[str, Fraction] = field(default_factory=dict)
    activation: str = ""
    addends: dict[str, Fraction] = field(default_factory=dict)

    def copy(self) -> _State:
        leaves = {name: list(placed) for name, placed in self.leaves.items()}
        return _State(leaves, dict(self.scalars), self.activation, dict(self.addends))

    def with_leaf(self, name: str, placed: _Placed) -> _State:
        state = self.copy()
        state.leaves.setdefault(name, []).append(placed)
        return state


class _Unifier:
    def __init__(self, pattern: Pattern, names: Names) -> None:
        self.pattern = pattern
        self.names = names
        self.scalars = {Fraction(value): name for name, value in pattern.scalars.items()}

    def name(self, leaf: Leaf) -> str:
        assert isinstance(leaf.value, Value)
        return self.names[leaf.value]

    def sums(self, wanted: Sequence[Term], given: Sequence[Term], state: _State) -> Iterator[_State]:
        """Each given term is one of the wanted ones; wanted terms that are left over must be optional.

        A number is added to the bias.
        """
        numbers = [term for term in given if not term.factors]
        if numbers:
            biases = (name for term in wanted if (name := self._bias(term)) is not None)
            if (bias := next(biases, None)) is None:
                return
            state = state.copy()
            state.addends[bias] = sum((term.coefficient for term in numbers), notation.ZERO)
            given = [term for term in given if term.factors]
        if not given:
            missing = (leaf for term in wanted for leaf in notation.leaves(term.factors))
            if all(self.name(leaf) in self.pattern.optional for leaf in missing):
                yield state
            return
        for position, term in enumerate(wanted):
            for after in self.terms(term, given[0], state, given[0].bound):
                yield from self.sums([*wanted[:position], *wanted[position + 1 :]], given[1:], after)

    def _bias(self, wanted: Term) -> str | None:
        """The bias that a wanted term is; None where it is something else."""
        match wanted:
            case Term(_, (Leaf() as leaf,), ()) if self.name(leaf) in self.pattern.of(Purpose.BIAS):
                return self.name(leaf)
        return None

    def terms(
        self, wanted: Term, given: Term, state: _State, inner: tuple[Axis, ...] = ()
    ) -> Iterator[_State]:
        """Functions correspond to functions, leaves to leaves; the rest goes to the product operand."""
        divisors = [
            _Placed(f.argument, divides=True)
            for f in given.factors
            if isinstance(f, Func) and f.name == "reciprocal" and isinstance(f.argument, Leaf)
        ]
        functions = [f for f in given.factors if isinstance(f, Func) and isinstance(f.argument, tuple)]
        leaves = [f for f in given.factors if isinstance(f, Leaf)]
        slots = [f for f in wanted.factors if isinstance(f, Leaf)]
        product = next((s for s in slots if self.name(s) == self.pattern.product), None)
        slots = [s for s in slots if s is not product]
        goals = [f for f in wanted.factors if isinstance(f, Func)]
        if (
            len(functions) != len(goals)
            or len(functions) + len(leaves) + len(divisors) != len(given.factors)
            or bool(wanted.bound) != bool(given.bound)
        ):
            return
        if len(leaves) < len(slots) or (product is None and len(leaves) + len(divisors) > len(slots)):
            return
        state = state.copy()
        rest = given.coefficient
        if wanted.coefficient in self.scalars:
            state.scalars[self.scalars[wanted.coefficient]] = rest
            rest = notation.ONE
        for order in itertools.permutations(functions):
            for chosen in itertools.permutations(leaves, len(slots)):
                after: Iterator[_State] = iter([state])
                for goal, function in zip(goals, order, strict=True):
                    after = self._functions(goal, function, after)
                for one in after:
                    coefficient = rest
                    for slot, leaf in zip(slots, chosen, strict=True):
                        one = one.with_leaf(self.name(slot), _Placed(leaf, coefficient, inner))
                        coefficient = notation.ONE
                    others = [_Placed(leaf) for leaf in leaves if leaf not in chosen]
                    for other in (*others, *divisors):
                        one = one.with_leaf(self.pattern.product, other)
                    yield one

    def _functions(self, goal: Func, function: Func, states: Iterator[_State]) -> Iterator[_State]:
        linear = not goal.name
        if linear == bool(function.name):
            return
        assert isinstance(goal.argument, tuple) and isinstance(function.argument, tuple)
        for state in states:
            after = replace(state) if linear else replace(state, activation=function.name)
            yield from self.sums(goal.argument, function.argument, after)


def unify(
    pattern: Pattern,
    formula: tuple[Names, tuple[Index, ...], Term],
    term: Term,
    index: tuple[Index, ...],
    numbering: ValueNumbering,
) -> Unification:
    """How a term is the pattern's formula. Raises NoMatch with the reason that goes furthest.

    Args:
        pattern: the pattern.
        formula: its leaves' names, the index of its result, and its term.
        term: the program's term.
        index: the index of its entry.
        numbering: tells which values of the program are computed alike.
    """
    names, _, goal = formula
    unifier, roles = _Unifier(pattern, names), _Roles(pattern, numbering)
    refusal = other_factors(goal, term)
    for state in unifier.terms(goal, term, _State()):
        try:
            return roles.assign(state, index)
        except NoMatch as error:
            refusal = max(refusal, error, key=lambda e: e.progress)
    raise refusal


class _Roles:
    """The axes of an assignment, by the operands they occur in."""

    def __init__(self, pattern: Pattern, numbering: ValueNumbering) -> None:
        self.pattern = pattern
        self.numbering = numbering
        self.occurs = {
            letter: pattern.occurrences(letter) | ({SCORE} if role.is_contracted else set())
            for letter, role in pattern.roles.items()
        }
        self.shared = {*pattern.of(Purpose.INPUT), RESULT}

    def assign(self, state: _State, index: tuple[Index, ...]) -> Unification:
        """The operands and roles of an assignment. Raises NoMatch."""
        operands = {
            name: self._operand(name, placed)
            for name, placed in _aligned(state.leaves, self.numbering).items()
        }
        for name, number in state.addends.items():
            operands[name] = replace(operands.get(name, Operand((), (), notation.ONE)), addend=number)
        roles: dict[str, list[Axis]] = {role: [] for role in self.pattern.roles}
        inner = {axis for all_placed in state.leaves.values() for one in all_placed for axis in one.bound}
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
            raise NoMatch("the activation is scaled by a factor for each channel", progress=SIZES)
        first = {name: operand.entries[0] for name, operand in operands.items() if operand.entries}
        roles = self.pattern.distribute(roles, first)

        def dims(layout: Sequence[str]) -> tuple[tuple[Axis, ...], ...]:
            return tuple(tuple(axis for role in dim.split() for axis in roles[role]) for dim in layout)

        return Unification(
            {
                name: replace(operand, dims=dims(self.pattern.operands[name].dims))
                for name, operand in operands.items()
            },
            dims(self.pattern.result),
            {role: tuple(axes) for role, axes in roles.items()},
            state.activation,
            {name: state.scalars.get(name, notation.ONE) for name in self.pattern.scalars},
        )

    def _operand(self, name: str, placed: list[_Placed]) -> Operand:
        """The leaves of an operand: several for the product, else the same one wherever it stands."""
        coefficient = math.prod((p.coefficient for p in placed), start=notation.ONE)
        leaves = tuple(p.leaf for p in placed if not p.divides)
        divisors = tuple(p.leaf for p in placed if p.divides)
        twins: tuple[Leaf, ...] = ()
        if name != self.pattern.product:
            leaves, twins = leaves[:1], leaves[1:]
            for twin in twins:
                if not (twin.index == leaves[0].index and _same_tensor(self.numbering, twin, leaves[0])):
                    raise differing(leaves[0], twin)
        for leaf in (*leaves, *divisors):
            if len(set(leaf.axes)) != len(leaf.axes):
                raise NoMatch(f"a diagonal of {leaf.value} is read", value_of(leaf), Progress(Stage.OPERANDS))
        return Operand(leaves, (), coefficient, twins, divisors)

    def _role(self, present: set[str]) -> str | None:
        """The axis of the pattern that occurs in the same operands, if one does.

        An optional operand may lack any axis. Keys, up-projections and values may each lack an axis of the
        heads, being broadcast over it.
        """
        optional = self.pattern.optional
        fitting = [role for role, where in self.occurs.items() if present <= where]
        exact = [r for r in fitting if self.occurs[r] - optional == present - optional]
        shared = [r for r in fitting if RESULT in present and self.occurs[r] - optional > present - optional]
        if not exact and self.shared <= present:
            exact = shared
        return min(exact, key=lambda role: len(self.occurs[role] - present), default=None)


def _same_tensor(numbering: ValueNumbering, a: Leaf, b: Leaf) -> bool:
    if isinstance(a.value, Value) and isinstance(b.value, Value):
        return numbering.same(a.value, b.value)
    return a.value == b.value


def _occurrences(operands: Mapping[str, Operand], index: tuple[Index, ...]) -> dict[Axis, set[str]]:
    """The operands that each axis occurs in; axes in the order of the result, then of the operands."""
    present: dict[Axis, set[str]] = {axis: {RESULT} for i in index for axis in i.axes}
    for name, operand in operands.items():
        for leaf in operand.entries:
            for axis in leaf.axes:
                present.setdefault(axis, set()).add(name)
    return present


def _aligned(leaves: Assignment, numbering: ValueNumbering) -> Assignment:
    """The leaves, with the axes that gate and up sum over made one: the shared leaf has it in one place."""
    names: dict[Axis, Index] = {}
    for placed in leaves.values():
        (first, _, bound, _), *others = placed
        for leaf, _, own, _ in others:
            if not _same_tensor(numbering, leaf, first) or len(leaf.index) != len(first.index):
                continue
            for a, b in zip(first.index, leaf.index, strict=True):
                for (stride, axis), (other_stride, other) in zip(a.digits, b.digits, strict=False):
                    if other in own and axis in bound and stride == other_stride and axis.size == other.size:
                        names[other] = Index.over(axis)
    return {
        name: [
            f._replace(leaf=Leaf(f.leaf.value, tuple(index.substitute(names) for index in f.leaf.index)))
            for f in placed
        ]
        for name, placed in leaves.items()
    }
