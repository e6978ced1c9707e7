"""One rule per ATen operation: which entries of its arguments an entry of its result is made of.

A rule pushes an index down through an operation, as a sum of products. What no rule knows is a leaf.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from mhf_compile import notation
from mhf_compile.notation import Axes, Axis, Delta, Func, Index, Leaf, Size, Term, Unreadable
from mhf_compile.tape.tape import Op, Value

Indices = tuple[Index, ...]

PIECE_LIMIT = 512
"""A tensor written to piece by piece is read where it has at most so many pieces."""

# -- the shape of an operation ------------------------------------------------------------------------------


def _dim(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def _entry(value: Value, index: Indices) -> Leaf:
    """The entry of a value that is broadcast to the rank of an index."""
    index = index[len(index) - value.rank :]
    return Leaf(value, tuple(Index() if size == 1 else i for i, size in zip(index, value.shape, strict=True)))


_IRRATIONAL = (math.sqrt(0.5), math.sqrt(2 / math.pi))
"""Numbers of the definitions of gelu: what is written for them may differ in the last places."""


def scalar(number: object) -> Fraction:
    """A number of a program. Raises Unreadable where it is none, or not finite."""
    if not isinstance(number, (int, float)) or not math.isfinite(number):
        raise Unreadable(f"the scalar {number}")
    for known in _IRRATIONAL:
        if math.isclose(number, known, rel_tol=1e-15):
            return Fraction(known)
        if math.isclose(number * known, 1, rel_tol=1e-15):
            return 1 / Fraction(known)
    return Fraction(number)


def _inverse(number: object) -> Fraction:
    divisor = scalar(number)
    if divisor == 0:
        raise Unreadable("a division by zero")
    return 1 / divisor


def _factor(operand: object, index: Indices, coefficient: Fraction = Fraction(1)) -> Term:
    if isinstance(operand, Value):
        return Term(coefficient, (_entry(operand, index),))
    return Term(coefficient * scalar(operand))


def multiply(*terms: Term) -> Term:
    """The product of terms that share no bound axis."""
    coefficient = math.prod((t.coefficient for t in terms), start=Fraction(1))
    return Term(coefficient, sum((t.factors for t in terms), ()), sum((t.bound for t in terms), ()))


# -- rules: (operation, which output, which entry, the axes) -> terms ---------------------------------------


def _view(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    return [Term(factors=(Leaf(op.args[0], axes.reshape(index, op.outputs[0].shape, op.args[0].shape)),))]


def permutation(op: Op) -> list[int]:
    """For each dimension of the result of permute, t or transpose, the argument's."""
    rank = op.args[0].rank
    dims = list(range(rank))
    if op.name == "permute":
        return [_dim(d, rank) for d in op.args[1]]
    first, second = (0, 1) if op.name == "t" else (_dim(op.args[1], rank), _dim(op.args[2], rank))
    if rank > 1:
        dims[first], dims[second] = dims[second], dims[first]
    return dims


def _permute(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    placed = dict(zip(permutation(op), index, strict=True))
    return [Term(factors=(Leaf(op.args[0], tuple(placed[d] for d in range(len(index)))),))]


def _broadcast(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    return [Term(factors=(_entry(op.args[0], index),))]


def _repeat(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    source = op.args[0]
    index = index[len(index) - source.rank :]
    lows = (axes.divide(i, size)[1] for i, size in zip(index, source.shape, strict=True))
    return [Term(factors=(Leaf(source, tuple(lows)),))]


def _select(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    source, dim, start, stride, kept = slicing(op, out)
    if not kept:
        index = (*index[:dim], Index(), *index[dim:])
    inner = index[dim].affine(stride, start)
    return [Term(factors=(Leaf(source, (*index[:dim], inner, *index[dim + 1 :])),))]


def slicing(op: Op, out: int) -> tuple[Value, int, int, int, bool]:
    """A select, slice, split or unbind as (source, dim, start, step, whether the dim is kept)."""
    source: Value = op.args[0]
    arguments = [*op.args[1:], *([0] if len(op.args) == 1 else [])]
    if op.name == "slice":
        defaults: tuple[Any, ...] = (0, None, None, 1)
        dim, start, _, step = op.args[1:] + defaults[len(op.args) - 1 :]
        kept, start = True, 0 if start is None else start
    elif op.name == "select":
        dim, start, step, kept = arguments[0], arguments[1], 1, False
    elif op.name == "unbind":
        dim, start, step, kept = arguments[0], out, 1, False
    else:
        sizes, dim = arguments[0], (arguments[1] if len(arguments) > 1 else 0)
        start = sum(sizes[:out]) if isinstance(sizes, tuple) else out * sizes
        step, kept = 1, True
    dim = _dim(dim, source.rank)
    if not isinstance(start, int) or (start and not isinstance(source.shape[dim], int)):
        raise Unreadable("a slice at a symbolic position")
    size = source.shape[dim]
    if isinstance(size, int):  # as PyTorch does, which takes a start outside of the dimension for its end
        start = min(max(start + size, 0) if start < 0 else start, size)
    return source, dim, start, step, kept


def _matmul(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """mm, bmm, mv, and addmm, baddbmm: beta * bias + alpha * a @ b."""
    *bias, a, b = op.args
    axis = Axis(a.shape[-1])
    inner = Index.over(axis) if axis.size != 1 else Index()
    rows, columns = index[: a.rank - 1], index[a.rank - 1 :]
    left, right = (
        Leaf(a, (*rows, inner)),
        Leaf(b, (*rows[: b.rank - 2], inner, *columns) if b.rank > 1 else (inner,)),
    )
    terms = [Term(scalar(op.kwargs.get("alpha", 1)), (left, right), (axis,) * (axis.size != 1))]
    beta = scalar(op.kwargs.get("beta", 1))
    return [_factor(term, index, beta) for term in bias if beta] + terms


def _convolution(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A convolution of kernel 1, which is a product of channels, in each of its groups."""
    source, weight, bias, stride, padding, _, transposed, _, groups = op.args
    if transposed or {1, *weight.shape[2:], *stride} != {1} or {0, *padding} != {0}:
        raise Unreadable("a convolution of several positions")
    batch, channel, *places = index
    axis = Axis(weight.shape[1])
    inner = Index.over(axis) if axis.size != 1 else Index()
    group, _ = axes.divide(channel, notation.size_of(weight.shape[0] // groups))
    own = notation.flatten((group, inner), (groups, axis.size))
    factors = (
        Leaf(source, (batch, own, *places)),
        Leaf(weight, (channel, inner, *(Index() for _ in places))),
    )
    terms = [Term(factors=factors, bound=(axis,) * (axis.size != 1))]
    return [*terms, Term(factors=(Leaf(bias, (channel,)),))] if bias is not None else terms


def _pow(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A small whole power: a product."""
    base, exponent = op.args
    if not isinstance(base, Value) or exponent not in POWERS:
        raise Unreadable(f"the power {exponent}")
    return [multiply(*[_factor(base, index)] * int(exponent))]


POWERS = (1, 2, 3, 4)
"""The powers that are read as products."""


def _mul(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    return [multiply(_factor(op.args[0], index), _factor(op.args[1], index))]


def _div(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    if op.kwargs.get("rounding_mode") is not None:
        raise Unreadable("a division that rounds")
    above, below = op.args
    if not isinstance(below, Value):
        return [_factor(above, index, _inverse(below))]
    return [multiply(_factor(above, index), Term(factors=(Func("reciprocal", _entry(below, index)),)))]


def _add(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """add, sub and rsub."""
    alpha = scalar(op.kwargs.get("alpha", op.args[2] if len(op.args) > 2 else 1))
    signs = {"add": (Fraction(1), alpha), "sub": (Fraction(1), -alpha), "rsub": (-alpha, Fraction(1))}[
        op.name
    ]
    return [_factor(a, index, sign) for a, sign in zip(op.args, signs, strict=False)]


def _addcmul(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    value = scalar(op.kwargs.get("value", 1))
    product = multiply(_factor(op.args[1], index, value), _factor(op.args[2], index))
    return [_factor(op.args[0], index), product]


def _neg(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    return [_factor(op.args[0], index, Fraction(-1))]


def _sum(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """Sum and mean, over some dimensions or all."""
    source = op.args[0]
    dims = op.args[1] if len(op.args) > 1 and op.args[1] else tuple(range(source.rank))
    reduced = {_dim(d, source.rank) for d in ((dims,) if isinstance(dims, int) else dims)}
    keepdim = len(op.args) > 2 and op.args[2]
    remaining = iter(index)
    inner: list[Index] = []
    bound: list[Axis] = []
    for d, size in enumerate(source.shape):
        if d not in reduced:
            inner.append(next(remaining))
            continue
        if keepdim:
            next(remaining)
        bound += [Axis(size)] * (size != 1)
        inner.append(Index.over(bound[-1]) if size != 1 else Index())
    count = notation.product([axis.size for axis in bound])
    coefficient = _inverse(count) if op.name == "mean" else Fraction(1)
    return [Term(coefficient, (Leaf(source, tuple(inner)),), tuple(bound))]


def _cat(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """Cat and stack: a sum over the pieces, each where the index is in it."""
    pieces: tuple[Value, ...] = tuple(piece for piece in op.args[0] if 0 not in piece.shape) or op.args[0]
    dim = _dim(op.args[1] if len(op.args) > 1 else 0, op.outputs[0].rank)
    stacked = op.name == "stack"
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


def _copy(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    return [Term(factors=(_entry(op.args[1], index),))]


def _scatter_view(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A tensor after a write through one of its views: a sum over the pieces of its dimension."""
    before, written, view, output = op.args
    if view.name in ("permute", "t", "transpose"):
        return [Term(factors=(Leaf(written, tuple(index[d] for d in permutation(view))),))]
    if view.name == "detach" and (before.requires_grad or written.requires_grad):
        raise Unreadable("a write that autograd does not follow")
    if view.name in ("view", "_unsafe_view", "unsqueeze", "squeeze", "alias", "detach"):
        return [Term(factors=(Leaf(written, axes.reshape(index, before.shape, written.shape)),))]
    if view.name not in ("select", "slice", "split", "split_with_sizes", "unbind"):
        raise Unreadable(f"a write through {view.name}")
    _, dim, start, step, kept = slicing(view, output)
    size = written.shape[dim] if kept else 1
    if kept and start == 0 and step == 1 and size == before.shape[dim]:
        return [Term(factors=(Leaf(written, index),))]
    if size == 0:
        return [Term(factors=(Leaf(before, index),))]
    if step != 1 or not isinstance(size, int) or start % size:
        raise Unreadable("a write to a part of a dimension")
    high, low = axes.divide(index[dim], size)
    pieces = notation.quotient(before.shape[dim], size)
    if not isinstance(pieces, int) or pieces > PIECE_LIMIT:
        raise Unreadable("a write to one of many pieces")
    terms = []
    for piece in [high.offset] if not high.digits else range(pieces):
        if piece == start // size:
            found = Leaf(written, (*index[:dim], *((low,) if kept else ()), *index[dim + 1 :]))
        else:
            found = Leaf(before, (*index[:dim], low.affine(1, piece * size), *index[dim + 1 :]))
        with contextlib.suppress(LookupError):
            terms.append(Term(factors=(*notation.deltas(high, piece), found)))
    return terms


def _zero(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    return []


def _full(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """ones, full and fill: a constant, or a tensor of no dimensions."""
    return [_factor(filling(op), ())]


def filling(op: Op) -> object:
    """What ones, full and fill fill with: a tensor, or a number, as it is in the dtype of the result."""
    fill = 1 if op.name.startswith(("ones", "new_ones")) else op.args[-1]
    if isinstance(fill, Value):
        return fill
    return torch.tensor(float(scalar(fill)), dtype=op.outputs[0].dtype, device="cpu").item()


def function_name(op: Op) -> str:
    """The name of an elementwise function, with its parameters if it was given any."""
    if op.name == "gelu" and op.kwargs.get("approximate", "none") != "none":
        return "gelu_tanh"
    given = ", ".join(map(str, (*op.args[1:], *op.kwargs.values())))
    return f"{op.name}({given})" if given and op.name != "gelu" else op.name


def _function(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    if any(isinstance(argument, Value) for argument in op.args[1:]):
        raise Unreadable(f"{op.name} of several tensors")
    return [Term(factors=(Func(function_name(op), _entry(op.args[0], index)),))]


def _glu(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """``a * sigmoid(b)`` of the two halves of a dimension."""
    source = op.args[0]
    dim = _dim(op.args[1] if len(op.args) > 1 else -1, source.rank)
    half = op.outputs[0].shape[dim]
    second = Leaf(source, (*index[:dim], index[dim].affine(1, half), *index[dim + 1 :]))
    return [Term(factors=(Leaf(source, index), Func("sigmoid", second)))]


# -- which values an operation multiplies: for each term of its result, its tensor factors -------------------


def _one(op: Op) -> list[list[Value]]:
    return [[op.args[0]]]


def _tensors(*operands: object) -> list[Value]:
    return [operand for operand in operands if isinstance(operand, Value)]


def _product(op: Op) -> list[list[Value]]:
    return [_tensors(*op.args[:2])]


def _terms(op: Op) -> list[list[Value]]:
    return [_tensors(a) for a in op.args[:2] if a != 0]


def _fused(op: Op) -> list[list[Value]]:
    *bias, a, b = op.args
    return [*([term] for term in bias), [a, b]]


def _convolved(op: Op) -> list[list[Value]]:
    return [list(op.args[:2]), *([op.args[2]] for _ in range(op.args[2] is not None))]


def _power(op: Op) -> list[list[Value]]:
    return [_tensors(op.args[0]) * (int(op.args[1]) if op.args[1] in POWERS else 2)]


def _pieces(op: Op) -> list[list[Value]]:
    return [[piece] for piece in op.args[0]]


def _second(op: Op) -> list[list[Value]]:
    return [_tensors(op.args[1])]


def _written(op: Op) -> list[list[Value]]:
    return [[op.args[0]], [op.args[1]]]


def _none(op: Op) -> list[list[Value]]:
    return []


@dataclass(frozen=True)
class Rule:
    """How an operation is read.

    ``kind`` is ``move`` (entries are rearranged), ``join`` (each entry is that of one argument), ``linear``,
    ``product`` (summed over an axis), ``sum`` (over axes), ``constant`` or ``function`` (elementwise).
    ``products`` gives, for each term of the result, the tensors multiplied in it; a function is no polynomial
    of its arguments and has none.
    """

    read: Callable[[Op, int, Indices, Axes], list[Term]]
    kind: str
    products: Callable[[Op], list[list[Value]]] | None = None


def _rows(names: str, *columns: Any) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), Rule(*columns))


RULES: dict[str, Rule] = {
    # Rearrangements: digits are regrouped, reordered, dropped, fixed, restricted.
    **_rows("view _unsafe_view unsqueeze squeeze alias lift_fresh clone", _view, "move", _one),
    **_rows("permute t transpose", _permute, "move", _one),
    **_rows("expand", _broadcast, "move", _one),
    **_rows("repeat", _repeat, "move", _one),
    **_rows("select slice split split_with_sizes unbind", _select, "move", _one),
    **_rows("detach", _view, "move", _one),  # only where no gradient is stopped
    **_rows("_to_copy", _broadcast, "move", _one),
    **_rows("copy", _copy, "move", _second),
    # Sums over pieces.
    **_rows("cat stack", _cat, "join", _pieces),
    **_rows("scatter_view", _scatter_view, "join", _written),
    # The algebra.
    **_rows("add sub rsub", _add, "linear", _terms),
    **_rows("neg", _neg, "linear", _one),
    **_rows("mul", _mul, "linear", _product),
    **_rows("div", _div, "linear", _product),
    **_rows("addcmul", _addcmul, "linear", _fused),
    **_rows("pow", _pow, "linear", _power),
    **_rows("mm bmm mv dot addmm baddbmm", _matmul, "product", _fused),
    **_rows("convolution", _convolution, "product", _convolved),
    **_rows("sum mean", _sum, "sum", _one),
    # Constants.
    **_rows("zeros zeros_like new_zeros zero", _zero, "constant", _none),
    **_rows("ones ones_like new_ones full full_like new_full fill", _full, "constant", _none),
    # Elementwise functions.
    **_rows("silu sigmoid exp reciprocal gelu relu tanh erf erfc", _function, "function"),
    **_rows("elu leaky_relu softplus mish hardswish hardsigmoid hardtanh celu clamp", _function, "function"),
    **_rows("clamp_min clamp_max threshold abs log sqrt rsqrt sin cos", _function, "function"),
    **_rows("glu", _glu, "function"),
}
"""Everything else is a leaf on purpose: index_select and gathers (the position is data), norms (no
polynomial), dropout and other randomness, comparisons, what computes in integers."""
