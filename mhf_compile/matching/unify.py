"""Unify a term of a program with a pattern's: which tensors are which operand, which axis has which role.

An operand is a sum of products of leaves. For each operand a leaf is tried in every order (there are few),
and what else is multiplied belongs to the operand that has its axes; an assignment stands if every axis
occurs in just the operands that an axis of the pattern occurs in. Layout, order and names play no part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

from mhf_compile import notation
from mhf_compile.matching.reasons import NoMatch, other_factors
from mhf_compile.matching.roles import AxisRoles
from mhf_compile.matching.unification import Assignment, Place, Unification
from mhf_compile.notation import Axis, Delta, Factor, Func, Index, Leaf, Term
from mhf_compile.patterns import Pattern
from mhf_compile.patterns.pattern import Purpose
from mhf_compile.reading.entries import multiply
from mhf_compile.reading.numbering import ValueNumbering
from mhf_compile.tape.values import Value

Names = Mapping[Value, str]

BEHIND = "behind"
"""In place of an operand's name: that a factor is multiplied with the result."""


@dataclass
class State:
    """A partial unification."""

    places: Assignment = field(default_factory=dict)
    scalars: dict[str, Fraction] = field(default_factory=dict)
    activation: str = ""
    addends: dict[str, Fraction] = field(default_factory=dict)
    behind: tuple[Factor, ...] = ()

    def copy(self) -> State:
        """Another one, to be changed."""
        places = {name: list(placed) for name, placed in self.places.items()}
        return replace(self, places=places, scalars=dict(self.scalars), addends=dict(self.addends))

    def with_place(self, name: str, place: Place) -> State:
        """One with what stands in another place of an operand."""
        state = self.copy()
        state.places.setdefault(name, []).append(place)
        return state


class _Score(NamedTuple):
    """A sum that a function is of; without a name where it is the second, or the function has none."""

    function: Func
    name: str
    terms: tuple[Term, ...]


class _Unifier:
    def __init__(self, pattern: Pattern, names: Names) -> None:
        self.pattern = pattern
        self.names = names
        self.scalars = {Fraction(value): name for name, value in pattern.scalars.items()}

    def name(self, leaf: Leaf) -> str:
        assert isinstance(leaf.value, Value)
        return self.names[leaf.value]

    def sums(self, wanted: Sequence[Term], given: Sequence[Term], state: State) -> Iterator[State]:
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

    def terms(self, wanted: Term, given: Term, state: State, inner: tuple[Axis, ...] = ()) -> Iterator[State]:
        """Functions correspond to functions, other factors to operands."""
        if bool(wanted.bound) != bool(given.bound):
            return
        goals = [factor for factor in wanted.factors if isinstance(factor, Func)]
        slots = [self.name(factor) for factor in wanted.factors if isinstance(factor, Leaf)]
        functions = [factor for factor in given.factors if isinstance(factor, Func) and factor.terms]
        scores = [_Score(f, f.name if n == 0 else "", s) for f in functions for n, s in enumerate(f.sums)]
        state = state.copy()
        coefficient = given.coefficient
        if wanted.coefficient in self.scalars:
            state.scalars[self.scalars[wanted.coefficient]] = coefficient
            coefficient = notation.ONE
        for chosen in itertools.permutations(scores, len(goals)):
            factors = [f for f in given.factors if not any(f is score.function for score in chosen)]
            wide = {axis for score in chosen for axis in score.function.axes}
            if any(_is_no_operand(factor, wide, given.bound) for factor in factors):
                continue
            if any(s.function is one.function and s not in chosen for one in chosen for s in scores):
                continue  # a function of two scores takes both
            after: Iterator[State] = iter([state])
            for goal, score in zip(goals, chosen, strict=True):
                after = self._functions(goal, score, after)
            rest = Term(coefficient, tuple(factors), given.bound)
            for one in after:
                yield from self._factors(slots, rest, one, inner, wide)

    def _functions(self, goal: Func, score: _Score, states: Iterator[State]) -> Iterator[State]:
        if bool(goal.name) != bool(score.name):
            return
        for state in states:
            after = replace(state, activation=score.name or state.activation)
            yield from self.sums(goal.terms, score.terms, after)

    def _factors(
        self, slots: Sequence[str], given: Term, state: State, inner: tuple[Axis, ...], wide: set[Axis]
    ) -> Iterator[State]:
        """The operands of factors: each has one of its own, but for the product operand, which needs none.

        ``wide`` are the axes of the functions that stand beside them.
        """
        product = self.pattern.product if self.pattern.product in slots else None
        slots = [slot for slot in slots if slot != product]
        named = (f for f in given.factors if not (isinstance(f, Func) and f.name))
        bases = [f for f in named if not (wide and _is_hidden(f, wide, given.bound))]
        for chosen in itertools.permutations(bases, len(slots)):
            parts: dict[str, list[Factor]] = {slot: [base] for slot, base in zip(slots, chosen, strict=True)}
            behind: list[Factor] = []
            for other in (f for f in given.factors if not any(f is base for base in chosen)):
                owner = self._owner(other, parts, given.bound, wide, product)
                if owner is None:
                    break
                (behind if owner == BEHIND else parts.setdefault(owner, [])).append(other)
            else:
                after, coefficient = replace(state, behind=(*state.behind, *behind)), given.coefficient
                for name, factors in parts.items():
                    others = {a for other, of in parts.items() if other != name for f in of for a in f.axes}
                    summed = [a for a in given.bound if a not in wide | others]  # in this operand alone
                    terms, own = _multiplied(coefficient, factors), inner if name != product else ()
                    after = after.with_place(name, _place(terms, summed, own))
                    coefficient = notation.ONE
                yield after

    def _owner(
        self,
        factor: Factor,
        parts: Mapping[str, list[Factor]],
        bound: Sequence[Axis],
        wide: set[Axis],
        product: str | None,
    ) -> str | None:
        """The operand that a further factor belongs to: one that has all of its axes, or the product operand.

        What is constant in the sum, and has axes of the values that are in no score, leaves the op. Where
        there are no tokens, so that a factor of sub-networks has the axes of a weight too, it is taken for
        one if there are no more of them than channels in each: it need not be multiplied with the weight.
        """
        axes = set(factor.axes)
        purposes = [*self.pattern.of(Purpose.WEIGHT), *self.pattern.of(Purpose.BIAS)]
        purposes += self.pattern.of(Purpose.INPUT) if product is None else []
        for name in purposes:
            if name in parts and axes <= set(parts[name][0].axes):
                summed = axes.intersection(bound)
                others = {a for a in parts[name][0].axes if a in bound} - summed
                counts = (notation.product([axis.size for axis in some]) for some in (summed, others))
                if product is not None and summed and others and notation.at_most(*counts):
                    return product
                if product is None or summed:
                    return name
                if not axes <= wide:
                    return BEHIND
        return product


def _is_no_operand(factor: Factor, wide: set[Axis], bound: Sequence[Axis]) -> bool:
    """Whether a factor is a position, a score, or a function of one."""
    if not (isinstance(factor, Func) and factor.terms):
        return isinstance(factor, Delta)
    is_score = _is_hidden(factor, wide, bound) and any(term.bound for term in factor.terms)
    return bool(factor.name) or is_score


def _is_hidden(factor: Factor, wide: set[Axis], bound: Sequence[Axis]) -> bool:
    """Whether a factor has an entry for each hidden value, of which there are more than a sum is over."""
    return wide == set(factor.axes) and not wide.issubset(bound)


def _multiplied(coefficient: Fraction, factors: Sequence[Factor]) -> tuple[Term, ...]:
    """The product of factors, of which some may be sums, multiplied out."""
    terms = [Term(coefficient)]
    for factor in factors:
        summands = factor.terms if isinstance(factor, Func) and factor.terms else (Term(factors=(factor,)),)
        terms = [multiply(term, summand) for term in terms for summand in summands]
    return tuple(terms)


def _place(terms: tuple[Term, ...], summed: Sequence[Axis], inner: Sequence[Axis]) -> Place:
    """What stands in a place of an operand, summed over those of some axes that all of its terms have."""
    alone = tuple(axis for axis in summed if all(axis in term.free for term in terms))
    bound = tuple(replace(term, bound=(*term.bound, *alone)) for term in terms)
    return Place(bound, tuple(axis for axis in inner if axis not in alone))


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
    unifier, roles = _Unifier(pattern, names), AxisRoles(pattern, numbering)
    refusal = other_factors(goal, term)
    for state in unifier.terms(goal, term, State()):
        try:
            operands, result, by_role = roles.assign(state.places, state.addends, index)
        except NoMatch as error:
            refusal = max(refusal, error, key=lambda e: e.progress)
            continue
        scalars = {name: state.scalars.get(name, notation.ONE) for name in pattern.scalars}
        return Unification(operands, result, by_role, state.activation, scalars, state.behind)
    raise refusal
