"""What carries an activation: values that are linear in it, and the activations multiplied with each other.

A candidate for a match is one of these values; where linearity ends, the reason is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from functools import cached_property

from mhf_compile import notation
from mhf_compile.matching.match import Match
from mhf_compile.matching.reasons import NORMS, NoMatch, not_linear
from mhf_compile.notation import Leaf
from mhf_compile.notation.fold import parts
from mhf_compile.reading.entries import entry
from mhf_compile.reading.reader import Reader, entry_axes
from mhf_compile.reading.rules import Kind
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Op, Value

CONTRACTIONS = 6
"""A value that an activation reaches only through more products and sums than this is no candidate."""


class Linearity:
    """Which values are linear in which activations, beside matches that are settled.

    Attributes:
        anchors: the activations, each by the value that completes it, in the order of the tape.
        of: for each value the anchors that it is linear in.
        depth: for each such value the products and sums on the way to it.
        stopped: of an anchor, what keeps further values from being linear in it.
        roots: values that may be the root of another match.
    """

    def __init__(
        self,
        tape: Tape,
        anchors: Collection[Value],
        settled: Sequence[Match] = (),
    ) -> None:
        self.tape = tape
        inside = {value for match in settled for value in (*match.anchors, *match.visited)}
        inside -= {value for match in settled for leaf in match.leaves for value in parts(leaf.value)}
        self.anchors = dict.fromkeys(sorted((a for a in anchors if a not in inside), key=lambda a: a.time))
        self.of: dict[Value, frozenset[Value]] = {anchor: frozenset({anchor}) for anchor in self.anchors}
        self.depth: dict[Value, int] = dict.fromkeys(self.anchors, 0)
        self.stopped: dict[Value, NoMatch] = {}
        self._upstream: dict[Value, frozenset[Value]] = {}  # the anchors that an anchor is computed from
        self.roots = {match.root for match in settled} | set(self.anchors)
        self._joined: set[Value] = set()  # linear values, parts of which may come from elsewhere
        self._beside = dict(zip(self.anchors, self.anchors, strict=True))  # each with one it is added up with
        self._multiplied: list[tuple[Value, Value]] = []  # those that are multiplied with each other
        reader = Reader()
        for value in tape.values if self.anchors else ():
            if value.op is None or value in inside:
                continue
            if value in self.anchors:
                reaching = [v for v in value.op.inputs if v in self.of]
                self._upstream[value] = frozenset[Value]().union(*(self.of[v] for v in reaching))
                self._stop(reaching, NoMatch(f"{value.op.name} is applied to it", value))
            else:
                self._extend(reader, value, value.op)

    def _extend(self, reader: Reader, value: Value, op: Op) -> None:
        """Note the activations that a value is linear in."""
        reaching = [v for v in op.inputs if v in self.of]
        if not reaching:
            return
        rule = reader.rule(value)
        if rule is None or rule.products is None:
            return self._stop(reaching, not_linear(op, value))
        if rule.kind is Kind.JOIN or (rule.kind is Kind.MOVE and not self._joined.isdisjoint(reaching)):
            shown = reader.operand(Leaf(value, entry_axes(value)))
            if shown is None or (shown.value is not value and shown.value not in self.of):
                return  # a part that the activation is not in
            self._joined.add(value)
        linear: frozenset[Value] = frozenset()
        depth = 0
        for product in rule.products(op):
            factors = self._latest([v for v in product if v in self.of])
            if len(factors) > 1:
                self._multiplied += itertools.combinations([next(iter(self.of[v])) for v in factors], 2)
                reason = NoMatch(f"it is multiplied with {factors[0]}, which has an activation in it", value)
                return self._stop(factors, not_linear(op, value) if op.name in NORMS else reason)
            if factors:
                if linear:
                    self._beside[self._sum_of(self.of[factors[0]])] = self._sum_of(linear)
                linear |= self.of[factors[0]]
                depth = max(depth, self.depth[factors[0]])
            elif rule.kind not in (Kind.CONTRACT, Kind.SUM, Kind.JOIN) and not (
                _is_zero(product, reader)
                or (all(self.depth[v] for v in reaching) and _is_bias(product, value, reader))
            ):
                return self._stop(reaching, NoMatch("something else is added to it", value))
        depth += rule.kind in (Kind.CONTRACT, Kind.SUM)
        if linear and depth <= CONTRACTIONS:
            self.of[value], self.depth[value] = linear, depth
            self.roots.add(value)

    def _latest(self, factors: list[Value]) -> list[Value]:
        """The factors whose activations the others are not computed from."""
        before = frozenset[Value]().union(*(self._upstream[a] for v in factors for a in self.of[v]))
        return [v for v in factors if not self.of[v] <= before] or factors

    def _stop(self, values: list[Value], reason: NoMatch) -> None:
        for anchor in (anchor for value in values for anchor in self.of[value]):
            if anchor not in self.stopped or reason.progress > self.stopped[anchor].progress:
                self.stopped[anchor] = reason

    def _sum_of(self, linear: frozenset[Value]) -> Value:
        """The anchor that stands for all that some are added up with, or put side by side."""
        anchor = next(iter(linear))
        while self._beside[anchor] is not anchor:
            anchor = self._beside[anchor]
        return anchor

    def multiplied_with(self, anchor: Value) -> frozenset[Value]:
        """The anchors that an anchor is multiplied with, or one for each sum of them.

        Those that are added up, or put side by side, are multiplied together or not at all.
        """
        return self._sums_multiplied_with.get(self._sum_of(frozenset([anchor])), frozenset())

    @cached_property
    def _sums_multiplied_with(self) -> dict[Value, frozenset[Value]]:
        others: dict[Value, frozenset[Value]] = {}
        for pair in self._multiplied:
            sums = frozenset(self._sum_of(frozenset([anchor])) for anchor in pair)
            for one in sums if len(sums) > 1 else ():
                others[one] = others.get(one, frozenset()) | sums - {one}
        return others

    def unmultiplied(self) -> list[set[Value]]:
        """The anchors in groups, no two of a group multiplied with each other; the widest come first.

        A product of two activations is linear in either one, where the other is an operand.
        """
        if not self._sums_multiplied_with:
            return [set(self.anchors)]

        def width(anchor: Value) -> int:
            return notation.known(notation.product(anchor.shape), self.tape.hints)

        groups: dict[int, set[Value]] = {}
        placed: dict[Value, int] = {}
        for anchor in sorted(self.anchors, key=width, reverse=True):
            one = self._sum_of(frozenset([anchor]))
            taken = {placed.get(other) for other in self.multiplied_with(anchor)}
            number = placed.setdefault(one, next(n for n in itertools.count() if n not in taken))
            groups.setdefault(number, set()).add(anchor)
        return [groups[number] for number in sorted(groups)]


def _is_zero(product: Sequence[Value], reader: Reader) -> bool:
    """Whether a product of tensors is one of zeros; one of none is a number."""
    return bool(product) and all(reader.operand(Leaf(v, entry_axes(v))) is None for v in product)


def _is_bias(product: Sequence[Value], value: Value, reader: Reader) -> bool:
    """Whether a product of tensors that a value is a sum of lacks an axis of the value."""
    index = entry_axes(value)
    entries = [reader.operand(entry(v, index)) for v in product]
    axes = {axis for leaf in entries if leaf is not None for axis in leaf.axes}
    return bool(product) and any(axis not in axes for i in index for axis in i.axes)
