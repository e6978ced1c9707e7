"""Rearrangements, and writes through them: an entry of the result is one entry of the argument.

Of a view there are two readings: of the view, and of its base after a write through it, which on the tape is
``scatter_view(before, written, view, output)``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mhf_compile import notation
from mhf_compile.notation import Axes, Index, Leaf, Term, Unreadable
from mhf_compile.reading.entries import Indices, dimension, entry
from mhf_compile.tape.values import Op, Value

PIECE_LIMIT = 512
"""A tensor written to piece by piece is read where it has at most so many pieces."""

# -- the same entries in the same order ---------------------------------------------------------------------


def view(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The same row-major position in another shape."""
    source: Value = op.args[0]
    return [Term(factors=(Leaf(source, axes.reshape(index, op.outputs[0].shape, source.shape)),))]


def write_view(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """All of a tensor, written in another shape."""
    before, written, *_ = op.args
    return [Term(factors=(Leaf(written, axes.reshape(index, before.shape, written.shape)),))]


def write_detached(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """All of a tensor, where autograd has nothing to follow."""
    before, written, *_ = op.args
    if before.requires_grad or written.requires_grad:
        raise Unreadable("a write that autograd does not follow")
    return write_view(op, out, index, axes)


def broadcast(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """An entry of a tensor with fewer or shorter dimensions."""
    return [Term(factors=(entry(op.args[0], index),))]


def copy(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """What is written over a tensor, broadcast."""
    return [Term(factors=(entry(op.args[1], index),))]


def repeat(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The position modulo the size of what is repeated."""
    source = op.args[0]
    index = index[len(index) - source.rank :]
    lows = (axes.divide(i, size)[1] for i, size in zip(index, source.shape, strict=True))
    return [Term(factors=(Leaf(source, tuple(lows)),))]


# -- dimensions in another order ----------------------------------------------------------------------------

Order = Callable[[Op], list[int]]
"""For each dimension of a result, the dimension of the argument that it is."""


def permuted(op: Op) -> list[int]:
    """Of permute(x, dims)."""
    return [dimension(d, op.args[0].rank) for d in op.args[1]]


def swapped(op: Op) -> list[int]:
    """Of transpose(x, dim, dim)."""
    return _swapped(op.args[0].rank, *op.args[1:3])


def transposed(op: Op) -> list[int]:
    """Of t(x), which leaves a vector as it is."""
    return _swapped(op.args[0].rank, 0, -1)


def _swapped(rank: int, first: int, second: int) -> list[int]:
    dims = list(range(rank))
    if rank:
        dims[first], dims[second] = dims[second], dims[first]
    return dims


def reorder(op: Op, out: int, index: Indices, axes: Axes, order: Order) -> list[Term]:
    """The indices, each at the dimension that it is of."""
    placed = dict(zip(order(op), index, strict=True))
    return [Term(factors=(Leaf(op.args[0], tuple(placed[d] for d in range(len(index)))),))]


def write_reordered(op: Op, out: int, index: Indices, axes: Axes, order: Order) -> list[Term]:
    """All of a tensor, written with its dimensions in another order."""
    _, written, look, _ = op.args
    return [Term(factors=(Leaf(written, tuple(index[d] for d in order(look))),))]


# -- a piece of a dimension ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """What a view shows of a dimension: every ``step``-th position from ``start``.

    It is one position and no dimension where that is not ``kept``.
    """

    dim: int
    start: int
    step: int
    kept: bool


Cut = Callable[[Op, int], Piece]
"""(operation, which output) -> the piece that it shows. Raises Unreadable."""


def selected(op: Op, out: int) -> Piece:
    """Of select(x, dim, position)."""
    return _piece(op, op.args[1], op.args[2], kept=False)


def unbound(op: Op, out: int) -> Piece:
    """Of unbind(x, dim=0)."""
    return _piece(op, op.args[1] if len(op.args) > 1 else 0, out, kept=False)


def sliced(op: Op, out: int) -> Piece:
    """Of slice(x, dim=0, start=None, end=None, step=1)."""
    defaults: tuple[Any, ...] = (0, None, None, 1)
    dim, start, _, step = op.args[1:] + defaults[len(op.args) - 1 :]
    return _piece(op, dim, 0 if start is None else start, step)


def split(op: Op, out: int) -> Piece:
    """Of a split in pieces of one size, or of several, along a dimension that is the first by default."""
    sizes, dim = op.args[1], (op.args[2] if len(op.args) > 2 else 0)
    return _piece(op, dim, sum(sizes[:out]) if isinstance(sizes, tuple) else out * sizes)


def _piece(op: Op, dim: int, start: Any, step: int = 1, kept: bool = True) -> Piece:
    source: Value = op.args[0]
    dim = dimension(dim, source.rank)
    size = source.shape[dim]
    if not isinstance(start, int) or (start and not isinstance(size, int)):
        raise Unreadable("a slice at a symbolic position")
    if isinstance(size, int):  # as PyTorch does, which takes a start outside of the dimension for its end
        start = min(max(start + size, 0) if start < 0 else start, size)
    return Piece(dim, start, step, kept)


def take(op: Op, out: int, index: Indices, axes: Axes, cut: Cut) -> list[Term]:
    """``start + step * index`` along one dimension."""
    piece = cut(op, out)
    dim = piece.dim
    if not piece.kept:
        index = (*index[:dim], Index(), *index[dim:])
    inner = index[dim].affine(piece.step, piece.start)
    return [Term(factors=(Leaf(op.args[0], (*index[:dim], inner, *index[dim + 1 :])),))]


def write_piece(op: Op, out: int, index: Indices, axes: Axes, cut: Cut) -> list[Term]:
    """A sum over the pieces of a dimension: one is written, the others are what they were."""
    before, written, look, output = op.args
    piece = cut(look, output)
    dim, start, kept = piece.dim, piece.start, piece.kept
    size = written.shape[dim] if kept else 1
    if kept and start == 0 and piece.step == 1 and size == before.shape[dim]:
        return [Term(factors=(Leaf(written, index),))]
    if size == 0:
        return [Term(factors=(Leaf(before, index),))]
    if piece.step != 1 or not isinstance(size, int) or start % size:
        raise Unreadable("a write to a part of a dimension")
    high, low = axes.divide(index[dim], size)
    count = notation.quotient(before.shape[dim], size)
    if not isinstance(count, int) or count > PIECE_LIMIT:
        raise Unreadable("a write to one of many pieces")
    terms = []
    for number in [high.offset] if not high.digits else range(count):
        if number == start // size:
            part = Leaf(written, (*index[:dim], *((low,) if kept else ()), *index[dim + 1 :]))
        else:
            part = Leaf(before, (*index[:dim], low.affine(1, number * size), *index[dim + 1 :]))
        with contextlib.suppress(LookupError):
            terms.append(Term(factors=(*notation.deltas(high, number), part)))
    return terms
