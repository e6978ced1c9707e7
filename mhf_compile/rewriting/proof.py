"""Prove that a rewrite computes what it replaces, exactly.

The region of a match and the pattern's formula, with the views that the rewrite makes around it, are run on
random integers modulo a prime (``field``), by the recorded ATen calls themselves (``replay``). Two programs
that agree are then equal for every value of the leaves and every elementwise function, up to the odds of
Schwartz and Zippel: degree / p an entry.

What is trusted: the tape, PyTorch's calls, the formula of the pattern, and the builder of operands, which
runs here as in the rewrite. What is not: all of ``reading`` and ``matching``; nothing of it is run here. A
match is a claim: which tensors are the operands, read at which positions, which function, which numbers.
Leaves are drawn independently, even where the program computes one from another, and so are pieces that were
not read: what holds for any values of theirs holds for those they have. Two values are the same only where
they are computed alike (``computed_alike``), whatever the reader says. Where the result has a gradient,
autograd has to follow everything that was read through: the gradients are those of the formula then, too.

Tokens are never contracted, so few of them prove as much as many. Over a work budget, and where sizes are
symbolic, the proof runs on few tokens. The sizes that the program's views name are then taken from the digits
that the reader gave to each value. A reader that is wrong is still found: the calls that take no sizes give
shapes of their own, which have to be the reader's; and a view keeps the row-major order, in which digits in
any other order than the reader's are other entries.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mhf_compile import notation
from mhf_compile.kernels.activations import hidden_of
from mhf_compile.matching.match import Match
from mhf_compile.matching.reasons import NO_ZEROS, Refusal
from mhf_compile.notation import Axis, Index, Size
from mhf_compile.rewriting.claim import claim
from mhf_compile.rewriting.field import PRIME, inverse, matmul, number
from mhf_compile.rewriting.operands import Builder, check_places
from mhf_compile.rewriting.region import Region, joined
from mhf_compile.rewriting.replay import CONSTANTS, PRODUCTS, Replay, ReplayError, Zeros
from mhf_compile.rewriting.rest import Rest
from mhf_compile.tape.recorder import record_function
from mhf_compile.tape.source import source_of
from mhf_compile.tape.values import Value

log = logging.getLogger(__name__)

BUDGET = 2**30
"""Multiply-adds of a proof on all tokens; beyond it, the proof runs on few."""
WRITTEN = 32
"""What a product that is written out before it is added up costs, in multiply-adds of a matrix product."""
REDUCED = 4
"""The size that the last token axis is reduced to; others are to 2."""


class ProofFailed(Refusal):
    """A match does not compute the pattern's formula: a rule is wrong."""


class Proofs:
    """Proves matches, each distinct region once.

    Args:
        policy: "auto", "always" (no proof stands for another region), or "never".
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.known: dict[object, str] = {}

    def prove(self, match: Match, region: Region) -> str:
        """How a match is proved: "exact", "exact, n tokens", or "not proved". Raises Refusal."""
        if self.policy == "never":
            return "not proved"
        key = claim(match, region)
        if key not in self.known or self.policy == "always":
            try:
                self.known[key] = prove(match, region.rests)
            except ProofFailed as error:
                log.warning(
                    "%s at %s", error.reason, source_of(match.root.op.node if match.root.op else None)
                )
                raise
        return self.known[key]


def prove(match: Match, rests: Sequence[Rest] = ()) -> str:
    """Prove a match, and what stays of products of which it stands for a part.

    Returns:
        ``"exact"``, or ``"exact, n tokens"`` where n tokens were run.

    Raises:
        ProofFailed: the region and the formula differ, or cannot be run.
        Refusal: what was not read is multiplied by zeros.
    """
    with torch.device("cpu"):  # whatever the default of the program is
        try:
            return _prove(match, rests)
        except Zeros as error:
            reason = f"{error.value} is multiplied by zeros in it"
            raise Refusal(reason, error.value, advice=NO_ZEROS) from error
        except ReplayError as error:
            raise ProofFailed(f"the proof failed: {error}", match.root) from error


def _prove(match: Match, rests: Sequence[Rest]) -> str:
    visited = {**match.visited}
    for rest in rests:
        visited |= {value: index for value, index in rest.between.items() if value not in visited}
    for value in visited if match.root.requires_grad else ():
        if _ends_gradients(value):
            raise ReplayError(f"gradients end at {value}, which it was read through")
    sizes, tokens = _sizes(match)
    leaf_index = _leaf_indices(match)

    def extent(size: Size) -> int:
        return notation.known(size, match.hints)

    def length(index: Index, size: Size) -> int:
        if not any(axis in sizes for axis in index.axes):
            return extent(size)
        return math.prod(sizes.get(axis, extent(axis.size)) for axis in index.axes)

    def shape(value: Value) -> tuple[int, ...]:
        index = visited.get(value) or leaf_index.get(value)
        if index is None:
            return tuple(map(extent, value.shape))
        return tuple(length(i, s) for i, s in zip(index, value.shape, strict=True))

    for leaf, index in leaf_index.items():
        for i, size in zip(index, leaf.shape, strict=True):
            check_places(i, size)
    composed = joined(
        {v for v, index in leaf_index.items() if sizes.keys().isdisjoint(a for i in index for a in i.axes)}
    )
    others = (part for value in composed if value.op is not None for part in value.op.inputs)
    drawn = dict.fromkeys((*leaf_index, *(part for part in others if part not in match.visited)))
    generator = torch.Generator().manual_seed(len(match.visited))
    known = {
        value: torch.empty(shape(value), dtype=torch.float64).random_(PRIME, generator=generator)
        for value in drawn
        if value not in composed
    }
    replay = Replay(shape, extent, known)
    replay.run({*visited, *composed})

    def call(function: str | Callable[..., Tensor], *args: Any) -> Tensor:
        result = (getattr(torch.Tensor, function) if isinstance(function, str) else function)(*args)
        if function == "reciprocal":
            return inverse(args[0])
        return result % PRIME if function in ("mul", "add", "sum") else result

    builder = Builder[Tensor](
        call,
        matmul,
        lambda value: replay.tensors[value],
        lambda axis: sizes.get(axis, extent(axis.size)),
        lambda tensor, factor: tensor * number(factor) % PRIME,
    )
    given = match.unification.operands
    operands = {name: builder.operand(operand, match) for name, operand in given.items()}
    expected = builder.root(_formula(match, operands), match)
    computed = replay.tensors[match.root]
    if computed.shape != expected.shape or not torch.equal(computed, expected):
        raise ProofFailed("the proof failed: the region does not compute the pattern's formula", match.root)
    for rest in rests:
        for value, own in builder.wanted(rest, builder.columns(rest, match)).items():
            if not torch.equal(replay.tensors[value], own % PRIME):
                raise ProofFailed(f"the proof failed: {value} is no part of {rest.columns.whole}", value)
    return "exact" if tokens is None else f"exact, {tokens} tokens"


def _ends_gradients(value: Value) -> bool:
    """Whether autograd does not follow how a value is computed of others that have gradients."""
    op = value.op
    if op is None or op.name in CONSTANTS or value.dtype is torch.bool:  # a condition has none
        return False
    if not any(given.requires_grad for given in op.inputs):
        return False
    return not (value.requires_grad and op.state.grad_enabled)


def _sizes(match: Match) -> tuple[dict[Axis, int], int | None]:
    """The sizes of token axes that a proof runs at instead of their own, and the number of tokens then."""
    roles, hints = match.unification.roles, match.hints
    tokens = [axis for role in match.pattern.tokens for axis in roles[role]]
    work = sum(_work(value, lambda size: notation.known(size, hints)) for value in match.visited)
    if work <= BUDGET and all(isinstance(axis.size, int) for axis in tokens):
        return {}, None
    # Where a part of an axis is read, its size is in the program's slices.
    parts = {
        axis
        for value, index in (*match.visited.items(), *_leaf_indices(match).items())
        for i, size in zip(index, value.shape, strict=True)
        if not i.covers(size)
        for axis in i.axes
    }
    free = {axis for index in match.index for axis in index.axes}  # as no axis is that is contracted
    free -= parts | match.pieced
    few = {axis: REDUCED if axis is tokens[-1] else 2 for axis in tokens if axis in free}
    reduced = {axis: min(size, notation.known(axis.size, hints)) for axis, size in few.items()}
    return reduced, math.prod(reduced.get(axis, notation.known(axis.size, hints)) for axis in tokens)


def _work(value: Value, extent: Callable[[Size], int]) -> int:
    """The multiply-adds of an operation that adds up; by names, as the rules are not asked here."""
    op = value.op
    made = math.prod(map(extent, value.shape))
    if op is not None and op.name in PRODUCTS:
        return made * extent(op.args[-2].shape[-1])
    if op is not None and op.name == "convolution":
        return made * extent(op.args[1].shape[1])
    if op is not None and op.name in ("sum", "mean"):
        return WRITTEN * math.prod(map(extent, op.inputs[0].shape))
    return 0


def _leaf_indices(match: Match) -> dict[Value, tuple[Index, ...]]:
    """An index of each tensor that the operands are made of."""
    indices: dict[Value, tuple[Index, ...]] = {}

    def add(value: Any, index: tuple[Index, ...]) -> None:
        if isinstance(value, Value):
            indices.setdefault(value, index)
        else:
            for part in value.parts:
                add(part, index[1:])

    for leaf in match.leaves:
        add(leaf.value, leaf.index)
    return indices


def _formula(match: Match, operands: Mapping[str, Tensor]) -> Tensor:
    """The pattern's formula modulo the prime, its scalars being tensors of no dimensions."""
    pattern, unification = match.pattern, match.unification
    given = [operands.get(name) for name in pattern.operands]
    given += [
        torch.tensor(float(number(unification.scalars[name])), dtype=torch.float64)
        for name in pattern.scalars
    ]
    count, hidden = len(pattern.operands), hidden_of(unification.activation, pattern.is_gated)
    tape, inputs, result = record_function(
        lambda *args: pattern.formula(*args[:count], hidden, *args[count:]),
        *(None if tensor is None else tuple(tensor.shape) for tensor in given),
    )
    known = {i: t for i, t in zip(inputs, given, strict=True) if i is not None and t is not None}
    replay = Replay(lambda value: tuple(int(size) for size in value.shape), int, known)
    replay.run(tape.values)
    return replay.tensors[result]
