"""Match patterns to the values of a tape: candidates, normal form, unification.

A candidate is a value in which activations are still linear. It is read down to the operands of the gate
and up products, its terms are folded, and the result is unified with the pattern's formula in the same normal
form. The largest value that unifies is the root of a match.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from mhf_compile.kernels.activations import hidden_of, is_expression
from mhf_compile.matching.between import BetweenProducts
from mhf_compile.matching.candidates import Candidates
from mhf_compile.matching.linearity import Linearity
from mhf_compile.matching.match import Match, Unmatched
from mhf_compile.matching.normal_form import normal_form
from mhf_compile.matching.reasons import NO_GRAD, NeededElsewhere, NoMatch, Progress, Refusal, Stage, nearest
from mhf_compile.matching.unify import unify
from mhf_compile.notation import Func, Index, Leaf, Term, Unreadable
from mhf_compile.notation.fold import parts
from mhf_compile.patterns import PATTERNS, Pattern
from mhf_compile.reading.activations import Activations
from mhf_compile.reading.reader import Reader
from mhf_compile.tape.recorder import record_function
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Value

log = logging.getLogger(__name__)

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
    names = activations.anchors
    behind = BetweenProducts(tape, names).behind
    evident = {anchor for anchor in names if not EVIDENT.isdisjoint(activations.names.get(anchor, ()))}
    identities = {anchor for anchor, name in names.items() if name == "identity"}
    waiting: list[Collection[Value]] = [identities, names.keys() - evident - identities, evident]
    settled: list[Match] = []
    missed: dict[Value, Unmatched] = {}
    multiplied: dict[Value, frozenset[Value]] = {}  # what an activation is multiplied with
    while waiting:
        anchors = waiting.pop()
        linearity = Linearity(tape, anchors, settled)
        for anchor in linearity.anchors:
            multiplied[anchor] = multiplied.get(anchor, frozenset()) | linearity.multiplied_with(anchor)
        if len(groups := linearity.unmultiplied()) > 1:
            waiting += reversed(groups)
            continue
        for pattern in PATTERNS:
            matches, unmatched = _Search(tape, activations, linearity, pattern, behind).run(accept)
            for miss in unmatched:
                if miss.anchor not in missed or miss.rank > missed[miss.anchor].rank:
                    missed[miss.anchor] = miss
            if matches:
                settled += matches
                waiting.append(anchors)  # the root of a match is an operand of what follows
                break
    done = {anchor: match for match in settled for anchor in match.anchors}
    told: list[Unmatched] = []
    for anchor, miss in ((anchor, miss) for anchor, miss in missed.items() if anchor not in done):
        user = _user(anchor, multiplied[anchor], done)
        if anchor in evident:
            told.append(miss if miss.is_pattern or user is None else _as_operand(miss, user))
        elif miss.is_pattern and user is None:
            told.append(miss)
    return sorted([*settled, *_each_once(told, behind)], key=lambda one: one.time)


def _each_once(missed: Sequence[Unmatched], behind: Mapping[Value, set[Value]]) -> Iterator[Unmatched]:
    """Of the activations of one feed-forward the one that is nearest to a match; and those of none.

    They have the same reason, that of the match that they are in, or the same products behind them.
    """
    told: dict[object, Unmatched] = {}
    for miss in {miss.why if miss.is_pattern else miss.anchor: miss for miss in reversed(missed)}.values():
        if not miss.is_pattern and miss.anchor not in behind:
            yield replace(miss, is_feed_forward=False)
            continue
        key = frozenset(behind.get(miss.anchor, {miss.anchor}))
        told[key] = max(told.get(key, miss), miss, key=lambda one: (one.rank, -one.time))
    yield from told.values()


def _user(anchor: Value, others: Collection[Value], done: Mapping[Value, Match]) -> Value | None:
    """Of what an activation is multiplied with the first in whose match it is in an operand."""
    beside = sorted((other for other in others if other in done), key=lambda other: other.time)
    return next((other for other in beside if _is_operand(anchor, done[other])), None)


def _as_operand(miss: Unmatched, user: Value) -> Unmatched:
    """What is said of an activation that is in an operand of another one's match."""
    reason = f"what comes of it is an operand of another feed-forward, that of {user}"
    return replace(miss, why=NoMatch(reason, miss.anchor))


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
    """The search for a pattern of some activations on one tape."""

    def __init__(
        self,
        tape: Tape,
        activations: Activations,
        linearity: Linearity,
        pattern: Pattern,
        behind: Collection[Value],
    ) -> None:
        self.tape = tape
        self.behind = behind
        self.activations = activations
        self.linearity = linearity
        self.pattern = pattern

    def run(self, accept: Callable[[Match], None]) -> tuple[list[Match], list[Unmatched]]:
        """The matches, and why the other anchors are in none."""
        matches: list[Match] = []
        matched: set[Value] = set()
        seen: set[Value] = set()
        failed: dict[Value, list[NoMatch]] = {}  # of each anchor, the largest candidate's first
        candidates, linear = Candidates(self.tape, self.linearity), self.linearity.of
        pending = list(candidates.ends)
        while pending:
            value = pending.pop()
            if value in seen or linear[value] <= matched:
                continue
            seen.add(value)
            root = candidates.root(value)
            if root is not None and self.linearity.depth[root] > 0 and matched.isdisjoint(linear[root]):
                if root in seen and root is not value:
                    continue
                seen.add(root)
                value = root
                match = None
                try:
                    match = self._match(root)
                    accept(match)
                    matched |= match.anchors
                    matches.append(match)
                    continue
                except (NoMatch, Unreadable) as error:
                    log.debug("%s is no %s: %s", root, self.pattern.name, error)
                    why = error if isinstance(error, NoMatch) else NoMatch(str(error))
                    if match is not None:  # a part of it may be refused just for being a part
                        why.progress = Progress(Stage.MATCH, match.hidden)
                    for anchor in linear[root]:
                        larger = failed.get(anchor, [])
                        failed[anchor] = [*(one for one in larger if not _is_behind(one, why, root)), why]
            pending += candidates.within(value)
        unmatched: list[Unmatched] = []
        for anchor in self.linearity.anchors:
            if anchor not in matched:
                stopped = self.linearity.stopped.get(anchor)
                leaves, behind = anchor in candidates.leaving, anchor in self.behind
                why = nearest(anchor, failed.get(anchor, []), stopped, leaves, behind)
                unmatched.append(Unmatched(self.pattern, anchor, why))
        return matches, unmatched

    def _reader(self, root: Value) -> Reader:
        """What reads a candidate, and knows which values are the better operands where it is made."""
        assert root.op is not None and root.op.scope is not None
        scope, linear = root.op.scope, self.linearity.of

        def availability(value: Value) -> int:
            """Whether a value's tensor is at hand where the root is made, or at least was before."""
            at_hand = self.tape.is_at_hand(value, scope, root.time)
            lasts = value.expires == math.inf or not root.requires_grad  # until the backward, which reads it
            return at_hand + (at_hand and lasts) + bool(value.handle.nodes_in(scope))

        def may_be_root(value: Value) -> bool:
            """Whether a value may be the root of another match."""
            return value in self.linearity.roots and linear[root].isdisjoint(linear.get(value, ()))

        return Reader(availability, root.op.state.grad_enabled, may_be_root)

    def _match(self, root: Value) -> Match:
        """The match of a pattern with a root. Raises NoMatch or Unreadable."""
        assert root.op is not None and root.op.scope is not None
        pattern, scope = self.pattern, root.op.scope

        grad = root.op.state.grad_enabled
        anchors = self.linearity.of[root]
        for anchor in anchors:
            if anchor.op is not None and anchor.op.state.grad_enabled != grad:
                names = self.activations.names.get(anchor, frozenset())
                kind = NoMatch if EVIDENT.isdisjoint(names) else Refusal
                raise kind("grad mode changes inside it", anchor, advice=NO_GRAD)

        reader = self._reader(root)
        index, terms = normal_form(root, self.activations, self.linearity.of, reader)
        gated = [t for t in terms if any(isinstance(f, Func) for f in t.factors)]
        if len(gated) != 1:
            raise NoMatch(
                f"{len(gated)} different activations are added up, which are not one sum over an axis"
            )
        addends = tuple(t for t in terms if t is not gated[0])
        for term in addends:
            if not term.factors or not all(isinstance(factor, Leaf) for factor in term.factors):
                raise NoMatch("something else is added to it, or only a part of it is written")
        formula, numbering = normal_pattern(pattern), self.activations.numbering
        try:
            unification = unify(pattern, formula, gated[0], index, numbering)
        except NoMatch as error:
            if error.at is not None and error.at.op is not None and error.at.op.state.grad_enabled != grad:
                raise NoMatch("grad mode changes inside it", error.at, error.progress, NO_GRAD) from error
            raise
        activation = unification.activation
        if activation not in pattern.activations and not is_expression(activation, pattern.is_gated):
            raise Refusal(
                f"the activation is {activation}, none that the op knows",
                advice=f"the op knows {', '.join(sorted(pattern.activations))}",
            )
        visited = {value: tuple(reader.axes.current(i) for i in at) for value, at in reader.visited.items()}
        return Match(
            pattern,
            scope,
            root,
            index,
            anchors,
            unification,
            addends,
            gated[0],
            visited,
            frozenset(reader.axes.pieced),
            self.tape.hints,
            numbering,
        )


def _is_behind(larger: NoMatch, smaller: NoMatch, root: Value) -> bool:
    """Whether a match is refused for what is done with all of a smaller one with as many hidden values."""
    same = larger.progress == smaller.progress and isinstance(larger, NeededElsewhere)
    return same and larger.at is not None and larger.at.time >= root.time


@cache
def normal_pattern(pattern: Pattern) -> tuple[Mapping[Value, str], tuple[Index, ...], Term]:
    """A pattern's formula in normal form: (the operand of each leaf, the index of the result, the term)."""
    hidden = hidden_of("relu", pattern.is_gated)
    shapes = [pattern.shape(slot.dims) for slot in pattern.operands.values()]
    tape, values, result = record_function(
        lambda *operands: pattern.formula(*operands, hidden, *pattern.scalars.values()), *shapes
    )
    activations = Activations(tape)
    linearity = Linearity(tape, activations.anchors)
    index, terms = normal_form(result, activations, linearity.of, Reader())
    (term,) = terms
    names = {value: name for value, name in zip(values, pattern.operands, strict=True) if value is not None}
    return names, index, term
