"""Match patterns to the values of a tape: candidates, normal form, unification.

A candidate is a value in which activations are still linear. It is read down to the operands of the gate
and up products, its terms are folded, and the result is unified with the pattern's formula in the same normal
form. The largest value that unifies is the root of a match.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import sympy

from mhf_compile import notation
from mhf_compile.activation import Activations
from mhf_compile.normal import normal_form
from mhf_compile.notation import Axis, Func, Index, Leaf, Term, Unreadable
from mhf_compile.patterns import PATTERNS, Pattern
from mhf_compile.read import Reader
from mhf_compile.record import record_function
from mhf_compile.tape import Op, Scope, Tape, Value
from mhf_compile.unify import NoMatch, Refusal, Unification, unify

log = logging.getLogger(__name__)

CONTRACTIONS = 4
"""A value that an activation reaches only through more products than this is no candidate."""


@dataclass(frozen=True, eq=False)
class Match:
    """A value that is a pattern's formula of some leaves, plus terms with no activation in them."""

    pattern: Pattern
    scope: Scope
    root: Value
    index: tuple[Index, ...]
    anchors: frozenset[Value]
    unification: Unification
    addends: tuple[Term, ...]
    term: Term
    visited: Mapping[Value, tuple[Index, ...]]
    hints: Mapping[sympy.Symbol, int]
    """A value of each symbolic size that satisfies every guard."""

    @property
    def equation(self) -> str:
        """What was read, its axes named by their roles."""
        names: dict[Axis, Index] = {}
        for role, axes in self.unification.roles.items():
            for number, axis in enumerate(axes):
                names[axis] = Index.over(Axis(axis.size, role + str(number + 1) * (len(axes) > 1)))
        for leaf in notation.leaves(self.term.factors):  # the up score has an axis of its own for d
            for own in (own for own in self.leaves if own.value == leaf.value):
                for ours, theirs in zip(own.index, leaf.index, strict=True):
                    for known, other in zip(ours.axes, theirs.axes, strict=False):
                        if known in names:
                            names.setdefault(other, names[known])
        where = ", ".join(repr(index.substitute(names)) for index in self.index)
        terms = (notation.substitute(term, names) for term in (self.term, *self.addends))
        return f"{self.root}[{where}] = {notation.equation(tuple(terms))}"

    @property
    def leaves(self) -> Iterator[Leaf]:
        """The leaves of the operands and of the addends."""
        for operand in self.unification.operands.values():
            yield from operand.leaves
        for term in self.addends:
            yield from notation.leaves(term.factors)


@dataclass(frozen=True)
class Unmatched:
    """An activation that is in no match, why, and what to change; ``at`` is the value that shows it."""

    pattern: Pattern
    anchor: Value
    reason: str
    at: Value | None = None
    advice: str = ""


def find(tape: Tape, accept: Callable[[Match], None] = lambda match: None) -> list[Match | Unmatched]:
    """What every activation of a tape is part of, in the order of the tape.

    Args:
        tape: the recorded graph.
        accept: raises Refusal for a match that cannot be rewritten; then a smaller one is looked for.
    """
    found: list[Match | Unmatched] = []
    for pattern in PATTERNS:
        activations = Activations(tape, pattern.activations)
        settled: list[Match] = []
        while True:  # the root of a match is an operand of what follows
            results = list(_Search(tape, pattern, activations, settled).run(accept))
            matches = [result for result in results if isinstance(result, Match)]
            settled += matches
            if not matches or len(matches) == len(results):
                break
        found += [*settled, *(result for result in results if isinstance(result, Unmatched))]
    return sorted(
        found, key=lambda f: min(a.time for a in f.anchors) if isinstance(f, Match) else f.anchor.time
    )


class _Search:
    """The search for one pattern on one tape, beside matches that are settled."""

    def __init__(
        self, tape: Tape, pattern: Pattern, activations: Activations, settled: Sequence[Match] = ()
    ) -> None:
        self.tape = tape
        self.pattern = pattern
        self.activations = activations
        done = {anchor for match in settled for anchor in match.anchors}
        roots = {match.root for match in settled}
        self.anchors = [anchor for anchor in activations.anchors if anchor not in done]
        self.carried: dict[Value, frozenset[Value]] = {anchor: frozenset({anchor}) for anchor in self.anchors}
        self.depth: dict[Value, int] = dict.fromkeys(self.anchors, 0)
        self.reasons: dict[Value, tuple[str, Value]] = {}
        self.sealed = roots | set(self.anchors)
        reader = Reader()
        for value in tape.values:
            if value not in self.carried and value not in roots and value.op is not None:
                self._carry(reader, value, value.op)

    # -- candidates

    def _carry(self, reader: Reader, value: Value, op: Op) -> None:
        """Note the activations that a value is linear in."""
        reaching = [v for v in op.inputs if v in self.carried]
        if not reaching:
            return
        rule = reader.rule(value)
        if rule is None or rule.products is None:
            return self._stop(reaching, f"{op.name} is applied to it", value)
        carried: frozenset[Value] = frozenset()
        depth = 0
        for product in rule.products(op):
            factors = [v for v in product if v in self.carried]
            if len(factors) > 1:
                return self._stop(factors, "it is multiplied with another activation", value)
            if factors:
                carried |= self.carried[factors[0]]
                depth = max(depth, self.depth[factors[0]])
            elif rule.kind not in ("contract", "join") and not all(map(_is_zero, product or (None,))):
                return self._stop(reaching, "something else is added to it", value)
        depth += rule.kind == "contract" and len(op.args) > 1 and isinstance(op.args[1], Value)
        if carried and depth <= CONTRACTIONS:
            self.carried[value], self.depth[value] = carried, depth
            self.sealed.add(value)

    def _stop(self, values: list[Value], reason: str, at: Value) -> None:
        for value in values:
            for anchor in self.carried[value]:
                self.reasons.setdefault(anchor, (reason, at))

    def run(self, accept: Callable[[Match], None]) -> Iterator[Match | Unmatched]:
        matched: set[Value] = set()
        seen: set[Value] = set()
        refusals: dict[Value, list[NoMatch | Unreadable]] = {}
        returned = frozenset[Value]().union(*(scope.returned for scope in self.tape.scopes))
        ends = [
            v
            for v in self.carried
            if v in returned
            or not v.users
            or any(o not in self.carried for user in v.users for o in user.outputs)
        ]
        pending = sorted(ends, key=lambda v: v.time)
        while pending:
            value = pending.pop()
            root = self._root(value)
            if value in seen or self.carried[value] <= matched:
                continue
            seen.add(value)
            if root is not None and self.depth[root] > 0 and matched.isdisjoint(self.carried[root]):
                if root in seen and root is not value:
                    continue
                seen.add(root)
                value = root
                try:
                    match = self.attempt(root)
                    accept(match)
                    matched |= match.anchors
                    yield match
                    continue
                except (NoMatch, Unreadable) as error:
                    log.debug("%s is no %s: %s", root, self.pattern.name, error)
                    for anchor in self.carried[root]:
                        refusals.setdefault(anchor, []).append(error)
            if value.op is not None and value not in self.activations.anchors:
                pending += sorted((v for v in value.op.inputs if v in self.carried), key=lambda v: v.time)
        for anchor in self.anchors:
            if anchor not in matched:
                yield self._unmatched(anchor, refusals.get(anchor, []), returned)

    def _unmatched(
        self, anchor: Value, refusals: list[NoMatch | Unreadable], returned: frozenset[Value]
    ) -> Unmatched:
        """An anchor with the reason nearest to a match: a refused region's, else the smallest candidate's."""
        nearest = [e for e in refusals if isinstance(e, Refusal)][:1] or refusals[-1:]
        for error in nearest:
            at, advice = (error.at, error.advice) if isinstance(error, NoMatch) else (None, "")
            return Unmatched(self.pattern, anchor, str(error), at, advice)
        if anchor in self.reasons:
            reason, at = self.reasons[anchor]
            return Unmatched(self.pattern, anchor, f"it reaches no product with values: {reason}", at)
        if any(anchor in anchors and value in returned for value, anchors in self.carried.items()):
            reason = (
                "it leaves the graph before a product with values: it is returned, or the graph breaks there"
            )
        else:
            reason = "it reaches no product with values"
        return Unmatched(self.pattern, anchor, reason, anchor)

    def _root(self, value: Value) -> Value | None:
        """The smallest value with a node of which a value is a rearrangement."""
        root = value if self._has_node(value) else None
        reader = Reader()
        while value not in self.activations.anchors and value.op is not None:
            rule = reader.rule(value)
            if rule is None or rule.kind != "move" or rule.products is None:
                break
            value = next(v for v in itertools.chain(*rule.products(value.op)) if v in self.carried)
            root = value if self._has_node(value) else root
        return root

    @staticmethod
    def _has_node(value: Value) -> bool:
        return (
            value.op is not None
            and value.op.scope is not None
            and bool(value.handle.nodes_in(value.op.scope))
        )

    # -- normal form

    def attempt(self, root: Value) -> Match:
        """The match with a root. Raises NoMatch or Unreadable."""
        assert root.op is not None and root.op.scope is not None
        scope = root.op.scope

        def fitness(value: Value) -> int:
            """Whether a value's tensor is at hand where the root is made, or at least was before."""
            at_hand = value.node_at(scope, root.time) is not None
            lasts = value.expires == math.inf or not root.requires_grad  # until the backward, which reads it
            return at_hand + (at_hand and lasts) + bool(value.handle.nodes_in(scope))

        grad = root.op.state.grad_enabled
        for anchor in self.carried[root]:
            if anchor.op is not None and anchor.op.state.grad_enabled != grad:
                raise Refusal("grad mode changes inside it", anchor)
        reader = Reader(fitness, grad, self.sealed)
        index, terms = normal_form(root, self.activations, self.carried, reader)
        gated = [t for t in terms if any(isinstance(f, Func) for f in t.factors)]
        if len(gated) != 1:
            raise NoMatch(
                f"{len(gated)} different gated terms are added up, which are not one sum over an axis"
            )
        addends = tuple(t for t in terms if t is not gated[0])
        for term in addends:
            if len(term.factors) != 1 or not isinstance(term.factors[0], Leaf) or term.bound:
                raise NoMatch("a product without an activation is added to it")
        unification = unify(self.pattern, normal_pattern(self.pattern), gated[0], index)
        visited = {value: tuple(reader.current(i) for i in at) for value, at in reader.visited.items()}
        return Match(
            self.pattern,
            scope,
            root,
            index,
            self.carried[root],
            unification,
            addends,
            gated[0],
            visited,
            self.tape.hints,
        )


def _is_zero(value: Value | None) -> bool:
    """Whether a value is known to be zero everywhere."""
    while value is not None and value.op is not None:
        if value.op.name in ("zeros", "zeros_like", "new_zeros", "zero"):
            return True
        rule = Reader().rule(value)
        if rule is None or rule.kind != "move":
            return False
        value = next(iter(value.op.inputs))
    return False


@cache
def normal_pattern(pattern: Pattern) -> tuple[Mapping[Value, str], tuple[Index, ...], Term]:
    """A pattern's formula in normal form: (the operand of each leaf, the index of the result, the term)."""
    shapes = [
        tuple(notation.product([pattern.sizes[a] for a in dim.split()]) for dim in dims)
        for dims in pattern.operands.values()
    ]
    activation = next(iter(pattern.activations))
    tape, values, result = record_function(
        lambda *operands: pattern.formula(*operands, activation, *pattern.scalars.values()), *shapes
    )
    activations = Activations(tape, pattern.activations)
    search = _Search(tape, pattern, activations)
    index, terms = normal_form(result, activations, search.carried, Reader())
    (term,) = terms
    names = {value: name for value, name in zip(values, pattern.operands, strict=True) if value is not None}
    return names, index, term
