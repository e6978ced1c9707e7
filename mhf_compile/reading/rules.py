"""One row per ATen operation: what it does, and what an entry of its result is in entries of its arguments.

A rule pushes an index down through an operation, as a sum of products. What no rule knows is a leaf.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mhf_compile.notation import Axes, Term, Unreadable
from mhf_compile.reading import algebra, functions, joins, moves
from mhf_compile.reading.entries import Indices, Reading
from mhf_compile.tape.values import Op, Value


class Kind(enum.Enum):
    """What an operation does to entries."""

    MOVE = "each entry is one of the argument"
    JOIN = "each entry is one of one of the arguments"
    ADD = "entries are added, times numbers"
    MULTIPLY = "entries are multiplied"
    DIVIDE = "entries are multiplied with reciprocals, a function"
    POLYNOMIAL = "entries are multiplied and added"
    CONTRACT = "products are summed over an axis"
    SUM = "entries are summed over axes"
    CONSTANT = "each entry is a number"
    FUNCTION = "each entry is a function of one, or a product of such"


ALGEBRA = frozenset({Kind.ADD, Kind.MULTIPLY, Kind.DIVIDE, Kind.POLYNOMIAL})
"""Sums and products, entry by entry."""

ELEMENTWISE = ALGEBRA | {Kind.MOVE, Kind.FUNCTION, Kind.CONSTANT}
"""By these an entry depends on one entry of each argument."""


# -- which values an operation multiplies: for each term of its result, its tensor factors -------------------

Products = Callable[[Op], list[list[Value]]]


def _tensors(*operands: object) -> list[Value]:
    return [operand for operand in operands if isinstance(operand, Value)]


def _first(op: Op) -> list[list[Value]]:
    return [[op.args[0]]]


def _second(op: Op) -> list[list[Value]]:
    return [[op.args[1]]]


def _each(op: Op) -> list[list[Value]]:
    return [_tensors(a) for a in op.args[:2] if a != 0]


def _both(op: Op) -> list[list[Value]]:
    return [_tensors(*op.args[:2])]


def _last_two(op: Op) -> list[list[Value]]:
    """Of matrix products and addcmul, and a bias, where there is one before them."""
    *bias, a, b = op.args
    return [*([term] for term in bias), [a, b]]


def _with_bias(op: Op) -> list[list[Value]]:
    """Of a convolution."""
    return [list(op.args[:2]), *([op.args[2]] for _ in range(op.args[2] is not None))]


def _power(op: Op) -> list[list[Value]]:
    return [_tensors(op.args[0]) * (int(op.args[1]) if op.args[1] in algebra.POWERS else 2)]


def _pieces(op: Op) -> list[list[Value]]:
    return [[piece] for piece in op.args[0]]


def _written(op: Op) -> list[list[Value]]:
    return [[op.args[0]], [op.args[1]]]


def _none(op: Op) -> list[list[Value]]:
    return []


# -- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What is known of an operation.

    Attributes:
        kind: what it does to entries.
        read: an entry of its result, in entries of its arguments.
        products: for each term of the result, the tensors multiplied in it; a function is no polynomial of
            its arguments and has none.
        write: of a view that shows each entry of its base at most once, how a write through it is read: an
            entry of the base after it.
        is_part: whether it is a function that activations and norms are made of, but none itself.
        keeps: what autograd keeps of a function: its arguments, unless it is said here.
        is_conditional: whether its result or its arguments may be conditions.
    """

    kind: Kind
    read: Reading
    products: Products | None = None
    write: Reading | None = None
    is_part: bool = False
    keeps: Callable[[Op], Sequence[Value]] | None = None
    is_conditional: bool = False

    def kept(self, op: Op) -> Sequence[Value]:
        """What autograd keeps for the backward: the factors of products, a function's argument or result.

        Of a number times a tensor, the number is enough.
        """
        if self.products is None:
            return op.inputs if self.keeps is None else self.keeps(op)
        return [value for product in self.products(op) if len(product) > 1 for value in product]


def _move(read: Reading, write: Reading | None = None) -> Rule:
    return Rule(Kind.MOVE, read, _first, write=write)


def _order(order: moves.Order) -> Rule:
    return _move(partial(moves.reorder, order=order), partial(moves.write_reordered, order=order))


def _piece(cut: moves.Cut) -> Rule:
    return _move(partial(moves.take, cut=cut), partial(moves.write_piece, cut=cut))


def _write(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A tensor after a write through one of its views, as the rule of the view says."""
    look: Op = op.args[2]
    rule = RULES.get(look.name)
    if rule is None or rule.write is None:
        raise Unreadable(f"a write through {look.name}")
    return rule.write(op, out, index, axes)


def _rows(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_FUNCTION = Rule(Kind.FUNCTION, functions.function)
_OF_RESULT = Rule(Kind.FUNCTION, functions.function, keeps=lambda op: op.outputs)
_OF_SEVERAL = Rule(Kind.FUNCTION, functions.of_several)
_CONDITIONAL = replace(_OF_SEVERAL, is_part=True, keeps=lambda op: (), is_conditional=True)

RULES: dict[str, Rule] = {
    # y[i] = x[j], where i in y's shape and j in x's are one row-major position
    **_rows("view _unsafe_view unsqueeze squeeze alias", _move(moves.view, moves.write_view)),
    **_rows("lift_fresh clone", _move(moves.view)),
    # y[i] = x[i], where no gradient is stopped
    **_rows("detach", _move(moves.view, moves.write_detached)),
    # y[i, j] = x[j, i]
    **_rows("permute", _order(moves.permuted)),
    **_rows("transpose", _order(moves.swapped)),
    **_rows("t", _order(moves.transposed)),
    # y[i, j] = x[j], y[i, j] = x[i, 0]; a cast changes no entry
    **_rows("expand _to_copy", _move(moves.broadcast)),
    # y[i] = x[i mod n]
    **_rows("repeat", _move(moves.repeat)),
    # y[i] = x[start + step * i], y = x[start]
    **_rows("slice", _piece(moves.sliced)),
    **_rows("split split_with_sizes", _piece(moves.split)),
    **_rows("select", _piece(moves.selected)),
    **_rows("unbind", _piece(moves.unbound)),
    # copy(x, y)[i] = y[i]
    **_rows("copy", Rule(Kind.MOVE, moves.copy, _second)),
    # y[i] = sum over pieces p of [i in p] * p[i - start of p]
    **_rows("cat", Rule(Kind.JOIN, joins.join, _pieces)),
    **_rows("stack", Rule(Kind.JOIN, partial(joins.join, stacked=True), _pieces)),
    # y[i] = [i in the piece written] * written[i - start] + [i elsewhere] * before[i]
    **_rows("scatter_view", Rule(Kind.JOIN, _write, _written)),
    # x + alpha * y, x - alpha * y, y - alpha * x, -x
    **_rows("add", Rule(Kind.ADD, algebra.add, _each)),
    **_rows("sub", Rule(Kind.ADD, partial(algebra.add, sign=-1), _each)),
    **_rows("rsub", Rule(Kind.ADD, algebra.subtract_from, _each)),
    **_rows("neg", Rule(Kind.ADD, algebra.negate, _first)),
    # x * y
    **_rows("mul", Rule(Kind.MULTIPLY, algebra.product, _both)),
    # x / y = x * reciprocal(y)
    **_rows("div", Rule(Kind.DIVIDE, algebra.divide, _both)),
    # x + value * y * z
    **_rows("addcmul", Rule(Kind.POLYNOMIAL, algebra.add_product, _last_two)),
    # x ** 3 = x * x * x
    **_rows("pow", Rule(Kind.POLYNOMIAL, algebra.power, _power)),
    # y[i, k] = sum_j a[i, j] * b[j, k]; beta * bias[i, k] + alpha * that
    **_rows("mm bmm mv dot addmm baddbmm", Rule(Kind.CONTRACT, algebra.matmul, _last_two)),
    # y[b, o, t] = sum_c x[b, c, t] * w[o, c, 0], in each group
    **_rows("convolution", Rule(Kind.CONTRACT, algebra.convolution, _with_bias)),
    # y[i] = sum_j x[i, j]; divided by the number of j
    **_rows("sum", Rule(Kind.SUM, algebra.total, _first)),
    **_rows("mean", Rule(Kind.SUM, algebra.mean, _first)),
    # y[i] = 0, y[i] = 1, y[i] = a
    **_rows("zeros zeros_like new_zeros zero", Rule(Kind.CONSTANT, functions.zeros, _none)),
    **_rows("ones ones_like new_ones", Rule(Kind.CONSTANT, functions.ones, _none)),
    **_rows("full full_like new_full fill scalar_tensor", Rule(Kind.CONSTANT, functions.full, _none)),
    # y[i] = f(x[i]), its derivative in terms of x
    **_rows("silu elu leaky_relu softplus mish hardswish hardsigmoid hardtanh celu", _FUNCTION),
    **_rows("clamp clamp_min clamp_max threshold softshrink hardshrink gelu log_sigmoid_forward", _FUNCTION),
    **_rows("erf erfc abs log log1p sin cos", replace(_FUNCTION, is_part=True)),
    **_rows("sign", replace(_FUNCTION, is_part=True, keeps=lambda op: ())),
    # y[i] = f(x[i]), its derivative in terms of y
    **_rows("sigmoid tanh relu", _OF_RESULT),
    **_rows("exp expm1 reciprocal sqrt rsqrt", replace(_OF_RESULT, is_part=True)),
    # y[i] = x[i] * sigmoid(x[n + i])
    **_rows("glu", Rule(Kind.FUNCTION, functions.glu)),
    # y[i] = f(a[i], b[i])
    **_rows("maximum minimum", _OF_SEVERAL),
    # c[i] = whether x[i] > y[i] and the like; c[i] and d[i]
    **_rows("gt ge lt le eq ne", _CONDITIONAL),
    **_rows("logical_and bitwise_and logical_or bitwise_or logical_not bitwise_not", _CONDITIONAL),
    # y[i] = a[i] where c[i], else b[i]
    **_rows("where", replace(_CONDITIONAL, keeps=lambda op: op.inputs[:1])),
    **_rows("masked_fill", replace(_CONDITIONAL, read=functions.filled, keeps=lambda op: op.inputs[1:2])),
}
"""Everything else is a leaf on purpose: index_select and gathers (the position is data), norms (no
polynomial), dropout and other randomness, what computes in integers."""

PARTS = frozenset(name for name, rule in RULES.items() if rule.is_part)
"""Functions that are parts of activations, or of norms, but none themselves."""


def kind_of(op: Op | None) -> Kind | None:
    """What an operation does to entries; None of none, and of what no rule reads."""
    rule = RULES.get(op.name) if op is not None else None
    return rule.kind if rule is not None else None
