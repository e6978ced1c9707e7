"""The arithmetic of the proof is exact, and its tables tell functions apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from torch import Tensor

from mhf_compile.rewriting import field

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
