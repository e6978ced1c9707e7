"""A match as data: when it is, whether it is dense, its hidden values, its leaves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from mhf_compile.matching.match import Match, Unmatched
from mhf_compile.matching.reasons import NoMatch, Progress, Refusal, Stage
from mhf_compile.patterns import FLASH_MHF
from tests.matching.programs import SHAPES, B, E, F, H, T, full, gated, searched, tensors


def matched(program, names: str) -> Match:
    (match,) = searched(program, *tensors(names))
    assert isinstance(match, Match), match
    return match


def dense(q: Tensor, k1: Tensor, u1: Tensor, v1: Tensor) -> Tensor:
    return (silu(q @ k1[0].mT) * (q @ u1[0].mT)) @ v1[0]


@pytest.mark.parametrize(
    ("program", "names", "is_dense", "hidden"),
    [
        (full, "q k u v r", False, B * T * H * E * F),
        (gated, "q k1 u1 v1", False, B * T * H * F),
        (dense, "q k1 u1 v1", True, B * T * H * F),  # heads that share all weights are tokens
    ],
    ids=["full", "gated", "dense"],
)
def test_hidden_values(program, names: str, is_dense: bool, hidden: int) -> None:
    match = matched(program, names)
    assert (match.is_dense, match.hidden) == (is_dense, hidden)


def test_leaves_are_those_of_operands_and_of_what_is_added() -> None:
    def program(q: Tensor, k1: Tensor, u1: Tensor, v1: Tensor, per_head_out: Tensor) -> Tensor:
        hidden = silu(q @ k1[0].mT) * (q @ u1[0].mT)
        return linear(hidden, v1[0].mT, per_head_out[0])

    match = matched(program, "q k1 u1 v1 per_head_out")
    shapes = [leaf.value.shape for leaf in match.leaves]
    assert shapes == [SHAPES[name] for name in ("q", "k1", "u1", "v1", "per_head_out")]
    assert len(match.addends) == 1


def test_results_come_in_the_order_of_their_activations() -> None:
    def program(q, k1, u1, v1):
        gate, up = (torch.einsum("bthd,hfd->bthf", q, weight) for weight in (k1, u1))
        first = torch.clamp(gate, min=0.1 * gate) * up
        return gated(q, u1, k1, v1), torch.einsum("bthf,hfo->btho", first, v1)

    miss, match = searched(program, *tensors("q k1 u1 v1"))
    assert isinstance(miss, Unmatched) and isinstance(match, Match)
    assert miss.time < match.time == min(anchor.time for anchor in match.anchors)


def test_what_is_refused_is_nearer_than_what_is_none() -> None:
    far = Unmatched(FLASH_MHF, None, NoMatch("", progress=Progress(Stage.MATCH, 9)))  # type: ignore[arg-type]
    near = Unmatched(FLASH_MHF, None, Refusal(""))  # type: ignore[arg-type]
    assert near.is_pattern and not far.is_pattern
    assert near.rank > far.rank


def test_a_match_is_where_its_first_activation_is() -> None:
    def program(q, k, u, v):
        return sum(gated(q, k[:, e], u[:, e], v[:, e]) for e in range(E))

    match = matched(program, "q k u v")
    times = sorted(anchor.time for anchor in match.anchors)
    assert len(times) == E and match.time == times[0]


def test_a_miss_counts_each_time_its_region_is_run() -> None:
    def of_another_token(q, k1, u1, v1):
        hidden = silu(torch.einsum("bthd,hfd->bthf", q, k1)) * torch.einsum("bthd,hfd->bthf", q.flip(1), u1)
        return torch.einsum("bthf,hfo->btho", hidden, v1)

    region = torch.compiler.nested_compile_region(of_another_token)

    def twice(q, *weights):
        return region(2 * q, *weights) + region(3 * q, *weights)

    for program, uses in ((twice, 2), (of_another_token, 1)):
        (miss,) = searched(program, *tensors("q k1 u1 v1"))
        assert isinstance(miss, Unmatched) and miss.uses == uses
