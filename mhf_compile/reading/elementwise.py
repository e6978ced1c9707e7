"""Entries as expressions of entries that they are made of, one by one: what is elementwise, spelled out."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mhf_compile.kernels.activations import GATE, UP
from mhf_compile.kernels.expressions import Expression, Number, Variable, size
from mhf_compile.notation import Factor, Func, Leaf, Term
from mhf_compile.reading.expression import differentiable, of_function
from mhf_compile.reading.numbering import ValueNumbering
from mhf_compile.reading.reader import Reader
from mhf_compile.reading.rules import ELEMENTWISE, Kind
from mhf_compile.tape.values import Value

SCORES = (GATE, UP, Variable("third"), Variable("fourth"))
"""The entries that an expression may depend on, in order; the op knows the first two."""

DEPTH = 24
"""Operations that an expression is followed down."""

LARGEST = 512
"""The size of the largest expression, written out."""


@dataclass(frozen=True)
class Elementwise:
    """What entries are made of by elementwise operations and rearrangements."""

    reader: Reader
    numbering: ValueNumbering

    def step(self, leaf: Leaf, depth: int = 1) -> list[Term] | None:
        """What an entry is made of by one such operation; None of another, and at the end of the depth."""
        rule = self.reader.rule(leaf.value) if isinstance(leaf.value, Value) else None
        if rule is None or not depth or rule.kind not in ELEMENTWISE | {Kind.JOIN}:
            return None
        terms = self.reader.definition(leaf)
        return None if terms is not None and rule.kind is Kind.JOIN and len(terms) > 1 else terms

    def canonical(self, leaf: Leaf) -> Leaf:
        """The entry that an entry is, below all rearrangements."""
        while (
            isinstance(leaf.value, Value)
            and (rule := self.reader.rule(leaf.value))
            and rule.kind in (Kind.MOVE, Kind.JOIN)
        ):
            match self.reader.definition(leaf):
                case [Term(1, (Leaf() as below,), ())]:
                    leaf = below
                case _:
                    break
        return Leaf(leaf.value, tuple(self.reader.axes.current(i) for i in leaf.index))

    def same(self, a: Leaf, b: Leaf) -> bool:
        """Whether two leaves are the same entry of values that are computed alike."""
        assert isinstance(a.value, Value) and isinstance(b.value, Value)
        current = self.reader.axes.current
        return self.numbering.same(a.value, b.value) and [*map(current, a.index)] == [*map(current, b.index)]

    def expression(self, factor: Factor, of: Sequence[Leaf], path: list[Leaf]) -> Expression | None:
        """A factor as an expression of some entries; None where it is of others.

        What was read through is added to the path.
        """
        known: dict[Leaf, Expression | None] = {}
        inside: list[Leaf] = []

        def of_entry(leaf: Leaf, depth: int) -> Expression | None:
            for entry, name in zip(of, SCORES, strict=False):
                if self.same(leaf, entry):
                    return name
            if leaf not in known:
                inside.append(leaf)
                terms = self.step(leaf, depth)
                known[leaf] = None if terms is None else total(terms, depth - 1)
            return known[leaf]

        def total(terms: Sequence[Term], depth: int) -> Expression | None:
            found: Expression = Number(Fraction(0))
            for term in terms:
                product: Expression = Number(term.coefficient)
                for inner in term.factors:
                    expression = of_factor(inner, depth)
                    if expression is None:
                        return None
                    product = product * expression
                found = found + product
            return found if size(found) <= LARGEST else None

        def of_factor(factor: Factor, depth: int) -> Expression | None:
            if isinstance(factor, Leaf):
                return of_entry(factor, depth)
            if not isinstance(factor, Func):
                return None
            arguments = [
                of_entry(a, depth) if isinstance(a, Leaf) else total(a, depth) for a in factor.arguments
            ]
            found = [argument for argument in arguments if argument is not None]
            return of_function(factor.name, *found) if len(found) == len(arguments) else None

        result = of_factor(factor, DEPTH)
        path += inside if result is not None else []
        return result

    def scores(self, leaf: Leaf, scores: Container[object], apart: bool) -> list[Leaf] | None:
        """Those of some values that an entry is a function of, the first on each way down.

        Not what is a score times a number, or has one added, nor, ``apart``, what is a sum of scores. None
        where it is a function of something else as well.
        """
        found: list[Leaf] = []
        seen: list[Leaf] = []
        pending = deque([(leaf, DEPTH)])
        while pending:
            entry, depth = pending.popleft()
            entry = self.canonical(entry)
            if entry in seen:
                continue
            seen.append(entry)
            terms = self.step(entry, depth)
            if entry.value in scores:
                inner = [factor for term in terms or () for factor in term.factors]
                summed = [factor for factor in inner if isinstance(factor, Leaf) and factor.value in scores]
                if summed == inner and (len(inner) == 1 or (inner and apart)):
                    pending += [(factor, depth) for factor in summed]
                    continue
                if not any(self.same(entry, other) for other in found):
                    found.append(entry)
                continue
            if terms is None:
                return None
            for factor in (factor for term in terms for factor in term.factors):
                if isinstance(factor, Leaf):
                    pending.append((factor, depth - 1))
                elif isinstance(factor, Func):
                    pending += [(entry, depth - 1) for entry in factor.entries]
                else:
                    return None
        return found


def has_no_gradient(expression: Expression, of: Sequence[Leaf]) -> bool:
    """Whether autograd gives none for an entry that an expression depends on, as where it is only compared.

    A call would give zeros.
    """
    followed = differentiable(expression)
    given = ((leaf.value, name) for leaf, name in zip(of, SCORES, strict=False))
    return any(isinstance(v, Value) and v.requires_grad and name.name not in followed for v, name in given)
