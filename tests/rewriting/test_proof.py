"""The proof: its arithmetic is exact, it proves what is right, and it refuses what is planted wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

import mhf_compile
from mhf_compile.matching.match import Match
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.matching.search import find
from mhf_compile.matching.unify import Operand
from mhf_compile.notation import Axes, Index, Leaf, Term
from mhf_compile.reading import rules
from mhf_compile.rewriting import field
from mhf_compile.rewriting import proof as prove
from mhf_compile.rewriting.claim import claim
from mhf_compile.rewriting.region import Region
from mhf_compile.tape.recorder import record
from mhf_compile.tape.values import Op
from tests.programs import BY_NAME, SPELLINGS, Spelling

P = field.PRIME


def table(name: str) -> Tensor:
    """A function at all elements of the field, by its name as an activation."""
    parameters = {"gelu": ("none",), "gelu_tanh": ("tanh",)}.get(name, ())
    return field.table(name.removesuffix("_tanh"), *parameters)


# -- arithmetic ---------------------------------------------------------------------------------------------


def elements(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(P, shape, generator=generator).double()


def ints(tensor: Tensor) -> list[int]:
    return [int(entry) for entry in tensor.flatten().tolist()]


def test_the_prime_is_prime_and_sums_of_a_chunk_are_exact() -> None:
    assert all(P % divisor for divisor in range(2, math.isqrt(P) + 1))
    assert field.CHUNK * P**2 + P < 2**53


@pytest.mark.parametrize("inner", [1, 7, field.CHUNK, 2 * field.CHUNK + 3])
def test_matmul_is_that_of_integers(inner: int) -> None:
    # The largest entries: the sums that are nearest to what float64 cannot hold.
    for a, b in (
        (elements(2, inner), elements(inner, 2, seed=1)),
        (torch.full((2, inner), P - 1.0), torch.full((inner, 2), P - 1.0)),
    ):
        expected = [
            sum(x * y for x, y in zip(ints(row), ints(column), strict=True)) % P
            for row in a
            for column in b.T
        ]
        assert ints(field.matmul(a.double(), b.double())) == expected


def test_matmul_of_batches_and_vectors() -> None:
    a, b = elements(3, 2, 5), elements(3, 5, 4, seed=1)
    for i in range(3):
        assert torch.equal(field.matmul(a, b)[i], field.matmul(a[i], b[i]))
    assert torch.equal(field.matmul(a[0], b[0, :, 1]), field.matmul(a[0], b[0])[:, 1])


def test_inverse() -> None:
    x = torch.tensor([0, 1, 2, 3, P - 1, 12345]).double()
    assert ints(field.inverse(x)) == [0] + [pow(int(n), -1, P) for n in x[1:]]


@pytest.mark.parametrize("value", [Fraction(3), Fraction(-1, 3), Fraction(0.1), Fraction(7, 2**30)])
def test_a_rational_number_in_the_field(value: Fraction) -> None:
    assert field.number(value) * value.denominator % P == value.numerator % P


def test_the_tables_keep_the_identities_that_the_reader_uses() -> None:
    x = torch.arange(P, dtype=torch.float64)
    exp, sigmoid, silu = (table(name) for name in ("exp", "sigmoid", "silu"))
    exp_of_minus = exp[((P - x) % P).long()]
    # sigmoid(x) * (1 + exp(-x)) = 1 wherever the denominator is not 0, and there it is 0
    regular = (1 + exp_of_minus) % P != 0
    assert torch.equal(
        (sigmoid * ((1 + exp_of_minus) % P) % P)[regular], torch.ones(int(regular.sum())).double()
    )
    assert not sigmoid[~regular].any()
    assert torch.equal(silu, x * sigmoid % P)
    assert torch.equal(table("reciprocal") * x % P, (x != 0).double())


IDENTITIES: dict[str, Callable[[Callable[[str], Tensor], Tensor], tuple[Tensor, Tensor]]] = {
    "exp(x) exp(-x) = 1": lambda f, x: (f("exp") * minus(f("exp")), torch.ones_like(x)),
    "erf(-x) = -erf(x)": lambda f, x: (minus(f("erf")), -f("erf")),
    "erfc(x) = 1 - erf(x)": lambda f, x: (f("erfc"), 1 - f("erf")),
    "sigmoid(x) + sigmoid(-x) = 1": lambda f, x: (f("sigmoid") + minus(f("sigmoid")), torch.ones_like(x)),
    "sigmoid(x) = exp(x) / (1 + exp(x))": lambda f, x: (f("sigmoid") * ((1 + f("exp")) % P), f("exp")),
    "tanh(-x) = -tanh(x)": lambda f, x: (minus(f("tanh")), -f("tanh")),
    "tanh(x) = 2 sigmoid(2 x) - 1": lambda f, x: (f("tanh"), 2 * at(f("sigmoid"), 2 * x) - 1),
    "relu(x) relu(x) = x relu(x)": lambda f, x: (f("relu") * f("relu"), x * f("relu")),
    "silu(x) = x sigmoid(x)": lambda f, x: (f("silu"), x * f("sigmoid")),
    "silu(x) = x / 2 (1 + tanh(x / 2))": lambda f, x: (
        2 * f("silu"),
        x * ((1 + at(f("tanh"), x * HALF)) % P),
    ),
    "gelu(x) = x / 2 erfc(-x / sqrt(2))": lambda f, x: (
        2 * f("gelu"),
        x * at(f("erfc"), -x * in_field(math.sqrt(0.5))),
    ),
    "gelu_tanh(x) = x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x**3))": lambda f, x: (
        f("gelu_tanh"),
        x * at(f("sigmoid"), 2 * in_field(math.sqrt(2 / math.pi)) * ((x + cubed(x)) % P)),
    ),
}


def at(table: Tensor, x: Tensor) -> Tensor:
    """A function at other elements than 0, 1, 2, ..., which are below 2**53."""
    return table[(x % P).long()]


def minus(table: Tensor) -> Tensor:
    """The table of f(-x)."""
    return at(table, -torch.arange(P, dtype=torch.float64))


def cubed(x: Tensor) -> Tensor:
    return x * x % P * x % P * in_field(0.044715) % P


def in_field(value: float) -> int:
    return field.number(Fraction(value))


HALF = in_field(0.5)


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_tables_keep_the_identities_of_other_spellings(name: str) -> None:
    """Everywhere: at no element is a denominator 0."""
    a, b = IDENTITIES[name](table, torch.arange(P, dtype=torch.float64))
    assert torch.equal(a % P, b % P)


def test_functions_are_told_apart() -> None:
    """Each table is as good as random: two functions agree at about one element, and none is the identity.

    But relu is the identity at about half of them, and 0 at the others.
    """
    names = [
        "exp",
        "sigmoid",
        "silu",
        "gelu",
        "gelu_tanh",
        "relu",
        "tanh",
        "erf",
        "erfc",
        "reciprocal",
        "mish",
    ]
    x = torch.arange(P, dtype=torch.float64)
    tables = {"x": x, "0": torch.zeros_like(x), **{name: table(name) for name in names}}
    assert abs(int((tables["relu"] == x).sum()) - P / 2) < 4 * math.sqrt(P / 4)  # four standard deviations
    assert int((tables["relu"] == x).sum() + (tables["relu"] == 0).sum()) == P + 1
    for (name, a), (other, b) in combinations(tables.items(), 2):
        if {name, other} not in ({"relu", "x"}, {"relu", "0"}):
            assert int((a == b).sum()) < 20, (name, other)


# -- right matches ------------------------------------------------------------------------------------------


def matches(program: Callable[..., Tensor], *tensors: Tensor, **options: Any) -> list[tuple[Match, Region]]:
    """The matches of a program with their regions."""
    found: list[tuple[Match, Region]] = []

    def backend(module: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        tape = record(module)
        found.extend((match, Region(tape, match)) for match in find(tape) if isinstance(match, Match))
        return module

    torch._dynamo.reset()
    torch.compile(program, backend=backend, **options)(*tensors)
    return found


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_right_matches_are_proved(spelling: Spelling) -> None:
    ((match, _),) = matches(spelling.program, *spelling.tensors())
    assert prove.prove(match) == "exact"
    with mock.patch.object(prove, "BUDGET", 0):
        assert prove.prove(match) == "exact, 8 tokens"


def test_a_large_token_count_is_proved_on_few() -> None:
    q, weight = torch.randn(2, 16384, 4, 64), torch.randn(2, 64, 64)
    ((match, _),) = matches(BY_NAME["grouped"].program, q, weight, weight + 1, weight + 2)
    assert prove.prove(match) == "exact, 8 tokens"


def test_products_that_are_added_up_are_work_too() -> None:
    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        gate, up = ((q[:, :, None] * weight).sum(-1) for weight in (k, u))
        return ((silu(gate) * up)[:, :, None] * v).sum(-1)

    weights = [torch.empty(64, 32, device="meta") for _ in range(3)]
    for length, proof in ((1024, "exact"), (16384, "exact, 8 tokens")):
        q = torch.empty(2, length, 32, device="meta")
        ((match, _),) = matches(program, q, *weights[:2], weights[2].mT)
        assert prove.prove(match) == proof


def test_symbolic_sizes_are_proved_on_few_tokens() -> None:
    spelling = BY_NAME["loop"]
    x, *weights = spelling.tensors()
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(x, 1)
    ((match, _),) = matches(spelling.program, x, *weights)
    assert prove.prove(match) == "exact, 8 tokens"


def hidden(x: Tensor, k: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    return silu(torch.einsum("...hd,hfd->...hf", x, k)), torch.einsum("...hd,hfd->...hf", x, u)


def down(hidden: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("...hf,hfo->...ho", hidden, v)


def each_of_a_batch(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.stack([down(torch.mul(*hidden(entry, k, u)), v) for entry in x])


def batch_put_together_and_taken_apart(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return each_of_a_batch(torch.stack([*x]), k, u, v)


def halves_of_tokens(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = hidden(x.flatten(0, 1), k, u)
    return down(torch.cat(gate.split(24)) * up, v)


def pieces_of_tokens(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = hidden(x.flatten(0, 1), k, u)
    return down(torch.cat(gate.split([3, 45])) * up, v).view(4, 12, 3, 8)


def pieces_of_a_batch_and_its_tokens(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = hidden(x, k, u)
    return down(torch.cat(gate.flatten(0, 1).split([3, 45])).view(up.shape) * up, v)


def heads_moved_before_they_are_joined(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = hidden(x, k, u)
    return down(torch.cat([head.unsqueeze(2) for head in gate.unbind(2)], 2) * up, v)


def heads_of_flat_tokens(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = hidden(x, k, u)
    pieces = [piece.flatten(0, 1) for piece in gate.split([1, 2], 2)]
    return down(torch.cat(pieces, 1).view(up.shape) * up, v)


@pytest.mark.parametrize(
    ("program", "tokens"),
    [
        (heads_moved_before_they_are_joined, 8),
        (heads_of_flat_tokens, 8),
        (each_of_a_batch, 16),
        (batch_put_together_and_taken_apart, 16),
        (halves_of_tokens, 48),
        (pieces_of_tokens, 48),
        (pieces_of_a_batch_and_its_tokens, 48),
    ],
)
def test_tokens_whose_numbers_are_in_the_program_are_not_left_out(
    program: Callable[..., Tensor], tokens: int
) -> None:
    weights = (torch.randn(3, 7, 6), torch.randn(3, 7, 6), torch.randn(3, 7, 8))
    ((match, _),) = matches(program, torch.randn(4, 12, 3, 6), *weights)
    with mock.patch.object(prove, "BUDGET", 0):
        assert prove.prove(match) == f"exact, {tokens} tokens"


ROOT = math.sqrt(2 / math.pi)

PARTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "silu by exp": ("silu", lambda x: x / (1 + torch.exp(-x))),
    "silu by tanh": ("silu", lambda x: 0.5 * x * (1 + torch.tanh(0.5 * x))),
    "quick gelu": ("silu", lambda x: x * torch.sigmoid(1.702 * x)),
    "sigmoid by exp": ("sigmoid", lambda x: 1 / (1 + torch.exp(-x))),
    "gelu by erf": ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
    "gelu by erfc": ("gelu", lambda x: 0.5 * x * torch.erfc(-x * math.sqrt(0.5))),
    "tanh gelu": ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x**3)))),
    "tanh gelu by sigmoid": ("gelu_tanh", lambda x: x * torch.sigmoid(2 * ROOT * (x + 0.044715 * x**3))),
    "x * relu(x)": ("relu_squared", lambda x: x * torch.relu(x)),
    "relu": ("relu", torch.relu),
    "none": ("identity", lambda x: x),
}


@pytest.mark.parametrize("gate", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("name", PARTS)
def test_activations_made_of_parts_are_proved_and_none_stands_for_another(name: str, gate: bool) -> None:
    activation, function = PARTS[name]

    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        hidden = function(torch.einsum("bthd,hfd->bthf", q, k))
        hidden = hidden * torch.einsum("bthd,hfd->bthf", q, u) if gate else hidden
        return torch.einsum("bthf,hfo->btho", hidden, v)

    found = matches(program, torch.randn(2, 5, 3, 4), *(torch.randn(3, 7, 4) for _ in range(3)))
    if activation == "identity" and not gate:
        assert found == []
        return
    ((match, _),) = found
    assert match.unification.activation == activation
    assert prove.prove(match) == "exact"
    for other in match.pattern.activations - {activation}:
        wrong = replace(match, unification=replace(match.unification, activation=other))
        with pytest.raises(NoMatch, match="the proof failed"):
            prove.prove(wrong)


# -- wrong rewrites of right programs -----------------------------------------------------------------------

N = 3  # every head, sub-network and width is of this size here, so that nothing but a value can be wrong


def cube(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """Operands are parts of wider tensors, all of whose dimensions in use are of size N."""
    k, u, v = k[:N, :, :N], u[:N, :, :N], v[:N, :, :N]
    hidden = silu(0.5 * torch.einsum("bthd,hefd->bthef", q, k)) * torch.einsum("bthd,hefd->bthef", q, u)
    return 3 * torch.einsum("bthe,bthef,hefo->btho", r[..., :N], hidden, v)


def cube_tensors() -> list[Tensor]:
    wide = (2 * N, N, 2 * N, N)
    return [torch.randn(shape) for shape in ((N, N, N, N), wide, wide, wide, (N, N, N, 2 * N))]


def with_operands(match: Match, **operands: Operand) -> Match:
    unification = match.unification
    return replace(match, unification=replace(unification, operands={**unification.operands, **operands}))


def shifted(operand: Operand, dim: int) -> Operand:
    """The operand read one position further along a dimension."""
    (leaf,) = operand.leaves
    index = list(leaf.index)
    index[dim] = replace(index[dim], offset=index[dim].offset + 1)
    return replace(operand, leaves=(Leaf(leaf.value, tuple(index)),))


def transposed(operand: Operand, one: int, other: int) -> Operand:
    dims = list(operand.dims)
    dims[one], dims[other] = dims[other], dims[one]
    return replace(operand, dims=tuple(dims))


def swapped_keys(match: Match) -> Match:
    operands = match.unification.operands
    return with_operands(match, k=operands["u"], u=operands["k"])


def values_for_keys(match: Match) -> Match:
    keys, values = (match.unification.operands[name] for name in "kv")
    return with_operands(match, k=values, v=keys)


def neighbouring_weights(match: Match) -> Match:
    return with_operands(match, r=shifted(match.unification.operands["r"], 3))


def neighbouring_heads(match: Match) -> Match:
    return with_operands(match, k=shifted(match.unification.operands["k"], 0))


def wrong_offset_of_the_width(match: Match) -> Match:
    return with_operands(match, u=shifted(match.unification.operands["u"], 2))


def values_transposed(match: Match) -> Match:
    return with_operands(match, v=transposed(match.unification.operands["v"], 2, 3))


def heads_and_subnetworks_of_values_swapped(match: Match) -> Match:
    return with_operands(match, v=transposed(match.unification.operands["v"], 0, 1))


def weights_of_subnetworks_for_heads(match: Match) -> Match:
    return with_operands(match, r=transposed(match.unification.operands["r"], 2, 3))


def result_transposed(match: Match) -> Match:
    *others, heads, width = match.unification.result
    return replace(match, unification=replace(match.unification, result=(*others, width, heads)))


def _scalar(match: Match, name: str) -> Match:
    scalars = {**match.unification.scalars, name: Fraction(1)}
    assert scalars != match.unification.scalars
    return replace(match, unification=replace(match.unification, scalars=scalars))


def gate_scale_dropped(match: Match) -> Match:
    return _scalar(match, "gate_scale")


def scale_dropped(match: Match) -> Match:
    return _scalar(match, "scale")


def coefficient_of_an_operand(match: Match) -> Match:
    return with_operands(match, v=replace(match.unification.operands["v"], coefficient=Fraction(2)))


CORRUPTIONS = [
    swapped_keys,
    values_for_keys,
    neighbouring_weights,
    neighbouring_heads,
    wrong_offset_of_the_width,
    values_transposed,
    heads_and_subnetworks_of_values_swapped,
    weights_of_subnetworks_for_heads,
    result_transposed,
    gate_scale_dropped,
    scale_dropped,
    coefficient_of_an_operand,
]


@pytest.mark.parametrize("budget", [prove.BUDGET, 0], ids=["all_tokens", "few_tokens"])
@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda f: f.__name__)
def test_a_wrong_match_is_refused(corrupt: Callable[[Match], Match], budget: int) -> None:
    ((match, _),) = matches(cube, *cube_tensors())
    with mock.patch.object(prove, "BUDGET", budget):
        assert prove.prove(match).startswith("exact")
        with pytest.raises(NoMatch, match="the proof failed"):
            prove.prove(corrupt(match))


def dense_with_bias(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, bias: Tensor) -> Tensor:
    return linear(silu(linear(x, gate)) * linear(x, up), down, bias)


def test_a_wrong_addend_is_refused() -> None:
    tensors = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5, 4), torch.randn(4, 5), torch.randn(4)
    ((match, _),) = matches(dense_with_bias, *tensors)
    (addend,) = match.addends
    assert prove.prove(match) == "exact"
    for wrong in ((addend, addend), (replace(addend, coefficient=Fraction(-1)),)):
        with pytest.raises(NoMatch, match="the proof failed"):
            prove.prove(replace(match, addends=wrong))


def test_a_wrong_divisor_is_refused() -> None:
    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
        weights = r.sin()
        return cube(q, k, u, v, weights) / weights.sum(-1, keepdim=True) / r.cos().sum(-1, keepdim=True)

    ((match, _),) = matches(program, *cube_tensors())
    operand = match.unification.operands["r"]
    first, second = operand.divisors
    assert prove.prove(match) == "exact"
    for wrong in (
        replace(operand, divisors=(first, first, second)),
        replace(operand, divisors=(*operand.leaves, second), leaves=(first,)),
        replace(operand, leaves=(*operand.leaves, second), divisors=(first,)),
    ):
        with pytest.raises(NoMatch, match="the proof failed"):
            prove.prove(with_operands(match, r=wrong))


def test_a_wrong_sum_of_products_added_is_refused() -> None:
    def program(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, shared: Tensor, r: Tensor) -> Tensor:
        out = dense_with_bias(x, gate, up, down, torch.zeros(4)) * r.sum(-1, keepdim=True)
        return out + 3 * (r @ shared)

    sizes = (2, 3, 4), (5, 4), (5, 4), (4, 5), (6, 4), (2, 3, 6)
    ((match, _),) = matches(program, *map(torch.randn, sizes))
    assert prove.prove(match) == "exact"
    for addend in match.addends:
        assert addend.bound
        for wrong in (replace(addend, coefficient=Fraction(2)), replace(addend, factors=addend.factors[:1])):
            with pytest.raises(NoMatch, match="the proof failed"):
                prove.prove(replace(match, addends=(wrong,)))


# -- wrong rules --------------------------------------------------------------------------------------------


READ = {name: rule.read for name, rule in rules.RULES.items()}
"""The right rules."""


def permute_ignoring_dims(op: Op, out: int, index: tuple[Index, ...], axes: Axes) -> list[Term]:
    return [Term(factors=(Leaf(op.args[0], index),))]


def slice_one_off(op: Op, out: int, index: tuple[Index, ...], axes: Axes) -> list[Term]:
    (term,) = READ["slice"](op, out, index, axes)
    (leaf,) = term.factors
    assert isinstance(leaf, Leaf)
    dim = op.args[1]
    found = list(leaf.index)
    found[dim] = found[dim].affine(1, 1)
    return [Term(factors=(Leaf(leaf.value, tuple(found)),))]


def pieces_in_reverse(op: Op, out: int, index: tuple[Index, ...], axes: Axes) -> list[Term]:
    pieces, *dim = op.args
    return READ["stack"](replace_arguments(op, (pieces[::-1], *dim)), out, index, axes)


def add_without_alpha(op: Op, out: int, index: tuple[Index, ...], axes: Axes) -> list[Term]:
    return READ["add"](replace_arguments(op, op.args, {}), out, index, axes)


def half(op: Op, out: int, index: tuple[Index, ...], axes: Axes) -> list[Term]:
    return [replace(term, coefficient=term.coefficient / 2) for term in READ["neg"](op, out, index, axes)]


def replace_arguments(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Op:
    """An operation with other arguments, that its inputs do not know of."""
    with mock.patch.object(Op, "__post_init__", lambda self: None):
        return replace(op, args=args, kwargs=op.kwargs if kwargs is None else kwargs)


def gated(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    hidden = silu(torch.einsum("bthd,hfd->bthf", q, k)) * torch.einsum("bthd,hfd->bthf", q, u)
    return torch.einsum("bthf,hfo->btho", hidden, v)


def through_permute(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return (silu(q @ k.permute(0, 2, 1)) * (q @ u)) @ v


def through_slice(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    wide = torch.cat([k, u, v], 1)
    return gated(q, wide[:, 1 : 1 + N], u, v)


def through_stack(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    heads = zip(q.unbind(2), k.unbind(), u.unbind(), v.unbind(), strict=True)
    own = [[1 + tensor for tensor in head] for head in heads]  # tensors with no order among them
    return torch.stack([(silu(q @ k.t()) * (q @ u.t())) @ v for q, k, u, v in own], 2)


def through_add(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return biased(q, k, u, v, 2)


def through_neg(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    up = -torch.einsum("bthd,hfd->bthf", q, u)
    return torch.einsum("bthf,hfo->btho", silu(torch.einsum("bthd,hfd->bthf", q, k)) * up, v)


PLANTS = [
    ("permute", permute_ignoring_dims, through_permute),
    ("slice", slice_one_off, through_slice),
    ("stack", pieces_in_reverse, through_stack),
    ("add", add_without_alpha, through_add),
    ("neg", half, through_neg),
]


@contextmanager
def planted(name: str, wrong: Callable[..., list[Term]]) -> Iterator[None]:
    with mock.patch.dict(rules.RULES, {name: replace(rules.RULES[name], read=wrong)}):
        yield


@pytest.mark.parametrize(("name", "wrong", "program"), PLANTS, ids=[plant[0] for plant in PLANTS])
def test_a_wrong_rule_is_found_out(
    name: str,
    wrong: Callable[..., list[Term]],
    program: Callable[..., Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tensors = [torch.randn(N, N, N, N), *(torch.randn(N, N, N) for _ in range(3))]
    expected = program(*tensors)

    def run(policy: str) -> Tensor:
        torch._dynamo.reset()
        options = {"flashmhf.inner": "eager", "flashmhf.strict": True, "flashmhf.prove": policy}
        result: Tensor = torch.compile(program, backend="flashmhf", options=options)(*tensors)
        return result

    with planted(name, wrong):
        assert not torch.allclose(run("never"), expected)  # or the plant would show nothing
        caplog.clear()
        assert torch.equal(run("auto"), expected)
    (report,) = mhf_compile.last_reports()
    assert report.rewrites == ()
    assert all("the proof failed" in miss.reason for miss in report.misses)
    (warning,) = [entry for entry in caplog.records if entry.name.startswith("mhf_compile")]
    assert (warning.name, warning.levelname) == ("mhf_compile.rewriting.proof", "WARNING")
    assert "the proof failed" in warning.getMessage()
    assert "tests/rewriting/test_proof.py:" in warning.getMessage()
    torch.testing.assert_close(run("auto"), expected)  # without the plant it is rewritten
    assert len(mhf_compile.last_reports()[0].rewrites) == 1


# -- policies -----------------------------------------------------------------------------------------------


def layers(q: Tensor, *weights: Tensor) -> Tensor:
    for layer in range(len(weights) // 3):
        q = q + gated(q, *weights[3 * layer : 3 * layer + 3])
    return q


@pytest.mark.parametrize(
    ("policy", "proofs", "said"), [("auto", 2, "exact"), ("always", 4, "exact"), ("never", 0, "not proved")]
)
def test_policies(policy: str, proofs: int, said: str) -> None:
    """Four layers, the last of another width: two distinct regions."""
    sizes = [5, 5, 5, 6]
    weights = [torch.randn(2, size, 4) for size in sizes for _ in range(3)]
    torch._dynamo.reset()
    options = {"flashmhf.inner": "eager", "flashmhf.strict": True, "flashmhf.prove": policy}
    with mock.patch.object(prove, "prove", wraps=prove.prove) as counted:
        torch.compile(layers, backend="flashmhf", options=options)(torch.randn(2, 3, 2, 4), *weights)
    assert counted.call_count == proofs
    (report,) = mhf_compile.last_reports()
    assert [rewrite.proof for rewrite in report.rewrites] == [said] * 4


# -- which regions are equal --------------------------------------------------------------------------------

WEIGHTS = [torch.randn(2, 5, 4) for _ in range(6)]
QUERY = torch.randn(2, 3, 2, 4)


def structures(program: Callable[..., Tensor], *tensors: Tensor) -> list[object]:
    return [claim(match, region) for match, region in matches(program, *tensors)]


def test_layers_with_weights_of_their_own_are_of_one_structure() -> None:
    first, second = structures(layers, QUERY, *WEIGHTS)
    assert first == second
    assert hash(first) == hash(second)


def biased(q: Tensor, k: Tensor, u: Tensor, v: Tensor, times: int) -> Tensor:
    gate = torch.add(torch.einsum("bthd,hfd->bthf", q, k), v[:, :, 0], alpha=times)
    return torch.einsum("bthf,hfo->btho", silu(gate) * torch.einsum("bthd,hfd->bthf", q, u), v)


DIFFERENT: dict[str, Callable[..., Tensor]] = {
    "a constant": lambda q, k, u, v: 2 * gated(q, k, u, v),
    "another constant": lambda q, k, u, v: 3 * gated(q, k, u, v),
    "a bias": lambda q, k, u, v: biased(q, k, u, v, 1),
    "a bias twice": lambda q, k, u, v: biased(q, k, u, v, 2),
    "one tensor twice": lambda q, k, u, v: gated(q, k, k, v),
    "another tensor twice": lambda q, k, u, v: gated(q, k, v, v),
    "a permutation of the heads": lambda q, k, u, v: gated(q.permute(1, 0, 2, 3), k, u, v),
    "a part": lambda q, k, u, v: gated(q, k[:, :3], u[:, :3], v[:, :3]),
    "another part": lambda q, k, u, v: gated(q, k[:, 2:], u[:, 2:], v[:, 2:]),
    "dtype": lambda q, k, u, v: gated(q.double(), k.double(), u.double(), v.double()),
}


def test_regions_that_differ_in_anything_are_of_different_structures() -> None:
    found = {name: structures(program, QUERY, *WEIGHTS[:3]) for name, program in DIFFERENT.items()}
    found["width"] = structures(gated, QUERY, *(torch.randn(2, 6, 4) for _ in range(3)))
    found["tokens"] = structures(gated, torch.randn(2, 4, 2, 4), *WEIGHTS[:3])
    found["plain"] = structures(gated, QUERY, *WEIGHTS[:3])
    assert {name: len(s) for name, s in found.items()} == dict.fromkeys(found, 1)
    names = list(found)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert found[a] != found[b], (a, b)
