"""Which activations stand between two products with weights, as that of a feed-forward does.

In front, an activation is computed, entry by entry, from products of something with a weight. Behind, what is
computed from it, entry by entry, is contracted with a weight: on the way it may be multiplied with further
such products, or with what has fewer entries, and no other tensor is added to it. An activation of an
embedding has no product in front; one that is mixed with its argument, as in a highway network, or multiplied
with the state of a recurrence, has none behind.

This tells what else is a feed-forward from what is none; whether it can be rewritten is not asked here. So
what the search cannot go through, such as a norm, is gone through.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mhf_compile import notation
from mhf_compile.notation import Axes, Size, Unreadable
from mhf_compile.reading.reader import FLOATS, entry_axes
from mhf_compile.reading.rules import ALGEBRA, RULES, Kind, kind_of
from mhf_compile.tape.operations import CREATIONS, GATHERS, WHOLE_PRODUCTS
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Op, Value

Factors = tuple[Value, ...]


class BetweenProducts:
    """The activations of a tape that stand between two products.

    Attributes:
        behind: for each of them the products behind it, each by its result; or what leaves its graph, where
            that is only a part of the program.
    """

    def __init__(self, tape: Tape, anchors: Collection[Value]) -> None:
        self.behind: dict[Value, set[Value]] = {}
        self._hints = tape.hints
        self._anchors = anchors
        self._weights: set[Value] = set()  # what no product is in
        self._scores: set[Value] = set()  # what is made of products with weights
        self._carried: dict[Value, frozenset[Value]] = {}  # the anchors in what may be a hidden value
        for value in tape.values if anchors else ():
            op = value.op
            if op is None:
                self._weights.add(value)
            elif (factors := self._factors(op)) is not None:
                self._contract(value, factors)
            else:
                self._go_through(value, op)
        for scope in tape.scopes:
            for value in scope.returned if scope.is_part else ():
                self._note(value, self._carried.get(value, ()))

    def _factors(self, op: Op) -> Factors | None:
        """What a product contracts: nothing if it contracts positions as well; None of what is no product."""
        if op.name in WHOLE_PRODUCTS:
            return op.inputs
        rule = RULES.get(op.name)
        if rule is None or rule.products is None:
            return None
        if rule.kind is Kind.CONTRACT:
            try:
                rule.read(op, 0, entry_axes(op.outputs[0]), Axes())
            except (Unreadable, LookupError):
                return ()
            return next(tuple(product) for product in rule.products(op) if len(product) > 1)
        if rule.kind is Kind.SUM:  # of a product of each entry with each
            (source,) = op.inputs
            product = source.op.inputs if kind_of(source.op) is Kind.MULTIPLY and source.op else ()
            return product if product and self._are_narrower(product, source) else None
        return None

    def _contract(self, value: Value, factors: Factors) -> None:
        """Note a product: that it is a score, and which anchors it is behind of."""
        weights = [v for v in factors if v in self._weights]
        if weights:
            self._scores.add(value)
        for factor in factors:
            if any(weight is not factor for weight in weights):
                self._note(value, self._carried.get(factor, ()))

    def _note(self, behind: Value, anchors: Collection[Value]) -> None:
        for anchor in anchors:
            self.behind.setdefault(anchor, set()).add(behind)

    def _go_through(self, value: Value, op: Op) -> None:
        """Note what a value is that is computed entry by entry, or is a rearrangement."""
        if op.name in CREATIONS or (op.name not in GATHERS and self._weights.issuperset(op.inputs)):
            self._weights.add(value)
        inputs = _numbers(op)
        others = [v for v in inputs if v not in self._scores]
        is_score = len(others) < len(inputs) and self._may_join(others, value, op)
        carried = self._carries(value, op, inputs)
        if is_score:
            self._scores.add(value)
        is_given = op.scope is not None and op.scope.is_part and value in self._weights
        if value in self._anchors and (is_score or is_given):  # what a part is given may be a score
            carried |= {value}
        if carried:
            self._carried[value] = carried

    def _carries(self, value: Value, op: Op, inputs: Sequence[Value]) -> frozenset[Value]:
        """The anchors in a value, where it may still be the hidden value."""
        sets = [self._carried[v] for v in inputs if v in self._carried]
        others = [v for v in inputs if v not in self._carried]
        if not sets:
            return frozenset()
        if kind_of(op) is Kind.ADD:
            if not (self._weights.issuperset(others) and self._are_narrower(others, value)):
                return frozenset()  # all but a bias
            mixing = frozenset.intersection(*sets)  # a gate that mixes two tensors is in both addends
            return mixing or frozenset().union(*sets)
        if not self._may_join([v for v in others if v not in self._scores], value, op):
            return frozenset()
        if kind_of(op) in ALGEBRA and self._are_narrower([v for v in inputs if v in self._carried], value):
            return frozenset()
        return frozenset().union(*sets)

    def _may_join(self, others: Sequence[Value], value: Value, op: Op) -> bool:
        """Whether others may stand beside scores, or hidden values, in an operation."""
        kind = kind_of(op)
        if kind is None and sum(v not in self._weights for v in _numbers(op)) > 1:
            return False
        multiplies = kind is None or kind in ALGEBRA - {Kind.ADD}
        beside = [v for v in others if v not in self._weights]
        return kind is Kind.JOIN or not beside or (multiplies and self._are_narrower(beside, value))

    def _are_narrower(self, values: Sequence[Value], than: Value) -> bool:
        """Whether each has fewer entries than another value."""
        return all(self._entries(value.shape) < self._entries(than.shape) for value in values)

    def _entries(self, shape: tuple[Size, ...]) -> int:
        return notation.known(notation.product(shape), self._hints)


def _numbers(op: Op) -> list[Value]:
    """The inputs that are no positions and no conditions."""
    return [v for v in op.inputs if v.dtype in FLOATS or (v.op is not None and v.op.name == "_to_copy")]
