"""What a search finds: a match of a pattern, or why an activation is in none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy

from mhf_compile import notation
from mhf_compile.matching.reasons import NoMatch, Progress, Refusal
from mhf_compile.matching.unification import Unification
from mhf_compile.notation import Axis, Index, Leaf, Term
from mhf_compile.notation.fold import Stacked
from mhf_compile.patterns import Pattern
from mhf_compile.patterns.pattern import Purpose
from mhf_compile.reading.numbering import ValueNumbering
from mhf_compile.tape.values import Scope, Value


@dataclass(frozen=True, eq=False)
class Match:
    """A value that is a pattern's formula of some leaves, plus sums of products of leaves."""

    pattern: Pattern
    scope: Scope
    root: Value
    index: tuple[Index, ...]
    anchors: frozenset[Value]
    unification: Unification
    addends: tuple[Term, ...]
    term: Term
    visited: Mapping[Value, tuple[Index, ...]]
    pieced: frozenset[Axis]
    """The axes that are put together from pieces whose sizes are numbers in the program."""
    hints: Mapping[sympy.Symbol, int]
    """A value of each symbolic size that satisfies every guard."""
    numbering: ValueNumbering
    """Tells which values are computed alike."""

    @property
    def time(self) -> int:
        """When the first of its activations is complete."""
        return min(anchor.time for anchor in self.anchors)

    @property
    def uses(self) -> int:
        """How often the program runs the graph that it is in."""
        return self.scope.uses

    @property
    def hidden(self) -> int:
        """The number of hidden values, those of activation times up projection."""
        return math.prod(
            notation.known(self.unification.size(role), self.hints) for role in self.pattern.hidden
        )

    @property
    def is_dense(self) -> bool:
        """Whether it has one head and one sub-network, or is a sum of several such of different inputs."""
        operands, roles = self.unification.operands, self.unification.roles
        inputs = [leaf for name in self.pattern.of(Purpose.INPUT) for leaf in operands[name].entries]
        apart = {axis for leaf in inputs if isinstance(leaf.value, Stacked) for axis in leaf.index[0].axes}
        apart -= {axis for index in self.index for axis in index.axes}
        return all(axis in apart or axis.size == 1 for role in self.pattern.dense for axis in roles[role])

    @property
    def leaves(self) -> Iterator[Leaf]:
        """The leaves of the operands, and of what is multiplied with the result or added to it."""
        for operand in self.unification.operands.values():
            yield from operand.entries
        yield from notation.leaves(self.unification.behind)
        for term in self.addends:
            yield from notation.leaves(term.factors)


@dataclass(frozen=True)
class Unmatched:
    """An activation that is in no match, and why; and whether it is one of a feed-forward all the same."""

    pattern: Pattern
    anchor: Value
    why: NoMatch
    is_feed_forward: bool = True

    @property
    def time(self) -> int:
        """When the activation is complete."""
        return self.anchor.time

    @property
    def uses(self) -> int:
        """How often the program runs the graph that it is in."""
        scope = self.anchor.op.scope if self.anchor.op is not None else None
        return scope.uses if scope is not None else 1

    @property
    def is_pattern(self) -> bool:
        """Whether it is the pattern but for what the reason says."""
        return isinstance(self.why, Refusal)

    @property
    def rank(self) -> tuple[bool, Progress]:
        """How near it is to a match."""
        return self.is_pattern, self.why.progress
