"""Unification: which leaf is which operand, which axis has which role, and the reasons when there is none."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu, silu

from mhf_compile.matching.match import Match
from mhf_compile.matching.unification import Unification
from mhf_compile.notation import Func, product
from tests.matching.programs import Program, searched
from tests.programs import BY_NAME

B, T, H, E, F, D, O = 2, 3, 5, 7, 11, 13, 17  # noqa: E741
SHAPES = {
    "q": (B, T, H, D),
    "k": (H, E, F, D),
    "u": (H, E, F, D),
    "v": (H, E, F, O),
    "r": (B, T, H, E),
    "gate_bias": (H, E, F),
    "up_bias": (H, E, F),
}


def unified(program: Program, *tensors: Tensor) -> Unification:
    (match,) = searched(program, *tensors)
    assert isinstance(match, Match), match
    return match.unification


def operands(names: str = "q k u v r") -> list[Tensor]:
    return [torch.randn(SHAPES[name]) for name in names.split()]


def sizes(unification: Unification) -> dict[str, object]:
    return {role: unification.size(role) for role in unification.roles}


def shapes(unification: Unification) -> dict[str, tuple[object, ...]]:
    """The sizes of the dimensions of each operand."""
    return {
        name: tuple(product([axis.size for axis in dim]) for dim in operand.dims)
        for name, operand in unification.operands.items()
    }


def full(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
    return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up, v)


def test_roles_and_dimensions() -> None:
    unification = unified(full, *operands())
    assert sizes(unification) == {"b": B, "t": T, "h": H, "g": 1, "e": E, "f": F, "d": D, "o": O}
    assert shapes(unification) == {name: SHAPES[name] for name in ("q", "k", "u", "v", "r")}
    assert [product([a.size for a in dim]) for dim in unification.result] == [B, T, H, O]
    assert unification.activation == "silu"


@pytest.mark.parametrize("order", [*permutations("hefd")][::5], ids="".join)
def test_no_layout_of_the_keys_matters(order: tuple[str, ...]) -> None:
    letters = "".join(order)

    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
        return full(q, torch.einsum(f"{letters}->hefd", k), u, v, r)

    q, k, u, v, r = operands()
    unification = unified(program, q, torch.einsum(f"hefd->{letters}", k).contiguous(), u, v, r)
    assert shapes(unification) == {name: SHAPES[name] for name in ("q", "k", "u", "v", "r")}
    leaf = unification.operands["k"].leaf
    assert leaf is not None
    assert leaf.value.shape == tuple(SHAPES["k"]["hefd".index(letter)] for letter in letters)


def test_without_weights_subnetworks_are_width() -> None:
    q, k, u, v = operands("q k u v")

    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
        return torch.einsum("bthef,hefo->btho", silu(gate) * up, v)

    assert sizes(unified(program, q, k, u, v)) == {
        "b": B, "t": T, "h": H, "g": 1, "e": 1, "f": E * F, "d": D, "o": O
    }  # fmt: skip


def test_dense_has_one_head() -> None:
    x, gate, up, down = torch.randn(B, T, D), torch.randn(F, D), torch.randn(F, D), torch.randn(O, F)
    unification = unified(
        lambda *a: linear(silu(linear(a[0], a[1])) * linear(a[0], a[2]), a[3]), x, gate, up, down
    )
    assert sizes(unification) == {"b": B, "t": T, "h": 1, "g": 1, "e": 1, "f": F, "d": D, "o": O}
    assert unification.size("b", "t") == B * T and unification.size() == 1


def test_grouped_heads_are_the_lesser_digit_of_the_queries() -> None:
    spelling = BY_NAME["grouped"]
    unification = unified(spelling.program, *spelling.tensors())
    assert (unification.size("h"), unification.size("g")) == (3, 2)
    assert [axis.size for axis in unification.operands["q"].dims[2]] == [3, 2]
    assert [axis.size for axis in unification.operands["k"].dims[0]] == [3]


def test_scalars_are_collected_exactly() -> None:
    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
        gate, up = (torch.einsum("bthd,hefd->bthef", 2 * q, weight) for weight in (k, u))
        return torch.einsum("bthe,bthef,hefo->btho", r, silu(-gate / 4) * (3 * up), v) * 0.1

    unification = unified(program, *operands())
    assert unification.scalars == {"gate_scale": Fraction(-1, 2), "scale": 6 * Fraction(0.1)}
    plain = unified(full, *operands())
    assert plain.scalars == {"gate_scale": 1, "scale": 1}


@pytest.mark.parametrize(
    ("function", "activation", "gate_scale", "scale"),
    [
        (torch.sigmoid, "sigmoid", 1, 1),
        (lambda x: x * torch.sigmoid(1.702 * x), "silu", Fraction(1.702), 1 / Fraction(1.702)),
        (lambda x: 3 * gelu(x / 4), "gelu", Fraction(1, 4), 3),
        (lambda x: gelu(-x, approximate="tanh"), "gelu_tanh", -1, 1),
        (lambda x: relu(x / 2) ** 2 / 2, "relu_squared", Fraction(1, 2), Fraction(1, 2)),
        (lambda x: x / 2, "identity", Fraction(1, 2), 1),
    ],
    ids=["sigmoid", "quick_gelu", "gelu", "gelu_tanh", "relu_squared", "identity"],
)
def test_scalars_of_each_activation_are_collected_exactly(
    function: Callable[[Tensor], Tensor], activation: str, gate_scale: Fraction, scale: Fraction
) -> None:
    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
        gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
        return torch.einsum("bthe,bthef,hefo->btho", r, function(gate) * up, v)

    unification = unified(program, *operands())
    assert unification.activation == activation
    assert unification.scalars == {"gate_scale": gate_scale, "scale": scale}


def ungated(q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
    gate = torch.einsum("bthd,hefd->bthef", q, k)
    return torch.einsum("bthe,bthef,hefo->btho", r, relu(gate), v)


def test_without_a_gate_there_is_no_up_projection() -> None:
    (match,) = searched(ungated, *operands("q k v r"))
    assert isinstance(match, Match) and match.pattern.name == "ungated_mhf"
    unification = match.unification
    assert sizes(unification) == {"b": B, "t": T, "h": H, "g": 1, "e": E, "f": F, "d": D, "o": O}
    assert shapes(unification) == {name: SHAPES[name] for name in ("q", "k", "v", "r")}
    assert unification.activation == "relu"


def test_biases() -> None:
    def program(q, k, u, v, r, gate_bias, up_bias):
        gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
        return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate + gate_bias) * (up - up_bias), v)

    unification = unified(program, *operands("q k u v r gate_bias up_bias"))
    assert shapes(unification) == SHAPES
    for name, coefficient in (("gate_bias", 1), ("up_bias", -1)):
        (term,) = unification.operands[name].terms
        assert term.coefficient == coefficient and len(term.factors) == 1


def test_factors_of_tokens_heads_and_subnetworks_make_up_the_weights() -> None:
    def program(q, k, u, v, r):
        return full(q, k, u, v, r.sigmoid()) * r.mean(-1, keepdim=True) * k[:, 0, 0, :1]

    operand = unified(program, *operands()).operands["r"]
    (term,) = operand.terms
    assert len(term.factors) == len(operand.entries) == 3 and operand.leaf is None
    assert tuple(product([axis.size for axis in dim]) for dim in operand.dims) == SHAPES["r"]


def test_weights_that_are_normalised_are_divided() -> None:
    def program(q, k, u, v, r):
        weights = r.exp()
        return full(q, k, u, v, weights) / weights.sum(-1, keepdim=True)

    operand = unified(program, *operands()).operands["r"]
    (term,) = operand.terms
    (divisor,) = (factor for factor in term.factors if isinstance(factor, Func))
    assert divisor.name == "reciprocal" and len(term.factors) == len(operand.entries) == 2


def test_a_multiple_of_an_operand_is_the_operand() -> None:
    def program(q, k, u, v, r):
        gate, up = torch.einsum("bthd,hefd->bthef", q * 2, k), torch.einsum("bthd,hefd->bthef", -q, u)
        return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up, v)

    unification = unified(program, *operands())
    assert {
        leaf.value.op for leaf in (*unification.operands["q"].entries, *unification.operands["q"].twins)
    } == {None}
    assert unification.scalars == {"gate_scale": 2, "scale": -1}


def test_an_input_computed_twice_is_one_tensor() -> None:
    def program(q, k, u, v, r):
        gate = torch.einsum("bthd,hefd->bthef", q.sin(), k)
        up = torch.einsum("bthd,hefd->bthef", q.sin(), u)
        return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up, v)

    operand = unified(program, *operands()).operands["q"]
    assert operand.leaf is not None and len(operand.twins) == 1
    assert operand.leaf.value is operand.twins[0].value


def test_gate_and_up_are_told_apart() -> None:
    first = unified(full, *operands())
    second = unified(lambda q, k, u, v, r: full(q, u, k, v, r), *operands())
    names = [[repr(u.operands[name].entries[0].value) for name in "ku"] for u in (first, second)]
    assert names[0] == names[1][::-1]
    assert names[0][0] != names[0][1]


def test_each_dimension_of_a_result_is_named() -> None:
    def program(q, k, u, v, r):
        return full(q, k, u, v, r).permute(3, 2, 0, 1).reshape(O * H, B * T)

    assert sizes(unified(program, *operands())) == {
        "b": B, "t": T, "h": H, "g": 1, "e": E, "f": F, "d": D, "o": O
    }  # fmt: skip


def test_heads_with_one_result_are_heads() -> None:
    def program(q, k, u, v, r):
        gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
        return torch.einsum("bthef,hefo->bto", silu(gate) * up, v)

    unification = unified(program, *operands())
    assert sizes(unification)["h"] == H
    (heads,) = unification.roles["h"]
    assert heads in unification.result[2]


def test_heads_with_one_input_are_heads() -> None:
    def program(q, k, u, v, r):
        gate, up = (torch.einsum("btd,hefd->bthef", q[:, :, 0], weight) for weight in (k, u))
        return torch.einsum("bthef,hefo->btho", silu(gate) * up, v)

    unification = unified(program, *operands())
    assert sizes(unification)["h"] == H and unification.operands["q"].leaf is not None
    (heads,) = unification.roles["h"]
    assert heads not in unification.operands["q"].axes


def test_factors_belong_to_the_operand_that_has_their_axes() -> None:
    """Of one token, weights of sub-networks have no axis of their own: they are fewer than the channels."""

    def program(q, k, u, v, r):
        gate, up = (torch.einsum("hd,hefd->hef", q[0, 0], weight) for weight in (k, u))
        hidden = silu(gate * k[..., 0]) * up * v[..., 0] * r[0, 0, ..., None]
        return torch.einsum("hef,hefo->ho", hidden, v)

    unification = unified(program, *operands())
    entries = {name: len(operand.entries) for name, operand in unification.operands.items()}
    assert entries == {"q": 1, "k": 2, "u": 1, "v": 2, "r": 1}


def test_what_is_linear_behind_the_values_leaves_the_op() -> None:
    def program(q, k, u, v, r):
        gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
        each = torch.einsum("bthef,hefo->btheo", silu(gate) * up, v) * v[0, 0, 0]
        return (each * r[..., None]).sum(3)

    unification = unified(program, *operands())
    assert len(unification.behind) == 1 and len(unification.operands["v"].entries) == 1
