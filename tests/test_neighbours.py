"""What a reason says is false of the nearest program of which it should be: a near miss that is put right.

That it is true of the near miss is tested with that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch.nn.functional import linear, relu, silu
from torch.utils.checkpoint import checkpoint

import mhf_compile
from tests.fuzz.near import BY_NAME
from tests.near_misses import down, networks, scores


def gated(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u), v)


def dense(x, w_gate, w_up, w_down):
    return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)


def with_networks(q, keys, ups, values, r):
    gate, up = networks(q, keys, ups)
    return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up, values)


NEIGHBOURS: dict[str, Callable[..., Any]] = {
    # axes
    "summed_over_tokens_with_the_values": lambda q, k, u, v: gated(q, k, u, v).sum(1),
    "summed_over_heads_with_the_values": lambda q, k, u, v: gated(q, k, u, v).sum(2),
    "batch_summed": lambda q, k, u, v: gated(q, k, u, v).sum(0),
    "not_summed_over_its_width": gated,
    "summed_apart_from_the_values": gated,
    "sub_networks_not_summed": with_networks,
    "keys_on_a_diagonal": lambda q, keys, u, v: gated(q, keys[0], u, v),
    "heads_taken_for_tokens": gated,
    # permutations
    "heads_rolled_before_the_values": lambda q, k, u, v: gated(q, k, u, v).roll(1, 2),
    "channels_flipped_before_the_values": lambda q, k, u, v: gated(q, k, u, v.flip(1)),
    "heads_flipped_between_gate_and_up": lambda q, k, u, v: gated(q, k, u.flip(0), v),
    "heads_permuted_by_a_list": lambda q, k, u, v: gated(q, k, u, v)[:, :, [2, 0, 1]],
    # inputs
    "gate_of_another_tensor": lambda x, y, w_gate, w_up, w_down: dense(x, w_gate, w_up, w_down) + y.sum(),
    "gate_of_the_token_before": lambda x, w_gate, w_up, w_down: dense(
        nnf.pad(x, (0, 0, 1, -1)), w_gate, w_up, w_down
    ),
    "gate_of_the_next_token_by_slices": lambda q, k, u, v: gated(q[:, 1:], k, u, v),
    "gate_and_up_dropped_out_apart": lambda x, *weights: dense(nnf.dropout(x, 0.5), *weights),
    # activations
    "maximum_gate": dense,
    "where_gate": dense,
    "swish_with_a_learned_beta": lambda x, w_gate, w_up, w_down, beta: beta * dense(x, w_gate, w_up, w_down),
    "another_product_times_zero": lambda x, w_gate, w_up, w_down, w_other: (
        dense(x, w_gate, w_up, w_down) + 0 * linear(x, w_other).sum()
    ),
    "two_activations_multiplied": lambda x, w_gate, w_other, w_down: dense(x, w_gate, w_other, w_down),
    "two_up_projections": lambda x, w_gate, w_other, w_up, w_down: (
        dense(x, w_gate, w_up, w_down) * linear(x, w_other).sum(-1, keepdim=True)
    ),
    # weights of sub-networks and channels
    "r_inside_the_activation": with_networks,
    "r_for_each_channel": lambda q, k, u, v, r: gated(q, k, u, v) * r.sum(-1, keepdim=True),
    "r_of_the_activation_itself": lambda q, keys, ups, values: with_networks(
        q, keys, ups, values, torch.einsum("bthd,hefd->bthe", q, keys).softmax(-1)
    ),
    "softmax_over_the_channels": lambda q, k, u, v: gated(q, k, u, v).softmax(-1),
    # gradients, modes, randomness
    "activation_detached": lambda q, k, u, v: gated(q, k.detach(), u, v),
    "hidden_detached": lambda q, k, u, v: gated(q, k, u, v).detach() * q.sum(),
    "sigmoid_without_grad": dense,
    "up_without_grad": lambda q, k, u, v: gated(q, k, u.detach(), v),
    "hidden_dropped_out": lambda q, k, u, v: nnf.dropout(gated(q, k, u, v), 0.5),
    "up_checkpointed": lambda q, k, u, v: checkpoint(gated, q, k, u, v, use_reentrant=False),
    "graph_break_before_the_values": lambda q, k, u, v: _breaking(gated(q, k, u, v)),
    # what is written
    "hidden_kept_in_a_buffer": gated,
    "values_written_before_a_second_product": lambda q, k, u, v: gated(q, k, u.cos(), v),
    "result_added_to_and_transposed_in_place": lambda q, k, u, v: gated(q, k, u, v).add_(1).transpose(1, 2),
    # what is seen from outside
    "hidden_returned": lambda q, k, u, v: (gated(q, k, u, v), q * 1),
    "penalty_on_the_activation": lambda q, k, u, v: (gated(q, k, u, v), q.square().mean()),
    "two_values_of_one_activation": lambda q, k, u, v, v_back: gated(q, k, u, torch.cat([v, v_back], -1)),
    # rounding, norms, rows picked by data
    "hidden_cast_to_integers": lambda q, k, u, v: gated(q, k, u, v).to(torch.int32),
    "gate_clamped": lambda q, k, u, v: gated(q.clamp(max=1), k, u, v),
    "hidden_layer_normed": lambda q, k, u, v: nnf.layer_norm(gated(q, k, u, v), v.shape[-1:]),
    "hidden_over_its_length": lambda q, k, u, v: _over_its_length(gated(q, k, u, v)),
    "gate_layer_normed": lambda q, k, u, v: gated(nnf.layer_norm(q, q.shape[-1:]), k, u, v),
    "heads_selected": lambda q, k, u, v: gated(q, k, u, v).index_select(2, torch.tensor([1, 2, 0])),
    "channels_kept_above_zero": lambda q, k, u, v: gated(q, k, u, v) * (q.sum(-1, keepdim=True) > 0),
    # weights
    "values_of_each_token": lambda x, w_gate, w_up, v_each: dense(x, w_gate, w_up, v_each[0, 0].mT),
    "low_rank_update_of_the_gate": lambda x, w_gate, w_up, w_down, a, b: dense(
        x, w_gate + a @ b, w_up, w_down
    ),
    "bias_before_the_values": lambda x, w_gate, w_up, w_down, bias: dense(x, w_gate, w_up, w_down + bias),
}
"""For a near miss, by its name, a program of the same arguments that is right."""


def _breaking(result):
    torch._dynamo.graph_break()
    return result * 2


def _over_its_length(result):
    return result / torch.linalg.vector_norm(result, dim=-1, keepdim=True)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_what_is_said_of_a_near_miss_is_not_said_of_its_neighbour(name: str) -> None:
    near = BY_NAME[name]
    torch._dynamo.reset()
    options = {"flashmhf.dense": "always", **near.options}
    report = mhf_compile.explain(NEIGHBOURS[name], *near.tensors(0), options=options)
    assert report.rewrites, report
    said = [miss.reason for miss in (*report.misses, *report.others)]
    assert not any(re.search(near.reason, reason) for reason in said), report.text(others=True)


def test_hidden_values_may_be_measured_but_not_by_what_is_no_norm_of_theirs() -> None:
    """A norm that is only returned does not stand before the values."""

    def measured(q, k, u, v):
        hidden = relu(scores(q, k)) * scores(q, u)
        return down(hidden, v), torch.linalg.vector_norm(hidden)

    near = BY_NAME["hidden_over_its_length"]
    (miss,) = mhf_compile.explain(measured, *near.tensors(0)).misses
    assert "used elsewhere as well, by a vector norm" in miss.reason


def test_the_advice_is_of_what_uses_a_hidden_value() -> None:
    def split(q, k, u, v):
        hidden = silu(scores(q, k)) * scores(q, u)
        return down(hidden, v[..., :4]), down(hidden, v[..., 4:])

    def pieces(q, k, u, v):
        first, second = (silu(scores(q, k)) * scores(q, u)).split([2, 3], 1)
        return down(first, v), down(second, v.cos())

    def logged(q, k, u, v):
        hidden = silu(scores(q, k)) * scores(q, u)
        return down(hidden, v), hidden.abs().mean()

    tensors = BY_NAME["hidden_returned"].tensors(0)
    for program, advice in ((split, "side by side"), (pieces, "of the input"), (logged, "logging")):
        torch._dynamo.reset()
        assert advice in mhf_compile.explain(program, *tensors).misses[0].advice


def test_a_wrong_axis_is_not_named() -> None:
    """Of several assignments of roles the one is told in which the most axes have one."""

    def bank(x, w1, w2):
        return torch.einsum("nef,efd->ned", torch.einsum("nd,edf->nef", x, w1).relu(), w2)

    tensors = torch.randn(9, 16), torch.randn(4, 16, 24), torch.randn(4, 24, 16)
    report = mhf_compile.explain(bank, *tensors)
    assert not any("size 9" in miss.reason for miss in report.misses)
