"""Read values of a tape as index notation, by the rules of their operations.

``Reader.definition`` takes one step down; ``expand`` takes steps until every factor is one that its caller
wants to keep; ``operand`` follows an entry through rearrangements only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch

from mhf_compile import notation
from mhf_compile.notation import Axes, Axis, Delta, Factor, Func, Index, Leaf, Tensor, Term, Unreadable
from mhf_compile.notation.fold import fold
from mhf_compile.reading.entries import Indices, multiply
from mhf_compile.reading.rules import RULES, Kind, Rule
from mhf_compile.tape.values import Op, Value

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""The dtypes between which a cast is the identity; integers and float8 round what they hold."""

TERM_LIMIT = 4096
"""A value of more terms than this is not read."""

FACTOR_LIMIT = 64
"""A value with a term of more factors than this is not read."""


@dataclass(frozen=True)
class _Rejoined:
    """What a join of pieces of one tensor is at an index: its entry, and what is between the two."""

    index: Indices
    entry: Leaf
    between: list[Leaf]


def _stops_gradient(value: Value, op: Op, grad: bool) -> bool:
    """Whether a gradient ends here: at a detach, and, where autograd is on, at what was made without it."""
    if (
        value.requires_grad
        or value.dtype is torch.bool
        or RULES[op.name].kind is Kind.CONSTANT
        or not any(v.requires_grad for v in op.inputs)
    ):
        return False
    return grad or (op.name == "detach" and op.state.grad_enabled)


class Reader:
    """Reads the values of one tape.

    Args:
        preference: of two values with the same entries, the one to take as an operand; equal ones: the one
            that is computed first.
        grad: whether autograd is on where the result is made.
        sealed: whether a value may be the root of another match, which is not read into.

    Attributes:
        axes: those of what was read.
        visited: the values that were read through, each with its index.
    """

    def __init__(
        self,
        preference: Callable[[Value], int] = lambda value: 0,
        grad: bool = False,
        sealed: Callable[[Value], bool] = lambda value: False,
    ) -> None:
        self.grad = grad
        self.sealed = sealed
        self.preference = preference
        self.axes = Axes()
        self.visited: dict[Value, Indices] = {}
        self._rejoined: dict[Value, _Rejoined | None] = {}
        self._between: dict[Leaf, list[Leaf]] = {}  # what is between an entry of a join and what it is of

    # -- rules

    def rule(self, value: Value) -> Rule | None:
        """The rule for the operation that made a value, if its meaning is claimed."""
        op = value.op
        if op is None:
            return None
        if op.name not in RULES or _stops_gradient(value, op, self.grad):
            return None
        if value.requires_grad and not op.state.grad_enabled:
            return None  # a parameter that is written to: its gradient does not go to what is written
        rule = RULES[op.name]
        read = FLOATS | {torch.bool} if rule.is_conditional else FLOATS
        return rule if all(v.plain and v.dtype in read for v in (value, *op.inputs)) else None

    def definition(self, leaf: Leaf) -> list[Term] | None:
        """What an entry is made of, one operation down; None where that cannot be said."""
        value = leaf.value
        assert isinstance(value, Value)
        rule = self.rule(value)
        if rule is None or value.op is None:
            return None
        index = tuple(self.axes.current(i) for i in leaf.index)
        if rule.kind is Kind.JOIN and (rejoined := self._rejoin(value, value.op, rule)) is not None:
            with contextlib.suppress(Unreadable):
                entry, *self._between[leaf] = self._at(rejoined, index)
                return [Term(factors=(entry,))]
        try:
            return rule.read(value.op, value.output, index, self.axes)
        except (Unreadable, LookupError):
            return None

    def operand(self, leaf: Leaf) -> Leaf | None:
        """The tensor that an entry comes from by rearrangement only; None for a zero.

        Of the preferred tensors on the way it is the deepest, so that equal entries get equal leaves. What is
        joined into a sealed value, which may be the root of another match, is not taken from inside it.
        """
        chosen, path = leaf, list[Leaf]()
        while True:
            assert isinstance(leaf.value, Value) and isinstance(chosen.value, Value)
            rule = self.rule(leaf.value)
            open_join = rule is not None and rule.kind is Kind.JOIN and not self.sealed(leaf.value)
            through = open_join or (rule is not None and rule.kind in (Kind.MOVE, Kind.CONSTANT))
            terms = self.definition(leaf) if through else None
            if terms == []:
                self.visit(*path, leaf)
                return None
            entry = _same_entry(terms)
            if entry is None:
                return Leaf(chosen.value, tuple(self.axes.current(i) for i in chosen.index))
            path.append(leaf)
            leaf = entry
            assert isinstance(leaf.value, Value)
            if self.preference(leaf.value) >= self.preference(chosen.value):
                chosen = leaf
                self.visit(*path)
                path.clear()

    def number(self, leaf: Leaf) -> list[Term] | None:
        """The number that an entry is, of a tensor that is filled with it."""
        *path, below = self._moved(leaf)
        rule = self.rule(below.value) if isinstance(below.value, Value) else None
        terms = self.definition(below) if rule is not None and rule.kind is Kind.CONSTANT else None
        if terms is None or any(term.factors for term in terms):
            return None
        self.visit(*path, below)
        return terms

    def _rejoin(self, value: Value, op: Op, rule: Rule) -> _Rejoined | None:
        """The one tensor that a join is a rearrangement of, if it is."""
        if value not in self._rejoined:
            index, self._rejoined[value] = entry_axes(value), None
            with contextlib.suppress(Unreadable, LookupError):
                self._rejoined[value] = self._made_up(index, rule.read(op, value.output, index, self.axes))
        return self._rejoined[value]

    def _made_up(self, index: Indices, terms: list[Term]) -> _Rejoined | None:
        """The nearest tensor that all terms are entries of, where they are one of its. Raises Unreadable."""
        pieces = [f.value for t in terms for f in t.factors if isinstance(f, Leaf)]
        if not len(pieces) == len(terms) > 1:
            return None
        first, *others = ([*self.sources(piece)] for piece in pieces)
        common = next((value for value in first if all(value in way for way in others)), None)
        between: list[Leaf] = []

        def below(factor: Factor) -> Factor:
            for leaf in self._moved(factor) if isinstance(factor, Leaf) else ():
                if leaf.value is common:
                    return leaf
                between.append(leaf)
            return factor

        if common is None:
            return None
        read = [replace(t, factors=tuple(map(below, t.factors))) for t in terms]
        terms, cuts = fold([self.axes.resolve(t) for t in read])
        entry = _same_entry(terms)
        if entry is None or entry.value is not common:
            return None
        self.axes.adopt(cuts)
        return _Rejoined(index, entry, between)

    def _at(self, rejoined: _Rejoined, index: Indices) -> list[Leaf]:
        """The entry that a join is, and those between, at another index, whose axes are then pieced.

        Raises Unreadable.
        """
        at: dict[Axis, Index] = {}

        def place(axis: Axis, index: Index) -> None:
            cut = self.axes.cuts.get(axis)
            if cut is None:
                at[axis] = index
            for stride, digit in cut.digits if cut is not None else ():
                high, index = self.axes.divide(index, stride)
                place(digit, high)

        for own, other in zip(rejoined.index, index, strict=True):
            for axis in own.axes:
                place(axis, other)
            if not self.axes.pieced.isdisjoint(self.axes.current(own).axes):
                self.axes.pieced.update(self.axes.current(other).axes)
        return [
            Leaf(leaf.value, tuple(self.axes.current(i).substitute(at) for i in leaf.index))
            for leaf in (rejoined.entry, *rejoined.between)
        ]

    def sources(self, value: Tensor | None) -> Iterator[Value]:
        """A value, and those that it is a rearrangement of, one after the other."""
        while isinstance(value, Value):
            yield value
            rule = self.rule(value)
            if rule is None or rule.kind is not Kind.MOVE or rule.products is None or value.op is None:
                return
            value = next(chain(*rule.products(value.op)), None)

    def _moved(self, leaf: Leaf) -> Iterator[Leaf]:
        """An entry, and what it comes from by rearrangements, one after the other."""
        entry: Leaf | None = leaf
        while entry is not None:
            yield entry
            rule = self.rule(entry.value) if isinstance(entry.value, Value) else None
            entry = (
                _same_entry(self.definition(entry)) if rule is not None and rule.kind is Kind.MOVE else None
            )

    def visit(self, *leaves: Leaf) -> None:
        """Note that values are read through."""
        for leaf in leaves:
            assert isinstance(leaf.value, Value)
            self.visited[leaf.value] = leaf.index
            self.visit(*self._between.get(leaf, ()))

    def expand(self, start: Leaf, step: Step) -> list[Term]:
        """Apply rules until a step keeps every factor: a sum of products. Raises Unreadable past a limit."""
        done: list[Term] = []
        work: list[tuple[Term, tuple[tuple[Leaf, str], ...]]] = [(Term(), ((start, "start"),))]
        while work:
            term, pending = work.pop()
            if not pending:
                done.append(term)
                if len(done) > TERM_LIMIT:
                    raise Unreadable(f"more than {TERM_LIMIT} terms")
                continue
            if len(term.factors) + len(pending) > FACTOR_LIMIT:
                raise Unreadable(f"a product of more than {FACTOR_LIMIT} factors")
            (leaf, phase), rest = pending[0], pending[1:]
            result = step(leaf, phase)
            if isinstance(result, Leaf):
                work.append((replace(term, factors=(*term.factors, result)), rest))
                continue
            self.visit(leaf)
            terms, phases = result
            for number in reversed(range(len(terms))):
                inner, after = terms[number], phases if isinstance(phases, str) else phases[number]
                kept = tuple(f for f in inner.factors if not isinstance(f, Leaf))
                further = tuple((f, after) for f in inner.factors if isinstance(f, Leaf))
                merged = _with_deltas(multiply(term, replace(inner, factors=kept)))
                if merged is not None and merged.coefficient:
                    work.append((merged, further + rest))
        return done


Step = Callable[[Leaf, str], "Leaf | tuple[list[Term], str | list[str]]"]
"""Given an entry and the phase it was met in: the leaf to keep, or its terms and their entries' phase, which
may be one for each term."""


def _same_entry(terms: list[Term] | None) -> Leaf | None:
    """The entry that terms say is the same, if they say just that."""
    match terms:
        case [Term(coefficient=1, factors=(Leaf() as leaf,), bound=())]:
            return leaf
    return None


def _with_deltas(term: Term) -> Term | None:
    """A term with each of its deltas once; None where two of them exclude each other."""
    where: dict[Axis, Index] = {}
    same: dict[Axis, Index] = {}
    for factor in term.factors:
        if not isinstance(factor, Delta) or where.setdefault(factor.axis, factor.index) == factor.index:
            continue
        one, other = where[factor.axis], factor.index
        if notation.at_most(one.last, notation.size_of(other.offset - 1)) or notation.at_most(
            other.last, notation.size_of(one.offset - 1)
        ):
            return None
        sizes, wanted = ([(s, a.size) for s, a in index.digits] for index in (one, other))
        if one.offset != other.offset or sizes != wanted:
            raise Unreadable("pieces that overlap")
        same.update({b: Index.over(a) for (_, a), (_, b) in zip(one.digits, other.digits, strict=True)})
    if not where:
        return term
    if same:
        bound = tuple(axis for axis in term.bound if axis not in same)
        kept = tuple(f for f in term.factors if not isinstance(f, Delta))
        moved = notation.substitute(Term(term.coefficient, kept), same)
        return replace(moved, factors=(*(Delta(a, i) for a, i in where.items()), *moved.factors), bound=bound)
    others = tuple(f for f in term.factors if not isinstance(f, Delta))
    return replace(term, factors=(*(Delta(a, i) for a, i in where.items()), *others))


def read(value: Value, index: Indices | None = None, reader: Reader | None = None) -> list[Term]:
    """A value as index notation, down to what no rule knows.

    Args:
        value: a value of a tape.
        index: which entry; by default a fresh axis for each dimension.
        reader: which keeps the axes that are split; by default a new one.

    Returns:
        Terms whose sum is the entry; arguments of elementwise functions are terms too.
    """
    reader = reader or Reader()
    index = index if index is not None else entry_axes(value)

    def step(leaf: Leaf, phase: str) -> Leaf | tuple[list[Term], str]:
        terms = reader.definition(leaf)
        return leaf if terms is None else (terms, "all")

    def inside(factor: Factor) -> Factor:
        if not isinstance(factor, Func):
            return factor
        return Func(factor.name, *(of(a) if isinstance(a, Leaf) else a for a in factor.arguments))

    def of(leaf: Leaf) -> tuple[Term, ...]:
        assert isinstance(leaf.value, Value)
        return tuple(read(leaf.value, leaf.index, reader))

    terms = [
        replace(t, factors=tuple(inside(f) for f in t.factors))
        for t in reader.expand(Leaf(value, index), step)
    ]
    return [reader.axes.resolve(term) for term in terms]


def entry_axes(value: Value) -> Indices:
    """A fresh axis for each dimension of a value, none for dimensions of size 1."""
    return tuple(Index() if size == 1 else Index.over(Axis(size)) for size in value.shape)
