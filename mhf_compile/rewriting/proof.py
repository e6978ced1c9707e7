"""Prove that a rewrite computes what it replaces, exactly.

The region of a match and the pattern's formula, with the views that the rewrite makes around it, are run on
random integers modulo a prime p just below 2**20, in float64: products are below 2**40 and sums of 8192 of
them below 2**53, so all arithmetic is exact. ``exp`` (with ``exp(x) * exp(-x) = 1``), ``erf`` (odd) and
``relu`` (x or 0) are random tables; sigmoid, tanh, silu and both gelus are made of these in the field. Two
programs that agree are then equal for every such function, up to the odds of Schwartz and Zippel: degree / p
an entry.

Tokens are never contracted, so few of them prove as much as many. Over a work budget, and where sizes are
symbolic, the proof runs on few tokens; the sizes that the program's views name are then taken from the digits
of each value's index.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

from mhf_compile import notation
from mhf_compile.kernels.activations import ACTIVATIONS
from mhf_compile.matching.reasons import NO_ZEROS, Refusal
from mhf_compile.matching.search import Match
from mhf_compile.notation import Axis, Index, Size
from mhf_compile.reading import moves
from mhf_compile.reading.entries import scalar
from mhf_compile.reading.numbering import ValueNumbering
from mhf_compile.reading.rules import RULES, Kind
from mhf_compile.rewriting.operands import Builder
from mhf_compile.rewriting.region import Region, joined
from mhf_compile.tape.recorder import record_function
from mhf_compile.tape.source import source_of
from mhf_compile.tape.tape import Op, Value

log = logging.getLogger(__name__)

PRIME = 2**20 - 3
CHUNK = 2**13
"""The most products summed before reducing: CHUNK * PRIME**2 < 2**53."""
BUDGET = 2**30
"""Multiply-adds of a proof on all tokens; beyond it, the proof runs on few."""
WRITTEN = 32
"""What a product that is written out before it is added up costs, in multiply-adds of a matrix product."""
FEW = 4
"""The size that a token axis is reduced to."""


# -- arithmetic modulo the prime ----------------------------------------------------------------------------


def number(value: Fraction) -> int:
    """A rational number in the field."""
    return value.numerator * pow(value.denominator, -1, PRIME) % PRIME


def _inverse(x: Tensor) -> Tensor:
    """One over x, and 0 of 0."""
    return _table("reciprocal")[x.long()]


def _inverses() -> Tensor:
    """The inverse of each element: g**i and g**(p - 1 - i) for the powers of a primitive root g."""
    factors = [n for n in range(2, PRIME) if (PRIME - 1) % n == 0 and all(n % m for m in range(2, n))]
    root = next(g for g in range(2, PRIME) if all(pow(g, (PRIME - 1) // f, PRIME) != 1 for f in factors))
    powers = torch.ones(1, dtype=torch.float64)
    while len(powers) < PRIME - 1:
        powers = torch.cat([powers, powers * pow(root, len(powers), PRIME) % PRIME])
    powers = powers[: PRIME - 1].long()
    inverses = torch.zeros(PRIME, dtype=torch.float64)
    inverses[powers] = powers.flip(0).roll(1).double()
    return inverses


@cache
def _table(name: str) -> Tensor:
    """An elementwise function at every element of the field."""
    x = torch.arange(PRIME, dtype=torch.float64)
    half = number(Fraction(1, 2))
    match name:
        case "reciprocal":
            return _inverses()
        case "sigmoid":  # 1 / (1 + exp(-x))
            return _inverse((1 + _reflected(_table("exp"))) % PRIME)
        case "tanh":  # 2 sigmoid(2 x) - 1
            return (2 * _table("sigmoid")[(2 * x % PRIME).long()] - 1) % PRIME
        case "erfc":
            return (1 - _table("erf")) % PRIME
        case "silu":
            return x * _table("sigmoid") % PRIME
        case "gelu":  # x / 2 (1 + erf(x / sqrt(2)))
            inner = x * number(Fraction(math.sqrt(0.5))) % PRIME
            return x * half % PRIME * (1 + _table("erf")[inner.long()]) % PRIME
        case "gelu_tanh":  # x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))
            cube = x * x % PRIME * x % PRIME * number(Fraction(0.044715))
            inner = (x + cube) % PRIME * number(Fraction(math.sqrt(2 / math.pi))) % PRIME
            return x * half % PRIME * (1 + _table("tanh")[inner.long()]) % PRIME
    generator = torch.Generator().manual_seed(sum(name.encode()))
    if name == "relu":  # x where some bit is set, so that relu(x) relu(x) = x relu(x)
        return x * torch.randint(2, (PRIME,), generator=generator)
    if name == "exp":  # exp(x) exp(-x) = 1
        some = torch.randint(1, PRIME, (PRIME,), generator=generator).double()
        some[0] = 1
        return torch.where(x <= PRIME // 2, some, _inverse(_reflected(some)))
    some = torch.randint(PRIME, (PRIME,), generator=generator).double()
    return (some - _reflected(some)) % PRIME if name == "erf" else some  # erf(-x) = -erf(x)


def _reflected(table: Tensor) -> Tensor:
    """The table of f(-x)."""
    return table.flip(0).roll(1)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    result = torch.zeros((), dtype=torch.float64)
    for left, right in zip(a.split(CHUNK, -1), b.split(CHUNK, 0 if b.dim() == 1 else -2), strict=True):
        result = (result + left @ right) % PRIME
    return result


# -- running a region ---------------------------------------------------------------------------------------


class _Replay:
    """Runs recorded operations modulo the prime on tensors that may have fewer tokens than were recorded."""

    def __init__(
        self,
        shape: Callable[[Value], tuple[int, ...]],
        known: Mapping[Value, Tensor],
        numbering: ValueNumbering,
    ) -> None:
        self.shape = shape
        self.numbering = numbering
        self.tensors = dict(known)
        self.waiting: dict[Value, None] = {}
        self.generator = torch.Generator().manual_seed(0)  # for what nothing should read

    def run(self, values: Iterable[Value]) -> None:
        self.waiting = dict.fromkeys(value for value in values if value not in self.tensors)
        while self.waiting:
            self._made(next(iter(self.waiting)))

    def _made(self, value: Value) -> Tensor:
        del self.waiting[value]
        assert value.op is not None
        result = self._compute(value.op, value)
        self.tensors[value] = result if RULES[value.op.name].kind is Kind.MOVE else result % PRIME
        return self.tensors[value]

    def _find(self, value: Value) -> Tensor | None:
        """The tensor of a value, or of one computed like it that was read in its place, if one was."""
        if value in self.waiting:
            return self._made(value)
        if value not in self.tensors:
            twin = next((v for v in (*self.tensors, *self.waiting) if self.numbering.same(v, value)), None)
            if twin is None:
                return None
            self.tensors[value] = self._get(twin)
        return self.tensors[value]

    def _get(self, argument: object) -> Tensor:
        if isinstance(argument, Value):
            found = self._find(argument)
            if found is None:  # what was read of the other factor is zero
                raise Refusal(f"{argument} is multiplied by zeros in it", argument, advice=NO_ZEROS)
            return found
        assert isinstance(argument, (int, float))
        return torch.tensor(float(number(scalar(argument))), dtype=torch.float64)

    def _compute(self, op: Op, value: Value) -> Tensor:
        get, args, name, shape = self._get, op.args, op.name, self.shape(value)
        match name:
            case (
                "view"
                | "_unsafe_view"
                | "unsqueeze"
                | "squeeze"
                | "alias"
                | "lift_fresh"
                | "clone"
                | "detach"
            ):
                return get(args[0]).reshape(shape)
            case "permute" | "t" | "transpose":
                return get(args[0]).permute(permutation(op))
            case "expand" | "_to_copy":
                return get(args[0]).expand(shape)
            case "repeat":
                return get(args[0]).repeat(*args[1])
            case "copy":
                return get(args[1]).expand(shape)
            case "select" | "slice" | "split" | "split_with_sizes" | "unbind":
                return _sliced(get(args[0]), op, value.output, shape)
            case "cat":
                return self._cat(op, shape)
            case "stack":
                return torch.stack([get(piece) for piece in args[0]], *args[1:])
            case "scatter_view":
                return self._scatter(op, shape)
            case "zeros" | "zeros_like" | "new_zeros" | "zero":
                return torch.zeros(shape, dtype=torch.float64)
            case "ones" | "ones_like" | "new_ones":
                return torch.ones(shape, dtype=torch.float64)
            case "full" | "full_like" | "new_full" | "fill":
                return get(filling(op)).expand(shape)
            case "add" | "sub" | "rsub":
                alpha = get(op.kwargs.get("alpha", args[2] if len(args) > 2 else 1))
                a, b = get(args[0]), get(args[1])
                return a + alpha * b if name == "add" else a - alpha * b if name == "sub" else b - alpha * a
            case "neg":
                return -get(args[0])
            case "mul":
                return get(args[0]) * get(args[1])
            case "div":
                return get(args[0]) * _inverse(get(args[1]))
            case "pow":
                return reduce(lambda a, b: a * b % PRIME, [get(args[0])] * int(args[1]))
            case "addcmul":
                factor = get(op.kwargs.get("value", 1))
                return get(args[0]) + factor * (get(args[1]) * get(args[2]) % PRIME)
            case "mm" | "bmm" | "mv" | "dot":
                return _matmul(get(args[0]), get(args[1]))
            case "addmm" | "baddbmm":
                beta, alpha = op.kwargs.get("beta", 1), get(op.kwargs.get("alpha", 1))
                product = alpha * _matmul(get(args[1]), get(args[2]))
                return product if beta == 0 else product + get(beta) * get(args[0])
            case "convolution":
                return self._convolution(op)
            case "sum" | "mean":
                return self._sum(op)
            case "glu":
                a, b = get(args[0]).chunk(2, args[1] if len(args) > 1 else -1)
                return a * _table("sigmoid")[b.long()]
        return _table(function_name(op))[get(args[0]).long()]

    def _unread(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=torch.float64).random_(PRIME, generator=self.generator)

    def _cat(self, op: Op, shape: tuple[int, ...]) -> Tensor:
        dim = op.args[1] % len(shape) if len(op.args) > 1 else 0
        pieces = []
        for piece in op.args[0]:
            if piece in self.tensors:
                pieces.append(self.tensors[piece])
            elif piece.shape[dim] != 0:  # one that nothing reads
                sizes = (*shape[:dim], int(piece.shape[dim]), *shape[dim + 1 :])
                pieces.append(self._unread(sizes))
        return torch.cat(pieces, dim)

    def _convolution(self, op: Op) -> Tensor:
        """A convolution of kernel 1: in each group a product of channels."""
        source, weight, groups = self._get(op.args[0]), self._get(op.args[1]), op.args[8]
        rows = source.unflatten(1, (groups, -1)).flatten(3).movedim(2, 3)  # [batch, group, place, channel]
        columns = weight.reshape(groups, -1, weight.shape[1]).mT
        out = _matmul(rows, columns).movedim(3, 2).reshape(source.shape[0], -1, *source.shape[2:])
        return out if op.args[2] is None else out + self._get(op.args[2]).view(-1, *(1,) * (out.dim() - 2))

    def _sum(self, op: Op) -> Tensor:
        source = self._get(op.args[0])
        dims = op.args[1] if len(op.args) > 1 and op.args[1] else tuple(range(source.dim()))
        total = source.sum(dims, keepdim=bool(len(op.args) > 2 and op.args[2]))
        count = Fraction(max(source.numel(), 1), max(total.numel(), 1))
        return total if op.name == "sum" else total % PRIME * number(1 / count)

    def _scatter(self, op: Op, shape: tuple[int, ...]) -> Tensor:
        before, written, view, output = op.args
        whole, piece = self._find(before), self._find(written)
        result = self._unread(shape) if whole is None else whole.clone()
        if view.name in ("permute", "t", "transpose"):
            part = result.permute(permutation(view))
        elif view.name in ("select", "slice", "split", "split_with_sizes", "unbind"):
            sizes = written.shape if piece is None else piece.shape
            part = _sliced(result, view, output, sizes)
        else:
            part = result if piece is None else result.view(piece.shape)
        part.copy_(self._unread(tuple(part.shape)) if piece is None else piece)
        return result


def permutation(op: Op) -> list[int]:
    """For each dimension of the result of permute, t or transpose, the argument's."""
    return {"permute": moves.permuted, "t": moves.transposed, "transpose": moves.swapped}[op.name](op)


def filling(op: Op) -> object:
    """What full and fill fill with: a tensor, or a number, as it is in the dtype of the result."""
    fill = op.args[-1]
    if isinstance(fill, Value):
        return fill
    return torch.tensor(float(scalar(fill)), dtype=op.outputs[0].dtype, device="cpu").item()


def function_name(op: Op) -> str:
    """The name of an elementwise function, with its parameters if it was given any."""
    if op.name == "gelu" and op.kwargs.get("approximate", "none") != "none":
        return "gelu_tanh"
    given = ", ".join(map(str, (*op.args[1:], *op.kwargs.values())))
    return f"{op.name}({given})" if given and op.name != "gelu" else op.name


def _sliced(source: Tensor, op: Op, output: int, shape: Sequence[Size]) -> Tensor:
    cuts = {"slice": moves.sliced, "select": moves.selected, "unbind": moves.unbound}
    piece = cuts.get(op.name, moves.split)(op, output)
    dim, start, step = piece.dim, piece.start, piece.step
    if not piece.kept:
        return source.select(dim, start)
    size = shape[dim]
    stop = start + (size - 1) * step + 1 if isinstance(size, int) else None
    return source[(slice(None),) * dim + (slice(start, stop, step),)]


# -- the proof ----------------------------------------------------------------------------------------------


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
        key = region.structure()
        if key not in self.known or self.policy == "always":
            try:
                self.known[key] = prove(match)
            except ProofFailed as error:
                log.warning(
                    "%s at %s", error.reason, source_of(match.root.op.node if match.root.op else None)
                )
                raise
        return self.known[key]


def prove(match: Match) -> str:
    """Prove a match.

    Returns:
        ``"exact"``, or ``"exact, n tokens"`` where n tokens were run.

    Raises:
        ProofFailed: the region and the formula differ.
        Refusal: the region cannot be run.
    """
    with torch.device("cpu"):  # whatever the default of the program is
        return _prove(match)


def _prove(match: Match) -> str:
    sizes, tokens = _sizes(match)
    region = sorted(match.visited, key=lambda value: value.time)

    def extent(size: Size) -> int:
        return notation.known(size, match.hints)

    def length(index: Index, size: Size) -> int:
        if not any(axis in sizes for axis in index.axes):
            return extent(size)
        assert index.covers(size)  # or the axes would be among the parts, which keep their sizes
        return math.prod(sizes.get(axis, extent(axis.size)) for axis in index.axes)

    def shape(value: Value) -> tuple[int, ...]:
        index = match.visited.get(value) or leaf_index.get(value)
        if index is None:
            return tuple(map(extent, value.shape))
        return tuple(length(i, s) for i, s in zip(index, value.shape, strict=True))

    leaf_index = _leaf_indices(match)
    composed = joined(
        {v for v, index in leaf_index.items() if sizes.keys().isdisjoint(a for i in index for a in i.axes)}
    )
    others = (part for value in composed if value.op is not None for part in value.op.inputs)
    drawn = dict.fromkeys((*leaf_index, *(part for part in others if part not in match.visited)))
    generator = torch.Generator().manual_seed(len(region))
    known = {
        value: torch.empty(shape(value), dtype=torch.float64).random_(PRIME, generator=generator)
        for value in drawn
        if value not in composed
    }
    for operand in match.unification.operands.values():
        for twin in operand.twins:
            _share(known, operand.leaves[0].value, twin.value)
    replay = _Replay(shape, known, match.numbering)
    replay.run(sorted({*region, *composed} - known.keys(), key=lambda value: value.time))

    def call(function: str | Callable[..., Tensor], *args: Any) -> Tensor:
        result = (getattr(torch.Tensor, function) if isinstance(function, str) else function)(*args)
        if function == "reciprocal":
            return _inverse(args[0])
        return result % PRIME if function in ("mul", "add") else result

    builder = Builder[Tensor](
        call,
        lambda value: replay.tensors[value],
        lambda axis: sizes.get(axis, extent(axis.size)),
        lambda tensor, factor: tensor * number(factor) % PRIME,
    )
    operands = {name: builder.operand(operand) for name, operand in match.unification.operands.items()}
    expected = builder.root(_formula(match, operands), match) % PRIME
    found = replay.tensors[match.root]
    if found.shape != expected.shape or not torch.equal(found, expected):
        raise ProofFailed("the proof failed: the region does not compute the pattern's formula", match.root)
    return "exact" if tokens is None else f"exact, {tokens} tokens"


def _sizes(match: Match) -> tuple[dict[Axis, int], int | None]:
    """The sizes of token axes that a proof runs at instead of their own, and the number of tokens then."""
    roles, hints = match.unification.roles, match.hints
    tokens = [axis for role in match.pattern.tokens for axis in roles[role]]
    contracted = [_contracted(v, v.op) for v in match.visited if v.op is not None]
    work = sum(notation.known(notation.product(sizes), hints) for sizes in contracted if sizes)
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
    parts |= match.pieced
    few = {axis: FEW if axis is tokens[-1] else 2 for axis in tokens if axis not in parts}
    reduced = {axis: min(size, notation.known(axis.size, hints)) for axis, size in few.items()}
    return reduced, math.prod(reduced.get(axis, notation.known(axis.size, hints)) for axis in tokens)


def _contracted(value: Value, op: Op) -> Sequence[Size]:
    """Sizes whose product is the work of an operation that adds up; none of others."""
    rule = RULES[op.name]
    if rule.kind is Kind.SUM:
        return WRITTEN, *op.inputs[0].shape
    if rule.kind is not Kind.CONTRACT or rule.products is None:
        return ()
    a, b = next(product for product in rule.products(op) if len(product) == 2)
    return *value.shape, b.shape[1] if op.name == "convolution" else a.shape[-1]


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


def _share(known: dict[Value, Tensor], value: Any, twin: Any) -> None:
    """Let a value that is computed like another one have the same tensor."""
    if isinstance(value, Value):
        if value in known:
            known[twin] = known[value]
    else:
        for part, other in zip(value.parts, twin.parts, strict=True):
            _share(known, part, other)


def _formula(match: Match, operands: Mapping[str, Tensor]) -> Tensor:
    """The pattern's formula modulo the prime, its scalars being tensors of no dimensions."""
    pattern, unification = match.pattern, match.unification
    given = [operands.get(name) for name in pattern.operands]
    given += [
        torch.tensor(float(number(unification.scalars[name])), dtype=torch.float64)
        for name in pattern.scalars
    ]
    count, activation = len(pattern.operands), ACTIVATIONS[unification.activation].function
    tape, inputs, result = record_function(
        lambda *args: pattern.formula(*args[:count], activation, *args[count:]),
        *(None if tensor is None else tuple(tensor.shape) for tensor in given),
    )
    known = {i: t for i, t in zip(inputs, given, strict=True) if i is not None and t is not None}
    replay = _Replay(lambda value: tuple(int(size) for size in value.shape), known, ValueNumbering(tape))
    replay.run(tape.values)
    return replay.tensors[result]
