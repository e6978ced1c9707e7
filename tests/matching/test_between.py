"""Which activations are those of a feed-forward: each program beside its nearest neighbour that has none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, dropout, embedding, gelu, layer_norm, relu, silu

from mhf_compile.matching.match import Match
from tests.matching.programs import searched

N, D, F = 5, 6, 8

SHAPES = {
    "x": (N, D),
    "h": (N, F),
    "table": (3, D),
    "w": (D, F),
    "u": (D, F),
    "v": (F, D),
    "square": (F, F),
    "bias": (F,),
    "beside": (F, N, 1),
    "filter": (F, 1, 3),
}

Program = Callable[..., Tensor]

PAIRS: list[tuple[str, Program, str, Program]] = [
    (
        "x w v",
        lambda x, w, v: layer_norm(relu(x @ w), [F]) @ v,
        "x w v",
        lambda x, w, v: layer_norm(relu(x) @ w, [F]) @ v,  # of what is given
    ),
    (
        "x w square v",
        lambda x, w, square, v: layer_norm(silu(x @ w + x @ w) @ square, [F]) @ v,
        "x w table",  # of a time step's embedding, as adaptive norms have it
        lambda x, w, table: layer_norm(
            silu(x + embedding(torch.zeros(N, dtype=torch.int64), table)) @ w, [F]
        ),
    ),
    (
        "x w u v",
        lambda x, w, u, v: dropout(relu(x @ w) * torch.sigmoid(x @ u), 0.5) @ v,
        "x w square v",  # a highway: the gate mixes it with its argument
        lambda x, w, square, v: _highway(x @ w, square) @ v,
    ),
    (
        "x w u v",
        lambda x, w, u, v: layer_norm(silu(x @ w) * (x @ u), [F]) @ v,
        "x w u v",  # attention, or the state of a recurrence, with a gate
        lambda x, w, u, v: layer_norm(silu(x @ w) * (((x @ u) @ (x @ w).mT).softmax(-1) @ (x @ u)), [F]) @ v,
    ),
    (
        "x w bias v",
        lambda x, w, bias, v: (relu(x @ w) + bias).softmax(-1) @ v,
        "x w h v",
        lambda x, w, h, v: (relu(x @ w) + h).softmax(-1) @ v,  # a residual
    ),
    (
        "x w v",
        lambda x, w, v: gelu(x @ w).flip(-1) @ v,
        "x w filter v",
        lambda x, w, filter, v: conv1d(gelu(x @ w).mT[None], filter, groups=F, padding=1)[0].mT @ v,
    ),
    ("x w v", lambda x, w, v: relu(x @ w).cumsum(-1) @ v, "x w", lambda x, w: relu(x @ w).cumsum(-1)),
]


def _highway(x: Tensor, square: Tensor) -> Tensor:
    gate = torch.sigmoid(x @ square)
    return gate * relu(x @ square.mT) + (1 - gate) * x


@pytest.mark.parametrize(("names", "program", "others", "neighbour"), PAIRS)
def test_a_feed_forward_and_what_is_none(
    names: str, program: Program, others: str, neighbour: Program
) -> None:
    for given, function, expected in ((names, program, True), (others, neighbour, False)):
        results = searched(function, *(torch.randn(SHAPES[n], requires_grad=True) for n in given.split()))
        assert results
        found = [isinstance(one, Match) or one.is_feed_forward for one in results]
        assert found == [expected] * len(results), results


def test_one_with_several_activations_is_told_once() -> None:
    def program(x: Tensor, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (silu(x @ w) * gelu(x.flip(0) @ u)) @ v

    (miss,) = searched(program, *(torch.randn(SHAPES[name]) for name in ["x", "w", "u", "v"]))
    assert not isinstance(miss, Match) and miss.is_feed_forward


def test_two_are_told_twice() -> None:
    def program(x: Tensor, w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return layer_norm(silu(x @ w), [F]) @ v + layer_norm(gelu(x @ u), [F]) @ v

    results = searched(program, *(torch.randn(SHAPES[name]) for name in ["x", "w", "u", "v"]))
    assert len(results) == 2
