"""Law 3, no spelling is named: however a program is written, it is one rewrite, proved, and right."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu, linear, relu, silu

from tests.matching.programs import (
    GROUP,
    B,
    D,
    E,
    F,
    H,
    Program,
    T,
    check,
    full,
    gated,
    one_head,
    scores,
    scores_of,
    tensors,
    ungated,
)

# -- the weights of the sub-networks ------------------------------------------------------------------------


def softmax_weights(q, k, u, v, r):
    return full(q, k, u, v, r.softmax(-1))


def sigmoid_weights(q, k, u, v, r):
    return full(q, k, u, v, r.sigmoid() / r.sigmoid().sum(-1, keepdim=True))


def weights_divided_after(q, k, u, v, r):
    weights = r.exp()
    return full(q, k, u, v, weights) / weights.sum(-1, keepdim=True)


def learned_weights(q, k, u, v, per_head):
    return full(q, k, u, v, per_head.expand(B, T, H, E))


def learned_weights_of_subnetworks(q, k, u, v, per_subnetwork):
    return sum(per_subnetwork[e] * gated(q, k[:, e], u[:, e], v[:, e]) for e in range(E))


def weights_in_two_places(q, k, u, v, r):
    return full(q, k, u, v, r.sigmoid()) * r.mean(-1, keepdim=True)


def sigmoid_gate_and_sigmoid_weights(q, k, u, v, r):
    gate, up = scores_of(q, k, u)
    return torch.einsum("bthe,bthef,hefo->btho", r.sigmoid(), gate.sigmoid() * up, v)


def sigmoid_gate_and_results_weighted_with_a_sigmoid(q, k, u, v, r):
    gate, up = scores_of(q, k, u)
    return (r.sigmoid()[..., None] * torch.einsum("bthef,hefo->btheo", gate.sigmoid() * up, v)).sum(3)


def sigmoid_gate_and_two_weights_with_a_sigmoid(q, k, u, v, r, per_head):
    gate, up = scores_of(q, k, u)
    hidden = per_head.sigmoid()[..., None] * gate.sigmoid() * (up * r.sigmoid()[..., None])
    return torch.einsum("bthef,hefo->btho", hidden, v)


def sigmoids_in_a_loop(q, k, u, v, r):
    out = 0
    for e in range(E):
        gate, up = scores(q, k[:, e]), scores(q, u[:, e])
        out = out + r[..., e, None].sigmoid() * torch.einsum("bthf,hfo->btho", gate.sigmoid() * up, v[:, e])
    return out


def weights_with_a_bias_on_the_up_projection(q, k, u, v, route, per_subnetwork):
    gate, up = scores_of(q, k, u)
    hidden = silu(gate) * (up * linear(q, route, per_subnetwork)[..., None])
    return torch.einsum("bthef,hefo->btho", hidden, v)


def weights_on_an_up_projection_with_a_bias(q, k, u, v, route, wide):
    gate, up = scores_of(q, k, u)
    up = (up + wide[:, None]) * linear(q, route)[..., None]
    return torch.einsum("bthef,hefo->btho", silu(gate) * up, v)


def mean_of_subnetworks(q, k, u, v):
    hidden = silu(torch.einsum("bthd,hefd->bthef", q, k)) * torch.einsum("bthd,hefd->bthef", q, u)
    return torch.einsum("bthef,hefo->btheo", hidden, v).mean(3)


# -- heads --------------------------------------------------------------------------------------------------


def heads_of_a_flat_parameter(q, flat):
    """The last head's step runs past the end."""
    v, pairs = flat[: H * F * D].view(H, F, D), flat[H * F * D :].view(H, 2 * F, D)
    return torch.stack([one_head(q[:, :, h], *pairs[h].chunk(2), v[h]) for h in range(H)], 2)


def every_second_row_of_a_flat_parameter(q, flat):
    v, pairs = flat[: H * F * D].view(H, F, D), flat[H * F * D :].view(H, 2 * F, D)
    return gated(q, pairs[:, ::2], pairs[:, 1::2], v)


def groups_in_loops_over_heads_and_sub_networks(q_wide, groups):
    weights = groups.view(H, E, F, D)
    heads = []
    for h in range(GROUP * H):
        own = weights[h // GROUP]
        heads.append(sum(one_head(q_wide[:, :, h], own[e], own[e], own[e]) for e in range(E)))
    return torch.stack(heads, 2)


def grouped_by_expand(q_wide, k1, u1, v1):
    return gated(q_wide, *(w[:, None].expand(H, GROUP, F, D).reshape(-1, F, D) for w in (k1, u1, v1)))


def grouped_by_repeat_interleave(q_wide, k1, u1, v1):
    return gated(q_wide, *(w.repeat_interleave(GROUP, 0) for w in (k1, u1, v1)))


def grouped_by_repeat(q_wide, k1, u1, v1):
    """Head h uses row h % H: the groups lie the other way round."""
    return gated(q_wide, *(w.repeat(GROUP, 1, 1) for w in (k1, u1, v1)))


def grouped_by_index(q_wide, k1, u1, v1):
    heads = [(q_wide[:, :, h], h // GROUP) for h in range(GROUP * H)]
    return torch.stack([linear(silu(linear(q, k1[i])) * linear(q, u1[i]), v1[i].t()) for q, i in heads], 2)


def grouped_queries(q_wide, k1, u1, v1):
    q = q_wide.view(B, T, H, GROUP, D)
    gate, up = (torch.einsum("bthgd,hfd->bthgf", q, weight) for weight in (k1, u1))
    return torch.einsum("bthgf,hfo->bthgo", silu(gate) * up, v1).flatten(2, 3)


def values_shared_by_all_heads(q, k1, u1, v1):
    return torch.einsum("bthf,fo->btho", silu(scores(q, k1)) * scores(q, u1), v1[0])


def keys_shared_by_all_heads(q, k1, u1, v1):
    gate = torch.einsum("bthd,fd->bthf", q, k1[0])
    return torch.einsum("bthf,hfo->btho", silu(gate) * scores(q, u1), v1)


# -- weights ------------------------------------------------------------------------------------------------


def gate_second(q, pair, v1):
    up, gate = scores(q, pair).chunk(2, -1)
    return torch.einsum("bthf,hfo->btho", silu(gate) * up, v1)


def interleaved(q, pair, v1):
    both = scores(q, pair)
    return torch.einsum("bthf,hfo->btho", silu(both[..., ::2]) * both[..., 1::2], v1)


def interleaved_weights(q, pair, v1):
    return gated(q, pair[:, ::2], pair[:, 1::2], v1)


def pairs(q, pair, v1):
    gate, up = scores(q, pair).unflatten(-1, (F, 2)).unbind(-1)
    return torch.einsum("bthf,hfo->btho", silu(gate) * up, v1)


def three_in_one_by_slices(q, triple):
    return gated(q, triple[:, :F], triple[:, F : 2 * F], triple[:, 2 * F :])


def three_in_one_by_split(q, triple):
    return gated(q, *triple.split(F, 1))


def three_in_one_by_unbind(q, stacked):
    return gated(q, *stacked.unbind(0))


def one_weight_for_all(q, k1):
    return gated(q, k1, k1, k1)


def stored_transposed(q, up_last, u1, v1):
    return gated(q, up_last.mT, u1, v1)


def stored_as_rows(q, rows, u1, v1):
    return gated(q, rows.view(H, F, D), u1, v1)


def read_as_other_rows(q, rows, u1, v1):
    """The same memory, with the heads as the lesser digit."""
    return gated(q, rows.view(F, H, D).transpose(0, 1), u1, v1)


# -- numbers ------------------------------------------------------------------------------------------------


def scaled_everywhere(q, k1, u1, v1):
    gate, up = -scores(q, k1) / 3, -scores(q, u1)
    return -2 * torch.einsum("bthf,hfo->btho", silu(gate) * up, v1) / 7


def result_laid_out_otherwise(q, k1, u1, v1):
    return torch.einsum("bthf,hfo->hotb", silu(scores(q, k1)) * scores(q, u1), v1).reshape(H * D, -1)


def result_taken_apart(q, k1, u1, v1):
    return torch.cat(gated(q, k1, u1, v1).unbind(2), -1)


# -- without a gate ------------------------------------------------------------------------------------------


def ungated_with_biases(q, k1, v1, wide, per_head_out):
    return torch.einsum("bthf,hfo->btho", gelu(scores(q, k1) + wide), v1) + per_head_out


def ungated_loop(q, k, v, r):
    return sum(r[..., e, None] * ungated(q, k[:, e], v[:, e]) for e in range(E))


def ungated_grouped(q_wide, k1, v1):
    return ungated(q_wide, *(w.repeat_interleave(GROUP, 0) for w in (k1, v1)))


def ungated_heads(x, heads):
    parts = zip(x.chunk(H, -1), heads.unbind(0)[:H], heads.unbind(0)[H:], strict=True)
    return torch.cat([linear(relu(linear(q, k)).square(), v.t()) for q, k, v in parts], -1)


# -- what is added -------------------------------------------------------------------------------------------


def a_product_added(q, k1, u1, v1, mixed):
    return gated(q, k1, u1, v1) + torch.einsum("bthd,hdo->btho", q, mixed)


def products_and_leaves_added(q, k1, u1, v1, mixed, per_head_out):
    shared = 2 * torch.einsum("bthd,hdo->btho", q, mixed) - per_head_out
    return q + gated(q, k1, u1, v1) + shared + q * per_head_out


RIGHT: list[tuple[Program, str]] = [
    (ungated, "q k1 v1"),
    (ungated_with_biases, "q k1 v1 wide per_head_out"),
    (ungated_loop, "q k v r"),
    (ungated_grouped, "q_wide k1 v1"),
    (ungated_heads, "x heads"),
    (a_product_added, "q k1 u1 v1 mixed"),
    (products_and_leaves_added, "q k1 u1 v1 mixed per_head_out"),
    (softmax_weights, "q k u v r"),
    (sigmoid_weights, "q k u v r"),
    (weights_divided_after, "q k u v r"),
    (learned_weights, "q k u v per_head"),
    (learned_weights_of_subnetworks, "q k u v per_subnetwork"),
    (weights_in_two_places, "q k u v r"),
    (sigmoid_gate_and_sigmoid_weights, "q k u v r"),
    (sigmoid_gate_and_results_weighted_with_a_sigmoid, "q k u v r"),
    (sigmoid_gate_and_two_weights_with_a_sigmoid, "q k u v r per_head"),
    (sigmoids_in_a_loop, "q k u v r"),
    (weights_with_a_bias_on_the_up_projection, "q k u v route per_subnetwork"),
    (weights_on_an_up_projection_with_a_bias, "q k u v route wide"),
    (heads_of_a_flat_parameter, "q flat"),
    (every_second_row_of_a_flat_parameter, "q flat"),
    (groups_in_loops_over_heads_and_sub_networks, "q_wide groups"),
    (mean_of_subnetworks, "q k u v"),
    (grouped_by_expand, "q_wide k1 u1 v1"),
    (grouped_by_repeat_interleave, "q_wide k1 u1 v1"),
    (grouped_by_repeat, "q_wide k1 u1 v1"),
    (grouped_by_index, "q_wide k1 u1 v1"),
    (grouped_queries, "q_wide k1 u1 v1"),
    (values_shared_by_all_heads, "q k1 u1 v1"),
    (keys_shared_by_all_heads, "q k1 u1 v1"),
    (gate_second, "q pair v1"),
    (interleaved, "q pair v1"),
    (interleaved_weights, "q pair v1"),
    (pairs, "q pair v1"),
    (three_in_one_by_slices, "q triple"),
    (three_in_one_by_split, "q triple"),
    (three_in_one_by_unbind, "q stacked"),
    (one_weight_for_all, "q k1"),
    (stored_transposed, "q up_last u1 v1"),
    (stored_as_rows, "q rows u1 v1"),
    (read_as_other_rows, "q rows u1 v1"),
    (scaled_everywhere, "q k1 u1 v1"),
    (result_laid_out_otherwise, "q k1 u1 v1"),
    (result_taken_apart, "q k1 u1 v1"),
]


@pytest.mark.parametrize(("program", "names"), RIGHT, ids=[program.__name__ for program, _ in RIGHT])
def test_is_rewritten(program: Program, names: str) -> None:
    check(program, tensors(names))
