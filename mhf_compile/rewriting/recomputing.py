"""Casts and copies of what a fused call keeps: made again in the backward, rather than kept beside it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from mhf_compile.matching.match import Match
from mhf_compile.reading.reader import Reader
from mhf_compile.reading.rules import Kind
from mhf_compile.rewriting.region import Region
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Op, Value

RECOMPUTE = "recompute"
"""Where AOTAutograd's partitioners look for a policy of a node."""


def recompute_copies(match: Match, region: Region, tape: Tape) -> None:
    """Tell the partitioner not to keep what is copied of a kept operand, such as a router's float32 input.

    By itself it keeps what goes into a product of the backward, since a cast that does has to be written out
    there once more. But the operand is kept as well, and its cast is twice as large.
    """
    if match.scope.callers:  # a body has policies of its own
        return
    for node in _copies(_kept(match, region), match, tape):
        node.meta.setdefault(RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE)


def _kept(match: Match, region: Region) -> Iterator[Value]:
    """The values that the call keeps as they are, or views of them."""
    for operand in match.unification.operands.values():
        leaf = operand.leaf
        if leaf is not None and isinstance(leaf.value, Value) and leaf.value.dtype == region.dtype:
            yield leaf.value


def _copies(kept: Iterator[Value], match: Match, tape: Tape) -> Iterator[fx.Node]:
    """The nodes by which entries of kept values, and nothing else, are moved and cast; views too."""
    pending = list(kept)
    seen = set(pending)
    while pending:
        for op in pending.pop().users:
            ops = tape.issued.get(op.node, []) if op.node is not None and op.scope is match.scope else []
            made = {value for one in ops for value in one.outputs}
            if ops and all(_moves(one) and seen.union(made).issuperset(one.inputs) for one in ops):
                pending += made - seen
                seen |= made
                assert op.node is not None
                yield op.node


def _moves(op: Op) -> bool:
    if op.writes is not None or op.random:
        return False
    rules = map(Reader().rule, op.outputs)
    return all(rule is not None and rule.kind is Kind.MOVE for rule in rules)
