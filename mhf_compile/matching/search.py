"""Match patterns to the values of a tape: candidates, normal form, unification.

A candidate is a value in which activations are still linear. It is read down to the operands of the gate
and up products, its terms are folded, and the result is unified with the pattern's formula in the same normal
form. The largest value that unifies is the root of a match.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import sympy
import torch

from mhf_compile import notation
from mhf_compile.matching.normal_form import normal_form
from mhf_compile.matching.reasons import NO_GRAD, NORMS, NoMatch, Refusal, nearest, not_linear
from mhf_compile.matching.unify import Unification, unify
from mhf_compile.notation import Func, Index, Leaf, Term, Unreadable
from mhf_compile.notation.fold import parts
from mhf_compile.patterns import PATTERNS, Pattern
from mhf_compile.reading.activations import Activations
from mhf_compile.reading.numbering import Alike
from mhf_compile.reading.reader import Reader, entry_axes
from mhf_compile.tape.recorder import record_function
from mhf_compile.tape.tape import Op, Scope, Tape, Value

log = logging.getLogger(__name__)

CONTRACTIONS = 6
"""A value that an activation reaches only through more products and sums than this is no candidate."""


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
    hints: Mapping[sympy.Symbol, int]
    """A value of each symbolic size that satisfies every guard."""
    alike: Alike
    """Tells which values are computed alike."""

    @property
    def hidden(self) -> int:
        """The number of hidden values, those of activation times up projection."""
        return math.prod(notation.known(self.unification.size(role), self.hints) for role in "btghef")

    @property
    def leaves(self) -> Iterator[Leaf]:
        """The leaves of the operands and of the addends."""
        for operand in self.unification.operands.values():
            yield from operand.entries
        for term in self.addends:
            yield from notation.leaves(term.factors)


@dataclass(frozen=True)
class Unmatched:
    """An activation that is in no match, and why."""

    pattern: Pattern
    anchor: Value
    why: NoMatch

    @property
    def is_pattern(self) -> bool:
        """Whether it is the pattern but for what the reason says."""
        return isinstance(self.why, Refusal)

    @property
    def rank(self) -> tuple[bool, int]:
        """How near it is to a match."""
        return self.is_pattern, self.why.progress


EVIDENT = frozenset(["silu", "gelu", "gelu_tanh", "relu", "relu_squared"])
"""Functions that are activations wherever they stand. Others, such as a router's sigmoid, are looked at after
these, and last the identity, which any product of two products has; they are in the report only where the
rest of a pattern is there."""


def find(tape: Tape, accept: Callable[[Match], None] = lambda match: None) -> list[Match | Unmatched]:
    """What every activation of a tape is part of, in the order of the tape.

    Args:
        tape: the recorded graph.
        accept: raises Refusal for a match that cannot be rewritten; then a smaller one is looked for.
    """
    activations = Activations(tape)
    evident = {anchor for anchor, name in activations.anchors.items() if name in EVIDENT}
    settled: list[Match] = []
    nearest: dict[Value, Unmatched] = {}
    others: dict[Value, frozenset[Value]] = {}  # what an activation is multiplied with
    identities = {anchor for anchor, name in activations.anchors.items() if name == "identity"}
    tiers: list[Collection[Value]] = [
        identities,
        activations.anchors.keys() - evident - identities,
        evident,
    ]
    while tiers:
        tier = tiers.pop()
        search = _Search(tape, activations, tier, settled)
        others |= {a: others.get(a, frozenset()) | search.others(a) for a in search.anchors}
        if len(groups := search.apart()) > 1:
            tiers += reversed(groups)
            continue
        for pattern in PATTERNS:
            found = list(search.run(pattern, accept))
            for result in found:
                if isinstance(result, Unmatched) and (
                    result.anchor not in nearest or result.rank > nearest[result.anchor].rank
                ):
                    nearest[result.anchor] = result
            if matches := [result for result in found if isinstance(result, Match)]:
                settled += matches
                tiers.append(tier)  # the root of a match is an operand of what follows
                break
    done = {anchor: match for match in settled for anchor in match.anchors}
    missed: list[Unmatched] = []
    for anchor, miss in nearest.items():
        if anchor in done or not (anchor in evident or miss.is_pattern):
            continue
        beside = sorted(others[anchor] & done.keys(), key=lambda a: a.time)
        weighted = next((a for a in beside if _is_operand(anchor, done[a])), None)
        if weighted is not None and not miss.is_pattern:
            reason = f"what comes of it is an operand of another feed-forward, that of {weighted}"
            miss = replace(miss, why=NoMatch(reason, anchor))
        missed.append(miss)
    return sorted(
        [*settled, *missed],
        key=lambda f: min(a.time for a in f.anchors) if isinstance(f, Match) else f.anchor.time,
    )


def _is_operand(anchor: Value, match: Match) -> bool:
    """Whether an operand of a match is computed from an activation."""
    pending = [value for leaf in match.leaves for value in parts(leaf.value)]
    seen: set[Value] = set()
    while pending:
        value = pending.pop()
        if value is anchor:
            return True
        if value.time > anchor.time and value.op is not None and value not in seen:
            seen.add(value)
            pending += value.op.inputs
    return False


class _Search:
    """The search for patterns of some activations on one tape, beside matches that are settled."""

    def __init__(
        self,
        tape: Tape,
        activations: Activations,
        anchors: Collection[Value],
        settled: Sequence[Match] = (),
    ) -> None:
        self.tape = tape
        self.activations = activations
        inside = {value for match in settled for value in (*match.anchors, *match.visited)}
        inside -= {value for match in settled for leaf in match.leaves for value in parts(leaf.value)}
        self.anchors = dict.fromkeys(sorted((a for a in anchors if a not in inside), key=lambda a: a.time))
        self.carried: dict[Value, frozenset[Value]] = {anchor: frozenset({anchor}) for anchor in self.anchors}
        self.depth: dict[Value, int] = dict.fromkeys(self.anchors, 0)
        self.reasons: dict[Value, NoMatch] = {}
        self.upstream: dict[Value, frozenset[Value]] = {}  # the anchors that an anchor is computed from
        self.sealed = {match.root for match in settled} | set(self.anchors)
        self.joined: set[Value] = set()  # carried values, parts of which may come from elsewhere
        self.summed = dict(zip(self.anchors, self.anchors, strict=True))  # each with one it is added up with
        self.rivals: list[tuple[Value, Value]] = []  # those that are multiplied with each other
        reader = Reader()
        for value in tape.values if self.anchors else ():
            if value.op is None or value in inside:
                continue
            if value in self.anchors:
                reaching = [v for v in value.op.inputs if v in self.carried]
                self.upstream[value] = frozenset[Value]().union(*(self.carried[v] for v in reaching))
                self._stop(reaching, NoMatch(f"{value.op.name} is applied to it", value))
            else:
                self._carry(reader, value, value.op)

    # -- candidates

    def _carry(self, reader: Reader, value: Value, op: Op) -> None:
        """Note the activations that a value is linear in."""
        reaching = [v for v in op.inputs if v in self.carried]
        if not reaching:
            return
        rule = reader.rule(value)
        if rule is None or rule.products is None:
            return self._stop(reaching, not_linear(op, value))
        if rule.kind == "join" or (rule.kind == "move" and not self.joined.isdisjoint(reaching)):
            shown = reader.operand(Leaf(value, entry_axes(value)))
            if shown is None or (shown.value is not value and shown.value not in self.carried):
                return  # a part that the activation is not in
            self.joined.add(value)
        carried: frozenset[Value] = frozenset()
        depth = 0
        for product in rule.products(op):
            factors = self._latest([v for v in product if v in self.carried])
            if len(factors) > 1:
                self.rivals += itertools.combinations([next(iter(self.carried[v])) for v in factors], 2)
                reason = NoMatch(f"it is multiplied with {factors[0]}, which has an activation in it", value)
                return self._stop(factors, not_linear(op, value) if op.name in NORMS else reason)
            if factors:
                if carried:
                    self.summed[self._sum(self.carried[factors[0]])] = self._sum(carried)
                carried |= self.carried[factors[0]]
                depth = max(depth, self.depth[factors[0]])
            elif rule.kind not in ("product", "sum", "join") and not _is_zero(product, reader):
                return self._stop(reaching, NoMatch("something else is added to it", value))
        depth += rule.kind in ("product", "sum")
        if carried and depth <= CONTRACTIONS:
            self.carried[value], self.depth[value] = carried, depth
            self.sealed.add(value)

    def _latest(self, factors: list[Value]) -> list[Value]:
        """The factors whose activations the others are not computed from."""
        before = frozenset[Value]().union(*(self.upstream[a] for v in factors for a in self.carried[v]))
        return [v for v in factors if not self.carried[v] <= before] or factors

    def _stop(self, values: list[Value], reason: NoMatch) -> None:
        for anchor in (anchor for value in values for anchor in self.carried[value]):
            if anchor not in self.reasons or reason.progress > self.reasons[anchor].progress:
                self.reasons[anchor] = reason

    def _sum(self, carried: frozenset[Value]) -> Value:
        """The anchor that stands for all that some are added up with, or put side by side."""
        anchor = next(iter(carried))
        while self.summed[anchor] is not anchor:
            anchor = self.summed[anchor]
        return anchor

    def others(self, anchor: Value) -> frozenset[Value]:
        """The anchors that an anchor is multiplied with, or one for each sum of them.

        Those that are added up, or put side by side, are multiplied together or not at all.
        """
        return self._others.get(self._sum(frozenset([anchor])), frozenset())

    @cached_property
    def _others(self) -> dict[Value, frozenset[Value]]:
        others: dict[Value, frozenset[Value]] = {}
        for pair in self.rivals:
            sums = frozenset(self._sum(frozenset([anchor])) for anchor in pair)
            for one in sums if len(sums) > 1 else ():
                others[one] = others.get(one, frozenset()) | sums - {one}
        return others

    def apart(self) -> list[set[Value]]:
        """The anchors in groups, no two of a group multiplied with each other; the widest come first.

        A product of two activations is linear in either one, where the other is an operand.
        """
        if not self._others:
            return [set(self.anchors)]

        def width(anchor: Value) -> int:
            return notation.known(notation.product(anchor.shape), self.tape.hints)

        groups: dict[int, set[Value]] = {}
        placed: dict[Value, int] = {}
        for anchor in sorted(self.anchors, key=width, reverse=True):
            one = self._sum(frozenset([anchor]))
            taken = {placed.get(other) for other in self.others(anchor)}
            number = placed.setdefault(one, next(n for n in itertools.count() if n not in taken))
            groups.setdefault(number, set()).add(anchor)
        return [groups[number] for number in sorted(groups)]

    def run(self, pattern: Pattern, accept: Callable[[Match], None]) -> Iterator[Match | Unmatched]:
        """The matches of a pattern, then why the other anchors are in none."""
        matched: set[Value] = set()
        seen: set[Value] = set()
        failed: dict[Value, list[NoMatch]] = {}  # of each anchor, the largest candidate's first
        returned = frozenset[Value]().union(*(scope.returned for scope in self.tape.scopes))
        ends = [
            v
            for v in self.carried
            if v in returned
            or not v.users
            or any(self.carried[v].isdisjoint(self.carried.get(o, ())) for u in v.users for o in u.outputs)
        ]
        pending = sorted(ends, key=lambda v: v.time)
        while pending:
            value = pending.pop()
            root = self._root(value)
            if root is None and self._is_end_of_call(value):
                root = value
            if value in seen or self.carried[value] <= matched:
                continue
            seen.add(value)
            if root is not None and self.depth[root] > 0 and matched.isdisjoint(self.carried[root]):
                if root in seen and root is not value:
                    continue
                seen.add(root)
                value = root
                match = None
                try:
                    match = self.attempt(pattern, root)
                    accept(match)
                    matched |= match.anchors
                    yield match
                    continue
                except (NoMatch, Unreadable) as error:
                    log.debug("%s is no %s: %s", root, pattern.name, error)
                    why = error if isinstance(error, NoMatch) else NoMatch(str(error))
                    if match is not None:  # a part of it may be refused just for being a part
                        why.progress = match.hidden
                    for anchor in self.carried[root]:
                        failed.setdefault(anchor, []).append(why)
            if value.op is not None and value not in self.anchors:
                pending += sorted((v for v in value.op.inputs if v in self.carried), key=lambda v: v.time)
        leaving = frozenset[Value]().union(*(self.carried[v] for v in ends if v in returned))
        for anchor in self.anchors:
            if anchor not in matched:
                stopped = self.reasons.get(anchor)
                why = nearest(anchor, failed.get(anchor, []), stopped, anchor in leaving)
                yield Unmatched(pattern, anchor, why)

    def _root(self, value: Value) -> Value | None:
        """The smallest value with a node of which a value is a rearrangement, or is put together again."""
        root = value if self._has_node(value) else None
        reader = Reader(self._has_node)
        while value not in self.anchors and value.op is not None:
            rule = reader.rule(value)
            if rule is None or rule.products is None:
                break
            if rule.kind == "move":
                value = next(v for v in itertools.chain(*rule.products(value.op)) if v in self.carried)
            elif rule.kind == "join":
                whole = reader.operand(Leaf(value, entry_axes(value)))
                if whole is None or whole.value is value or whole.value not in self.carried:
                    break
                assert isinstance(whole.value, Value)
                value = whole.value
            else:
                break
            root = value if self._has_node(value) else root
        return root

    def _is_end_of_call(self, value: Value) -> bool:
        """Whether a value inside a call of the program could be a root, and no rearrangement of it could."""
        if value.op is None or value.op.scope is None or value.op.scope.inside:
            return False
        moved = (o for user in value.users for o in user.outputs if o in self.carried)
        if any((rule := Reader().rule(o)) is not None and rule.kind == "move" for o in moved):
            return False
        return self.tape.is_inside(value, value.op.scope, value.time)

    @staticmethod
    def _has_node(value: Value) -> bool:
        return (
            value.op is not None
            and value.op.scope is not None
            and not value.op.scope.inside
            and bool(value.handle.nodes_in(value.op.scope))
            and not any(user.reshapes and user.writes is value for user in value.users)
        )

    # -- normal form

    def attempt(self, pattern: Pattern, root: Value) -> Match:
        """The match of a pattern with a root. Raises NoMatch or Unreadable."""
        assert root.op is not None and root.op.scope is not None
        scope = root.op.scope

        def fitness(value: Value) -> int:
            """Whether a value's tensor is at hand where the root is made, or at least was before."""
            at_hand = self.tape.is_at_hand(value, scope, root.time)
            lasts = value.expires == math.inf or not root.requires_grad  # until the backward, which reads it
            return at_hand + (at_hand and lasts) + bool(value.handle.nodes_in(scope))

        grad = root.op.state.grad_enabled
        anchors = self.carried[root]
        for anchor in anchors:
            if anchor.op is not None and anchor.op.state.grad_enabled != grad:
                kind = Refusal if self.activations.anchors[anchor] in EVIDENT else NoMatch
                raise kind("grad mode changes inside it", anchor, advice=NO_GRAD)

        def sealed(value: Value) -> bool:
            """Whether a value may be the root of another match."""
            return value in self.sealed and anchors.isdisjoint(self.carried.get(value, ()))

        reader = Reader(fitness, grad, sealed)
        index, terms = normal_form(root, self.activations, self.carried, reader)
        gated = [t for t in terms if any(isinstance(f, Func) for f in t.factors)]
        if len(gated) != 1:
            raise NoMatch(
                f"{len(gated)} different activations are added up, which are not one sum over an axis"
            )
        addends = tuple(t for t in terms if t is not gated[0])
        for term in addends:
            if not term.factors or not all(isinstance(factor, Leaf) for factor in term.factors):
                raise NoMatch("something else is added to it, or only a part of it is written")
        formula, alike = normal_pattern(pattern), self.activations.alike
        try:
            unification = unify(pattern, formula, gated[0], index, alike)
        except NoMatch as error:
            if error.at is not None and error.at.op is not None and error.at.op.state.grad_enabled != grad:
                raise NoMatch("grad mode changes inside it", error.at, error.progress, NO_GRAD) from error
            raise
        if unification.activation not in pattern.activations:
            raise Refusal(
                f"the activation is {unification.activation}, none that the op knows",
                advice=f"the op knows {', '.join(sorted(pattern.activations))}",
            )
        visited = {value: tuple(reader.current(i) for i in at) for value, at in reader.visited.items()}
        return Match(
            pattern,
            scope,
            root,
            index,
            self.carried[root],
            unification,
            addends,
            gated[0],
            visited,
            self.tape.hints,
            alike,
        )


def _is_zero(product: Sequence[Value], reader: Reader) -> bool:
    """Whether a product of tensors is one of zeros; one of none is a number."""
    return bool(product) and all(reader.operand(Leaf(v, entry_axes(v))) is None for v in product)


@cache
def normal_pattern(pattern: Pattern) -> tuple[Mapping[Value, str], tuple[Index, ...], Term]:
    """A pattern's formula in normal form: (the operand of each leaf, the index of the result, the term)."""
    shapes = [
        tuple(notation.product([pattern.sizes[a] for a in dim.split()]) for dim in dims)
        for dims in pattern.operands.values()
    ]
    tape, values, result = record_function(
        lambda *operands: pattern.formula(*operands, torch.relu, *pattern.scalars.values()), *shapes
    )
    activations = Activations(tape)
    search = _Search(tape, activations, activations.anchors)
    index, terms = normal_form(result, activations, search.carried, Reader())
    (term,) = terms
    names = {value: name for value, name in zip(values, pattern.operands, strict=True) if value is not None}
    return names, index, term
