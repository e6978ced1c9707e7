"""Candidates: the root is the largest value that matches: of loops, of lists of modules, several in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tests.comparison import compare
from tests.matching.programs import (
    D,
    E,
    F,
    H,
    Program,
    check,
    check_all,
    gated,
    scores,
    tensors,
    ungated,
)


def one_gated_one_not(q, k1, u1, v1):
    """The gated one is in a factor of the other's operands."""
    return ungated(gated(q, k1, u1, v1), u1, v1)


def test_a_gated_and_an_ungated_one_in_turn() -> None:
    rewrites = check_all(one_gated_one_not, tensors("q k1 u1 v1"), 2)
    assert [rewrite.pattern for rewrite in rewrites] == ["flash_mhf", "ungated_mhf"]


def scaled(x):
    return 3 * x


def negative(x):
    return -x


def scaled_down(x):
    return x / 3


@pytest.mark.parametrize("after", [scaled, negative, scaled_down, lambda x: scaled(negative(x))])
@pytest.mark.parametrize("function", [silu, torch.sigmoid])
def test_what_is_scaled_is_read_by_the_next(after: Callable, function: Callable) -> None:
    """The next one's input is the whole result of the first."""

    def program(q, k1, u1, v1):
        for _ in range(2):
            q = after(torch.einsum("bthf,hfo->btho", function(scores(q, k1)) * scores(q, u1), v1))
        return q

    check_all(program, tensors("q k1 u1 v1"), 2)


def test_what_is_scaled_for_the_gate_only() -> None:
    def program(q, k1, u1, v1):
        q = gated(q, k1, u1, v1)
        return torch.einsum("bthf,hfo->btho", silu(scores(2 * q, k1)) * scores(q, u1), v1)

    check_all(program, tensors("q k1 u1 v1"), 2)


# -- loops --------------------------------------------------------------------------------------------------


def loop(order: Sequence[int]) -> Program:
    def program(q, k, u, v, r):
        out = 0
        for e in order:
            out = out + r[..., e, None] * gated(q, k[:, e], u[:, e], v[:, e])
        return out

    return program


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 2, 3], [0, 2], [0, 1, 0, 1]], ids=str
)
def test_loops_in_any_order_over_some_subnetworks(order: list[int]) -> None:
    rewrite = check(loop(order), tensors("q k u v r"))
    assert rewrite.subnetworks in (len(order), len(set(order)))


def test_indices_that_are_no_progression_are_several_rewrites() -> None:
    found = compare(loop([0, 1, 3]), tensors("q k u v r"), options={"flashmhf.inner": "eager"})
    assert found.rewrites == found.calls > 1
    found.check_error()


def mismatched_keys(q, k, u, v):
    return sum(gated(q, k[:, e], u[:, E - 1 - e], v[:, e]) for e in range(E))


def mismatched_values(q, k, u, v):
    return sum(gated(q, k[:, e], u[:, e], v[:, (e + 1) % E]) for e in range(E))


@pytest.mark.parametrize("program", [mismatched_keys, mismatched_values], ids=lambda p: p.__name__)
def test_sub_networks_that_mix_their_weights(program: Program) -> None:
    """Each is a network of heads of its own; their sum is not one over sub-networks in order."""
    found = compare(program, tensors("q k u v"), options={"flashmhf.inner": "eager"})
    assert found.calls == found.rewrites > 1
    found.check_error()


# -- lists of modules ---------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self, width: int = D) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, F, bias=False, dtype=torch.float64) for _ in range(2))
        self.down = nn.Linear(F, width, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu(self.gate(x)) * self.up(x))


class Heads(nn.Module):
    """A list of heads, each of one network or of a list of them."""

    def __init__(self, subnetworks: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleList(nn.ModuleList(Network() for _ in range(subnetworks)) for _ in range(H))

    def forward(self, x: Tensor, r: Tensor | None = None, order: Sequence[int] = range(E)) -> Tensor:
        outs = []
        for h, (q, networks) in enumerate(zip(x.chunk(H, -1), self.heads, strict=True)):
            parts = [
                networks[e](q) * (1 if r is None else r[:, :, h, e, None]) for e in order if e < len(networks)
            ]
            outs.append(sum(parts))
        return torch.cat(outs, -1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("subnetworks", [1, 2, E])
def test_lists_of_modules(subnetworks: int, weighted: bool) -> None:
    x, r = tensors("x r")
    model = Heads(subnetworks)
    rewrite = check(model, [x, r] if weighted else [x])
    assert rewrite.heads == rewrite.kv_heads == H
    assert rewrite.module.startswith("heads.0.0")
    size = rewrite.subnetworks, rewrite.width
    assert size == ((subnetworks, F) if weighted else (1, subnetworks * F))


def test_a_list_of_modules_in_another_order() -> None:
    x, r = tensors("x r")
    model = Heads(E)
    check(lambda x, r: model(x, r, (2, 0, 3, 1)), [x, r])
