"""Faults of the reader, and for each a program that it makes wrong where nothing is proved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.planting import Edit

N = 3  # every size is this one, so that nothing but a value can be wrong

Program = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of q[b, t, h, d], k[h, f, d], u[h, f, d] and v[h, f, o]."""


def tensors() -> list[Tensor]:
    """What the programs are run on."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((N,) * rank, generator=generator) for rank in (4, 3, 3, 3)]


# -- programs -----------------------------------------------------------------------------------------------


def score(q: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("bthd,hfd->bthf", q, weight)


def down(hidden: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bthf,hfo->btho", hidden, v)


def gated(q: Tensor, k: Tensor, u: Tensor, v: Tensor, act: Callable[[Tensor], Tensor] = F.silu) -> Tensor:
    return down(act(score(q, k)) * score(q, u), v)


def with_keys(keys: Program) -> Program:
    """A feed-forward whose keys are made of the weights."""
    return lambda q, k, u, v: gated(q, keys(q, k, u, v), u, v)


def with_gate(gate: Callable[[Tensor, Tensor], Tensor]) -> Program:
    """One whose gate is made of its score and of k[:, :, 0], a bias."""
    return lambda q, k, u, v: down(F.silu(gate(score(q, k), k[:, :, 0])) * score(q, u), v)


def with_activation(act: Callable[[Tensor], Tensor]) -> Program:
    return lambda q, k, u, v: gated(q, k, u, v, act)


def with_hidden(change: Callable[[Tensor, Tensor], Tensor]) -> Program:
    """One whose hidden values are changed by k[:, :1, 0], a number for each head."""
    return lambda q, k, u, v: down(change(F.silu(score(q, k)) * score(q, u), k[:, :1, 0]), v)


def squares(turn: Callable[[Tensor], Tensor]) -> Program:
    """One by products of matrices, with the keys turned."""
    return lambda q, k, u, v: F.silu(q @ turn(k)) * (q @ u) @ v


def summed(add_up: Callable[[Tensor], Tensor]) -> Program:
    """One whose values are multiplied first, and added up then."""
    return lambda q, k, u, v: add_up((F.silu(score(q, k)) * score(q, u)).unsqueeze(-1) * v)


def stacked(*weights: Tensor) -> Tensor:
    """Weights of several sub-networks, which no rule reads through."""
    return torch.stack(weights).roll(1, 0)


def loop(*subnetworks: int) -> Program:
    """Sub-networks of one head, each times a number for each token, added up one after the other."""

    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        r = q.roll(1, 0)
        first, *others = (
            r[..., e, None] * (F.silu(q @ k[e].t()) * (q @ u[e].t()) @ v[e]) for e in subnetworks
        )
        return sum(others, first)

    return program


def gates(join: Callable[[list[Tensor]], Tensor]) -> Program:
    """The gates of sub-networks are joined in one tensor [b, t, h, e, f]."""

    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        gate = join([score(q, w) for w in (k, u, v)])
        up = torch.einsum("bthd,ehfd->bthef", q, stacked(u, v, k))
        return torch.einsum("bthef,ehfo->btho", F.silu(gate) * up, stacked(k, u, v))

    return program


def twice(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return gated(q, k, u, v) + gated(q, k, u, v)


def two_subnetworks(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    weights = stacked(k, u, v), stacked(u, v, k), stacked(v, k, u)
    return gated(q, *(w[0] for w in weights)) + gated(q, *(w[1] for w in weights))


def weighted(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    outs = [gated(q, k, u, v), gated(q, u, v, k), gated(q, v, k, u)]
    return (torch.stack(outs, -1) * q.roll(1, 0).unsqueeze(-2)).sum(-1)


def other_tensors(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return gated(q, k, u, v) + gated(q, u, v, k)


def one_head(h: int, q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return F.silu(q[:, :, h] @ k[h].t()) * (q[:, :, h] @ u[h].t()) @ v[h]


def heads(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.stack([one_head(h, q, k, u, v) for h in range(N)], 2)


def heads_but_one(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.stack([one_head(0, q, k, u, v), one_head(1, q, k, u, v), torch.zeros(N, N, N)], 2)


def heads_backwards(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """With weights that are tensors of their own, the last head first."""
    own = [torch.roll(w, 1, 0) for w in (k, u, v)]
    made = [
        F.silu(q[:, :, 2 - h] @ own[h][0].t()) * (q[:, :, 2 - h] @ u[2 - h].t()) @ v[2 - h] for h in range(N)
    ]
    return torch.stack(made[::-1], 2)


def heads_of_several_sizes(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    wide = torch.cat([q, q], 2).roll(1, 2), *(torch.cat([w, w]).roll(1, 0) for w in (k, u, v))
    return torch.cat([gated(wide[0][:, :, h], *(w[h] for w in wide[1:])) for h in (slice(2), slice(2, 5))], 2)


def widths_that_overlap(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return gated(q, k[:, :2], u[:, :2], v[:, :2]) + gated(q, k[:, :1], u[:, :1], v[:, :1])


def entries_of_inputs(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Gate and up of two inputs, one after the other in a batch."""
    one, other = q.unbind(0)[:2]
    hidden = F.silu(torch.einsum("thd,hfd->thf", one, k)) * torch.einsum("thd,hfd->thf", other, u)
    return torch.einsum("thf,hfo->tho", hidden, v)


def selected_inputs(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    hidden = F.silu(torch.einsum("thd,hfd->thf", q[0], k)) * torch.einsum("thd,hfd->thf", q[1], u)
    return torch.einsum("thf,hfo->tho", hidden, v)


def two_inputs(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(F.silu(score(q, k)) * score(q.roll(1, 0), u), v)


def repeated_heads(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    q, *weights = q.flatten(1, 2), *(w.repeat(N, 1, 1) for w in (k, u, v))
    gate, up = (torch.einsum("bhd,hfd->bhf", q, w) for w in weights[:2])
    return torch.einsum("bhf,hfo->bho", F.silu(gate) * up, weights[2])


def grouped_convolution(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    x = q.flatten(2).transpose(1, 2)
    gate, up = (
        F.conv1d(x, w.flatten(0, 1).unsqueeze(-1), groups=N).transpose(1, 2).view(N, N, N, N) for w in (k, u)
    )
    return down(F.silu(gate) * up, v)


def halves(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(F.glu(torch.cat([score(q, u), score(q, k)], -1)), v)


def transposed_sigmoid(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate = score(q, k)
    return down(gate * torch.sigmoid(gate.transpose(0, 1)), v)


def of_two_scores(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(torch.tanh(score(q, k)) * torch.sigmoid(score(q, 0.5 * u)), v)


def larger_of_two(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = score(q, k), score(q, u)
    return down(torch.where(gate > up, gate, 0.5 * up), v)


def sigmoid_of_another(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(score(q, k) * torch.sigmoid(score(q, u)), v)


def written(write: Callable[[Tensor, Tensor], object]) -> Program:
    """Keys that are written into a copy of the up weights."""

    def keys(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        copied = u.clone()
        write(copied, k)
        return copied

    return with_keys(keys)


def written_piece(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    wide = torch.cat([k, u], 1)
    wide[:, N:].copy_(v)
    return gated(q, wide[:, :N], u, v)


def up_scaled(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(F.silu(score(q, k)) * score(2 * q, u), v)


def divided(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(F.silu(score(q, k)) * score(q, u) / k[:, :1, 0], v)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def scaled(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return 3 * gated(q, k, u, v, lambda x: F.silu(0.5 * x))


def part(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.cat([k, u, v], 1)[:, 1 : 1 + N]


# -- faults -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What is read wrongly, the edit that does it, and a program that it makes wrong."""

    name: str
    edit: Edit
    program: Program

    def __str__(self) -> str:
        return self.name


def fault(name: str, function: str, old: str, new: str, program: Program) -> Fault:
    return Fault(name, Edit(function, old, new), program)


SLICE = fault(
    "a piece begins one late",
    "reading.moves:_piece",
    "Piece(dim, start, step",
    "Piece(dim, start + 1, step",
    with_keys(part),
)
GELU = fault(
    "gelu is its approximation",
    "reading.functions:_gelu",
    'return "gelu"',
    'return "gelu_tanh"',
    with_activation(F.gelu),
)

FAULTS = [
    # -- reading: moves
    SLICE,
    fault(
        "a piece starts at 0",
        "reading.moves:take",
        "piece.step, piece.start",
        "piece.step, 0",
        with_keys(part),
    ),
    fault(
        "every entry of a slice",
        "reading.moves:sliced",
        "else start, step)",
        "else start, 1)",
        with_keys(lambda q, k, u, v: torch.cat([k, u], 1).roll(1, 1)[:, ::2]),
    ),
    fault("the first of an unbind", "reading.moves:unbound", ", out, kept", ", 0, kept", entries_of_inputs),
    fault("position 0 is selected", "reading.moves:selected", "op.args[2], kept", "0, kept", selected_inputs),
    fault(
        "parts of a split are swapped",
        "reading.moves:split",
        "out * sizes",
        "(1 - out) * sizes",
        with_keys(lambda q, k, u, v: torch.cat([k, u], 1).roll(1, 1).split(N, 1)[0]),
    ),
    fault(
        "transpose is nothing",
        "reading.moves:swapped",
        "_swapped(op.args[0].rank, *op.args[1:3])",
        "list(range(op.args[0].rank))",
        squares(lambda k: k.transpose(1, 2)),
    ),
    fault(
        "t is nothing",
        "reading.moves:transposed",
        "_swapped(op.args[0].rank, 0, -1)",
        "list(range(op.args[0].rank))",
        heads,
    ),
    fault(
        "permute is nothing",
        "reading.moves:permuted",
        "in op.args[1]]",
        "in (op.args[1] if op.args[0].rank != 3 else range(3))]",
        squares(lambda k: k.permute(0, 2, 1)),
    ),
    fault(
        "a permutation is its inverse",
        "reading.moves:reorder",
        "placed[d] for d in range(len(index))",
        "index[d] for d in order(op)",
        squares(lambda k: k.permute(1, 2, 0)),
    ),
    fault(
        "a view reads dimensions of one size in the opposite order",
        "notation.axes:Axes.unflatten",
        "(index, *reversed(indices))",
        "((index, *reversed(indices))[::-1] if set(shape) == {3} else (index, *reversed(indices)))",
        with_keys(lambda q, k, u, v: k.flatten().view(N, N, N)),
    ),
    fault("repeat repeats each", "reading.moves:repeat", "size)[1]", "size)[i.last < size]", repeated_heads),
    fault(
        "what is broadcast is aligned at the first dimension",
        "reading.entries:entry",
        "index[len(index) - value.rank :]",
        "index[: value.rank]",
        with_hidden(lambda hidden, r: hidden * r),
    ),
    fault(
        "dimensions from the back are one off",
        "reading.entries:dimension",
        "dim % rank",
        "(dim + (dim < 0)) % rank",
        squares(lambda k: k.permute(-3, -1, -2)),
    ),
    # -- reading: writes
    fault(
        "a copy is of what was there",
        "reading.moves:copy",
        "op.args[1]",
        "op.args[0]",
        written(lambda copied, k: copied.copy_(k)),
    ),
    fault(
        "a write through a view is not read",
        "reading.moves:write_view",
        "Leaf(written, axes.reshape(index, before.shape, written.shape))",
        "Leaf(before, index)",
        written(lambda copied, k: copied.view(-1).copy_(k.flatten())),
    ),
    fault(
        "a write through a transpose is read as one",
        "reading.moves:write_reordered",
        "for d in order(look)",
        "for d in range(len(index))",
        written(lambda copied, k: copied.transpose(1, 2).copy_(k)),
    ),
    fault(
        "the first piece is what is written",
        "reading.moves:write_piece",
        "number == start // size",
        "number == 0",
        written_piece,
    ),
    # -- reading: joins
    fault(
        "pieces are stacked in the opposite order",
        "reading.joins:join",
        "notation.deltas(high, number)",
        "notation.deltas(high, len(pieces) - 1 - number)",
        gates(lambda pieces: torch.stack(pieces, -2)),
    ),
    fault(
        "pieces are put side by side in the opposite order",
        "reading.joins:join",
        "notation.deltas(high, number)",
        "notation.deltas(high, len(pieces) - 1 - number)",
        gates(lambda pieces: torch.cat(pieces, -1).unflatten(-1, (N, N))),
    ),
    # -- reading: algebra
    fault(
        "rows are columns",
        "reading.algebra:matmul",
        "inner, *columns)",
        "*((inner, *columns) if b.rank > 2 else (*columns, inner)))",
        heads,
    ),
    fault(
        "alpha is left out",
        "reading.algebra:_alpha",
        'op.kwargs.get("alpha", op.args[2] if len(op.args) > 2 else 1)',
        "1",
        with_gate(lambda gate, bias: torch.add(gate, bias, alpha=3)),
    ),
    fault(
        "a difference is a sum",
        "reading.algebra:add",
        "sign * _alpha(op)",
        "_alpha(op)",
        with_gate(lambda gate, bias: gate - bias),
    ),
    fault(
        "rsub adds",
        "reading.algebra:subtract_from",
        "-_alpha(op)",
        "_alpha(op)",
        with_gate(lambda gate, bias: torch.rsub(gate, bias)),
    ),
    fault(
        "neg is nothing",
        "reading.algebra:negate",
        "Fraction(-1)",
        "Fraction(1)",
        with_gate(lambda gate, _: -gate),
    ),
    fault(
        "a quotient is a product",
        "reading.algebra:divide",
        'Func("reciprocal", entry(below, index))',
        "entry(below, index)",
        divided,
    ),
    fault(
        "addcmul's value is left out",
        "reading.algebra:add_product",
        'scalar(op.kwargs.get("value", 1))',
        "Fraction(1)",
        with_gate(lambda gate, bias: torch.addcmul(bias, gate, torch.ones(N), value=2)),
    ),
    fault(
        "a cube is a square",
        "reading.algebra:power",
        "* int(exponent)",
        "* 2",
        with_activation(lambda x: torch.relu(x) ** 3),
    ),
    fault(
        "channels of groups are interleaved",
        "reading.algebra:convolution",
        "notation.flatten((group, inner), (groups, axis.size))",
        "notation.flatten((inner, group), (axis.size, groups))",
        grouped_convolution,
    ),
    fault(
        "the dimensions that a sum leaves are reversed",
        "reading.algebra:total",
        "iter(index)",
        "iter(index[::-1])",
        summed(lambda x: x.sum(-2)),
    ),
    fault(
        "a mean is a sum",
        "reading.algebra:mean",
        "inverse(notation.product([axis.size for axis in term.bound]))",
        "Fraction(1)",
        summed(lambda x: x.mean(-2)),
    ),
    fault(
        "numbers are inverted",
        "reading.entries:scalar",
        "return Fraction(number)",
        "return 1 / Fraction(number)",
        with_gate(lambda gate, bias: gate + 2 * bias),
    ),
    fault(
        "one over a number is that number",
        "reading.entries:inverse",
        "1 / divisor",
        "divisor",
        with_gate(lambda gate, _: gate / 2),
    ),
    fault(
        "numbers are left out",
        "reading.entries:times",
        "Term(coefficient * scalar(operand))",
        "Term(coefficient)",
        scaled,
    ),
    fault(
        "of a product, the first number",
        "reading.entries:multiply",
        "for t in terms), start",
        "for t in terms[:1]), start",
        scaled,
    ),
    # -- reading: functions
    GELU,
    fault(
        "every function is silu",
        "reading.functions:function",
        "else name, op",
        'else "silu", op',
        with_activation(torch.sigmoid),
    ),
    fault(
        "full is twice its number",
        "reading.functions:full",
        "times(Fraction(1)",
        "times(Fraction(2)",
        with_gate(lambda gate, _: gate * torch.full((N, 1), 3.0)),
    ),
    fault(
        "ones are two",
        "reading.functions:ones",
        "Term()",
        "Term(Fraction(2))",
        with_gate(lambda gate, _: gate * torch.ones(N, 1)),
    ),
    fault(
        "the halves of glu are swapped",
        "reading.functions:glu",
        'Leaf(source, index), Func("sigmoid", second)',
        'second, Func("sigmoid", Leaf(source, index))',
        halves,
    ),
    fault(
        "parameters of functions are not looked at",
        "reading.functions:function",
        'f"{name}({given})" if given else name',
        'f"{name}(1, 1, 1)" if given else name',
        with_activation(lambda x: F.elu(x, 0.5)),
    ),
    # -- reading: activations
    fault(
        "what has a relu in it is one",
        "reading.expression:identify",
        "    content, expression =",
        '    if "relu" in functions(expression): return Known("relu")\n    content, expression =',
        with_activation(lambda x: torch.relu(x) - torch.relu(x - 1)),
    ),
    fault(
        "the factor of an activation is inverted",
        "reading.expression:identify",
        "Known(name, factor * content",
        "Known(name, content / factor",
        with_activation(quick_gelu),
    ),
    fault(
        "the factor of an activation is left out",
        "reading.activations:Activations.read",
        "Term(known.factor, tuple",
        "Term(ONE, tuple",
        with_activation(quick_gelu),
    ),
    fault(
        "all entries of a tensor are the same",
        "reading.elementwise:Elementwise.same",
        "and [*map(current, a.index)] == [*map(current, b.index)]",
        "",
        transposed_sigmoid,
    ),
    fault(
        "the scores of a function are swapped",
        "reading.activations:Activations.read",
        "for score in joint.scores",
        "for score in joint.scores[::-1]",
        of_two_scores,
    ),
    fault(
        "a number in a score is not in its function",
        "matching.normal_form:_hoisted",
        "scaled(factor.name, UP, scale)",
        "factor.name",
        of_two_scores,
    ),
    fault(
        "a function takes its entries in another order",
        "reading.functions:_function",
        "Func(name, *given)",
        "Func(name, given[0], *given[:0:-1])",
        larger_of_two,
    ),
    fault(
        "operations of one kind give the same",
        "reading.numbering:ValueNumbering._named",
        "return self.first[item] if",
        'return "a value" if',
        sigmoid_of_another,
    ),
    # -- notation
    fault(
        "the digits of a cut are swapped",
        "notation.axes:Axes.divide",
        "(_, upper), (_, lower)",
        "(_, lower), (_, upper)",
        repeated_heads,
    ),
    fault(
        "dimensions of one size are flattened in the opposite order",
        "notation.index:flatten",
        "zip(reversed(indices), reversed(shape), strict=True)",
        "zip(*([*indices], [*shape]) if {*shape} == {3} else ([*reversed(indices)], [*reversed(shape)]))",
        with_keys(lambda q, k, u, v: k.flatten().view(N, N, N)),
    ),
    fault(
        "positions count from the end",
        "notation.terms:deltas",
        "Index(digit)",
        "Index(axis.size - 1 - digit)",
        gates(lambda pieces: torch.stack(pieces, -2)),
    ),
    fault(
        "an offset of an offset is left out",
        "notation.index:Index.affine",
        "offset + times(stride, self.offset)",
        "offset",
        with_keys(lambda q, k, u, v: torch.cat([k, u], 1).roll(1, 1)[:, 1:][:, 1 : 1 + N]),
    ),
    fault(
        "numbers of a loop are consecutive", "notation.fold:_step", "int(differences.pop())", "1", loop(0, 2)
    ),
    fault(
        "tensors of a progression are in the opposite order",
        "notation.fold:_progression",
        "    steps = [",
        "    columns = [c if isinstance(c[0], int) else c[::-1] for c in columns]\n    steps = [",
        heads_backwards,
    ),
    fault(
        "a part of an axis is all of it",
        "notation.fold:_covered",
        "or not delta.index.covers(delta.axis.size)",
        "",
        heads_but_one,
    ),
    # -- matching
    fault(
        "the number of an up score is lost",
        "matching.normal_form:_hoisted",
        "coefficient *= scale",
        "pass",
        up_scaled,
    ),
    fault(
        "the number in an activation is lost",
        "matching.normal_form:_with_scores",
        "scale * t.coefficient",
        "t.coefficient",
        with_activation(quick_gelu),
    ),
    fault(
        "a number counts twice",
        "matching.unify:_Unifier.terms",
        "coefficient = notation.ONE",
        "pass",
        lambda q, k, u, v: down(3 * F.silu(score(q, k)) * score(q, u), v),
    ),
    fault(
        "the number of an operand is lost",
        "matching.unify:_multiplied",
        "Term(coefficient)",
        "Term()",
        with_gate(lambda gate, bias: gate + 2 * bias),
    ),
    fault(
        "any two are the same",
        "matching.roles:AxisRoles._same_tensor",
        "return self.numbering.same(a.value, b.value)",
        "return True",
        two_inputs,
    ),
    fault(
        "any two entries are the same",
        "matching.roles:AxisRoles._operand",
        "one.index == twin.index and",
        "",
        selected_inputs,
    ),
    fault(
        "what divides multiplies",
        "rewriting.operands:Builder.factor",
        'self.call("reciprocal", self.entry(leaf, groups, expand))',
        "self.entry(leaf, groups, expand)",
        divided,
    ),
    fault(
        "every activation is silu",
        "matching.unify:_Unifier._functions",
        "activation=score.name or state.activation",
        'activation="silu"',
        with_activation(torch.sigmoid),
    ),
    fault(
        "gate and up are swapped",
        "matching.unify:_Unifier._factors",
        "with_place(name",
        'with_place({"k": "u", "u": "k"}.get(name, name)',
        gated,
    ),
]
"""Each is a wrong rewrite where nothing is proved, and none where it is."""

PARTLY = [
    fault(
        "constants are not looked at",
        "notation.fold:_form",
        "constants.append(index.offset)",
        "constants.append(0)",
        two_subnetworks,
    ),
    fault(
        "what is added up many times counts once",
        "matching.normal_form:_counted",
        "term.coefficient * idle",
        "term.coefficient",
        lambda q, k, u, v: gated(q, k, u, v).unsqueeze(0).expand(N, N, N, N, N).sum(0),
    ),
    fault(
        "pieces of several sizes begin one late",
        "reading.joins:_uneven",
        "inner.affine(1, low - start)",
        "inner.affine(1, low - start + 1)",
        heads_of_several_sizes,
    ),
    fault(
        "what is at a position is at 0",
        "notation.terms:pinned",
        "others), where)",
        "others), dict.fromkeys(where, Index()))",
        weighted,
    ),
    fault(
        "equal terms count once",
        "notation.fold:_fold",
        "group[0][0].coefficient * len(group)",
        "group[0][0].coefficient",
        twice,
    ),
    fault(
        "the first tensor is that of every turn",
        "notation.fold:_rebuild",
        "tuple(column)",
        "tuple(column[:1] * len(column))",
        other_tensors,
    ),
    fault(
        "what is beside an axis may be in it",
        "notation.fold:_adjacent",
        "pairs, x, x.size)",
        "pairs, x, 0)",
        widths_that_overlap,
    ),
]
"""Each is a wrong rewrite where nothing is proved; where it is, parts of the program are, which are right."""

MISSES = [
    fault(
        "an axis has the role that it fits the least",
        "matching.roles:AxisRoles._role",
        "return min(",
        "return max(",
        gated,
    ),
    fault(
        "a sum is over another dimension",
        "reading.algebra:total",
        "{dimension(d, source.rank) for",
        "{dimension(d + 1, source.rank) for",
        summed(lambda x: x.sum(-2)),
    ),
]
"""These do no harm: an axis in another operand, or no function of the op, is no match."""
