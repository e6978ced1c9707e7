"""The proof refuses wrong rewrites of right programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from mhf_compile.matching.match import Match
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.matching.unification import Operand
from mhf_compile.notation import Func, Leaf, Term
from mhf_compile.rewriting import proof as prove
from tests.rewriting.programs import N, matches


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
    leaf = operand.leaf
    assert leaf is not None
    index = list(leaf.index)
    index[dim] = replace(index[dim], offset=index[dim].offset + 1)
    return replace(operand, terms=(Term(factors=(Leaf(leaf.value, tuple(index)),)),))


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
    operand = match.unification.operands["v"]
    (term,) = operand.terms
    return with_operands(match, v=replace(operand, terms=(replace(term, coefficient=Fraction(2)),)))


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
    (term,) = operand.terms
    divisors = [factor for factor in term.factors if isinstance(factor, Func)]
    (weights,) = (factor for factor in term.factors if isinstance(factor, Leaf))
    first, second = (entry for divisor in divisors for entry in divisor.entries)
    assert prove.prove(match) == "exact"
    for wrong in (
        (*term.factors, divisors[0]),
        (first, Func("reciprocal", weights), divisors[1]),
        (weights, second, divisors[0]),
    ):
        with pytest.raises(NoMatch, match="the proof failed"):
            prove.prove(with_operands(match, r=replace(operand, terms=(replace(term, factors=wrong),))))


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
