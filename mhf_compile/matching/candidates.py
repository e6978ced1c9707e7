"""Candidates: the values that may be the root of a match, the largest first."""

from __future__ import annotations

import itertools

from mhf_compile.matching.linearity import Linearity
from mhf_compile.notation import Leaf
from mhf_compile.reading.reader import Reader, entry_axes
from mhf_compile.reading.rules import Kind
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Value


class Candidates:
    """The values of a tape, linear in some activation, that may be the root of a match.

    Attributes:
        ends: the values behind which linearity ends, in the order of the tape.
        leaving: the anchors of the ends that leave the graph.
    """

    def __init__(self, tape: Tape, linearity: Linearity) -> None:
        self.tape = tape
        self.linearity = linearity
        of = linearity.of
        returned = frozenset[Value]().union(*(scope.returned for scope in tape.scopes))
        ends = [
            v
            for v in of
            if v in returned
            or not v.users
            or any(of[v].isdisjoint(of.get(o, ())) for u in v.users for o in u.outputs)
        ]
        self.ends = sorted(ends, key=lambda v: v.time)
        self.leaving = frozenset[Value]().union(*(of[v] for v in ends if v in returned))

    def root(self, value: Value) -> Value | None:
        """The root of the smallest match that could stand for a value, if any."""
        root = self._root(value)
        return value if root is None and self._is_end_of_call(value) else root

    def within(self, value: Value) -> list[Value]:
        """The values, linear in an activation too, that a value is made of, in the order of the tape."""
        if value.op is None or value in self.linearity.anchors:
            return []
        return sorted((v for v in value.op.inputs if v in self.linearity.of), key=lambda v: v.time)

    def _root(self, value: Value) -> Value | None:
        """The smallest value with a node of which a value is a rearrangement, or is put together again."""
        root = value if self._has_node(value) else None
        reader = Reader(self._has_node)
        while value not in self.linearity.anchors and value.op is not None:
            rule = reader.rule(value)
            if rule is None or rule.products is None:
                break
            if rule.kind is Kind.MOVE:
                value = next(v for v in itertools.chain(*rule.products(value.op)) if v in self.linearity.of)
            elif rule.kind is Kind.JOIN:
                whole = reader.operand(Leaf(value, entry_axes(value)))
                if whole is None or whole.value is value or whole.value not in self.linearity.of:
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
        moved = (o for user in value.users for o in user.outputs if o in self.linearity.of)
        if any((rule := Reader().rule(o)) is not None and rule.kind is Kind.MOVE for o in moved):
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
