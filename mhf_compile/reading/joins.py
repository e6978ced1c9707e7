"""Concatenations: a sum over the pieces, each where the index is in it."""

from __future__ import annotations

from mhf_compile import notation
from mhf_compile.notation import Axes, Axis, Delta, Index, Leaf, Size, Term, Unreadable
from mhf_compile.reading.entries import Indices, dimension
from mhf_compile.tape.values import Op, Value


def join(op: Op, out: int, index: Indices, axes: Axes, stacked: bool = False) -> list[Term]:
    """Of cat(pieces, dim=0); of stack(pieces, dim=0), where each piece is one position of a new dimension."""
    pieces: tuple[Value, ...] = tuple(piece for piece in op.args[0] if 0 not in piece.shape) or op.args[0]
    dim = dimension(op.args[1] if len(op.args) > 1 else 0, op.outputs[0].rank)
    before, here, after = index[:dim], index[dim], index[dim + 1 :]
    sizes = [1 if stacked else piece.shape[dim] for piece in pieces]
    start: Size = 0
    for piece, size in zip(pieces, sizes, strict=True):  # an index that stays within one piece
        if notation.at_most(start, here.offset) and notation.at_most(
            here.last, notation.size_of(start + size - 1)
        ):
            inner = () if stacked else (here.affine(1, notation.size_of(-start)),)
            return [Term(factors=(Leaf(piece, (*before, *inner, *after)),))]
        start = notation.size_of(start + size)
    if len(set(sizes)) != 1:
        return _uneven(pieces, dim, index)
    high, low = axes.divide(here, sizes[0])
    inner = () if stacked else (low,)
    terms = []
    for number, piece in enumerate(pieces):
        try:
            where = notation.deltas(high, number)
        except LookupError:  # the index never reaches this piece
            continue
        terms.append(Term(factors=(*where, Leaf(piece, (*before, *inner, *after)))))
    return terms


def _uneven(pieces: tuple[Value, ...], dim: int, index: Indices) -> list[Term]:
    """Pieces of several sizes: each along an axis of its own, on which the index runs from a start."""
    before, here, after = index[:dim], index[dim], index[dim + 1 :]
    numbers = [here.offset, *(piece.shape[dim] for piece in pieces)]
    match here.digits:
        case ((1, axis),) if all(isinstance(n, int) for n in (*numbers, axis.size)):
            first, last = int(here.offset), int(here.last)
        case _:
            raise Unreadable("a part of pieces of several sizes")
    terms = []
    start = 0
    for piece, size in zip(pieces, map(int, numbers[1:]), strict=True):
        low, high = max(start, first), min(start + size - 1, last)
        if low <= high:
            inner = Index.over(Axis(high - low + 1)) if high > low else Index()
            factors = (
                Delta(axis, inner.affine(1, low - first)),
                Leaf(piece, (*before, inner.affine(1, low - start), *after)),
            )
            terms.append(Term(factors=factors, bound=inner.axes))
        start += size
    return terms
