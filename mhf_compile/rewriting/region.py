"""The region of a match: the operations that it stands for."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import torch

from mhf_compile import notation
from mhf_compile.matching.match import Match
from mhf_compile.notation.fold import parts
from mhf_compile.reading.rules import ALGEBRA, RULES, Kind, kind_of
from mhf_compile.rewriting.rest import Rest, rests
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Op, Storage, Value

NARROW = ALGEBRA | {Kind.MOVE, Kind.JOIN, Kind.CONSTANT}
"""By these an operand may be computed of leaves: its entries are no wider than theirs."""


class Region:
    """The operations that a match stands for.

    Attributes:
        leaves: the values that the operands are made of.
        values: the values that are read through, in the order of the tape.
        computed: those that are no rearrangements of leaves.
        own: those that come of a product, which nothing else may need.
    """

    def __init__(self, tape: Tape, match: Match) -> None:
        self.tape = tape
        self.match = match
        self.leaves = {value for leaf in match.leaves for value in parts(leaf.value)}
        self.values = [v for v in sorted(match.visited, key=lambda v: v.time) if v not in self.leaves]
        self.ops = {value.op for value in self.values if value.op is not None}
        self.computed: list[Value] = []
        computed: set[Value] = set()
        for value in self.values:
            assert value.op is not None
            if RULES[value.op.name].kind is not Kind.MOVE or not computed.isdisjoint(value.op.inputs):
                computed.add(value)
                self.computed.append(value)
        self.own: set[Value] = set()
        for value in self.values:
            assert value.op is not None
            narrow = RULES[value.op.name].kind in NARROW
            if not narrow or not self.own.isdisjoint(value.op.inputs):
                self.own.add(value)

    @cached_property
    def rests(self) -> list[Rest]:
        """Of products of which the match stands for some columns, and others are needed elsewhere, these."""
        escaping: dict[Value, list[Value]] = {}
        for value in self.values:
            outside = [op for op in value.users if value in self.own and not self.serves_only(op)]
            if outside and value is not self.match.root:
                made = (v for op in outside for v in op.outputs if v not in self.match.visited)
                escaping[value] = list(made)
        return rests(self.match, self.tape, self.own, escaping) if escaping else []

    def serves_only(self, op: Op) -> bool:
        """Whether nothing outside of the region needs an operation, once the region is left out."""
        if self.tape.used.isdisjoint(op.outputs):
            return True
        if op.writes is not None and op not in self.ops:
            return False
        for value in op.outputs:
            if value in self.match.visited and value not in self.leaves:
                continue  # it is looked at on its own
            if value in self.leaves or value in self.match.scope.returned:
                return False
            if not all(self.serves_only(user) for user in value.users):
                return False
        return True

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the op: the widest that the region contracts in."""
        dtypes = [
            v.dtype
            for op in self.ops
            if RULES[op.name].kind is Kind.CONTRACT
            for v in op.inputs
            if v.dtype.is_floating_point
        ]
        dtypes = dtypes or [v.dtype for v in self.computed]
        widest = dtypes[0]
        for dtype in dtypes:
            widest = torch.promote_types(widest, dtype)
        return widest

    @property
    def saved(self) -> notation.Size:
        """The bytes of the region's own values that autograd keeps for the backward."""
        computed = set(self.computed)
        sizes: dict[Storage, notation.Size] = {}
        for op in self.ops:
            if not any(value.requires_grad for value in op.outputs):
                continue
            for value in RULES[op.name].kept(op):
                if value in computed:
                    sizes[value.storage] = notation.times(notation.product(value.shape), value.dtype.itemsize)
        total: notation.Size = 0
        for size in sizes.values():
            total = notation.size_of(total + size)
        return total


def joined(leaves: Collection[Value]) -> set[Value]:
    """Leaves that are put together of others, as a stack whose parts are leaves too, and what is between."""
    pending = [leaf for leaf in leaves if kind_of(leaf.op) is Kind.JOIN]
    below: set[Value] = set()
    while pending:
        value = pending.pop()
        if value.op is not None and value not in below and kind_of(value.op) in (Kind.MOVE, Kind.JOIN):
            below.add(value)
            pending += value.op.inputs
    between: set[Value] = set()
    for value in sorted(below, key=lambda value: value.time):
        if value.op is not None and any(part in leaves or part in between for part in value.op.inputs):
            between.add(value)
    return between
