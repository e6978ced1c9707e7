"""Law 3, no spelling is named: however a program is written, it is one rewrite, proved, and right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu, linear, relu, silu

import mhf_compile
from tests.comparison import compare

B, T, H, E, F, D = 2, 5, 3, 4, 6, 7
GROUP = 2

Program = Callable[..., Tensor]

SHAPES = {
    "x": (B, T, H * D),
    "q": (B, T, H, D),
    "q_wide": (B, T, GROUP * H, D),
    "k": (H, E, F, D),
    "u": (H, E, F, D),
    "v": (H, E, F, D),
    "r": (B, T, H, E),
    "k1": (H, F, D),
    "u1": (H, F, D),
    "v1": (H, F, D),
    "pair": (H, 2 * F, D),
    "triple": (H, 3 * F, D),
    "stacked": (3, H, F, D),
    "per_head": (H, E),
    "per_subnetwork": (E,),
    "up_last": (H, D, F),
    "rows": (H * F, D),
    "wide": (H, F),
    "per_head_out": (H, D),
    "mixed": (H, D, D),
    "heads": (2 * H, F, D),
    "route": (E, D),
    "flat": (3 * H * F * D,),
    "groups": (H * E * F, D),
}


def tensors(names: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(SHAPES[name], generator=generator, dtype=torch.float64) / 2).requires_grad_()
        for name in names.split()
    ]


def check(program: Program, arguments: Sequence[Tensor]) -> mhf_compile.Rewrite:
    """One rewrite, proved on all tokens, and results and gradients equal up to the order of sums."""
    found = compare(program, arguments, options={"flashmhf.inner": "eager"})
    (report,) = found.reports
    assert (len(report.rewrites), report.misses, found.calls) == (1, (), 1), str(report)
    assert report.rewrites[0].proof == "exact"
    found.check_error()
    return report.rewrites[0]


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bthd,hfd->bthf", q, k)


def gated(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bthf,hfo->btho", silu(scores(q, k)) * scores(q, u), v)


def full(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
    return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up, v)


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


def scores_of(q, k, u):
    return (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))


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


# -- loops --------------------------------------------------------------------------------------------------


def loop(order: Sequence[int]) -> Program:
    def program(q, k, u, v, r):
        out = 0
        for e in order:
            out = out + r[..., e, None] * gated(q, k[:, e], u[:, e], v[:, e])
        return out

    return program


# -- heads --------------------------------------------------------------------------------------------------


def heads_of_a_flat_parameter(q, flat):
    """The last head's step runs past the end."""
    v, pairs = flat[: H * F * D].view(H, F, D), flat[H * F * D :].view(H, 2 * F, D)
    return torch.stack([one_head(q[:, :, h], *pairs[h].chunk(2), v[h]) for h in range(H)], 2)


def every_second_row_of_a_flat_parameter(q, flat):
    v, pairs = flat[: H * F * D].view(H, F, D), flat[H * F * D :].view(H, 2 * F, D)
    return gated(q, pairs[:, ::2], pairs[:, 1::2], v)


def one_head(q, k, u, v):
    return (silu(linear(q, k)) * linear(q, u)) @ v


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


def ungated(q, k1, v1):
    return torch.einsum("bthf,hfo->btho", relu(scores(q, k1)), v1)


def ungated_with_biases(q, k1, v1, wide, per_head_out):
    return torch.einsum("bthf,hfo->btho", gelu(scores(q, k1) + wide), v1) + per_head_out


def ungated_loop(q, k, v, r):
    return sum(r[..., e, None] * ungated(q, k[:, e], v[:, e]) for e in range(E))


def ungated_grouped(q_wide, k1, v1):
    return ungated(q_wide, *(w.repeat_interleave(GROUP, 0) for w in (k1, v1)))


def ungated_heads(x, heads):
    parts = zip(x.chunk(H, -1), heads.unbind(0)[:H], heads.unbind(0)[H:], strict=True)
    return torch.cat([linear(relu(linear(q, k)).square(), v.t()) for q, k, v in parts], -1)


def one_gated_one_not(q, k1, u1, v1):
    """The gated one is in a factor of the other's operands."""
    return ungated(gated(q, k1, u1, v1), u1, v1)


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


def test_a_gated_and_an_ungated_one_in_turn() -> None:
    found = compare(one_gated_one_not, tensors("q k1 u1 v1"), options={"flashmhf.inner": "eager"})
    (report,) = found.reports
    assert [rewrite.pattern for rewrite in report.rewrites] == ["flash_mhf", "ungated_mhf"]
    assert (report.misses, found.calls) == ((), 2)
    found.check_error()


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

    found = compare(program, tensors("q k1 u1 v1"), options={"flashmhf.inner": "eager"})
    (report,) = found.reports
    assert (len(report.rewrites), report.misses, found.calls) == (2, (), 2), str(report)
    found.check_error()


def test_what_is_scaled_for_the_gate_only() -> None:
    def program(q, k1, u1, v1):
        q = gated(q, k1, u1, v1)
        return torch.einsum("bthf,hfo->btho", silu(scores(2 * q, k1)) * scores(q, u1), v1)

    found = compare(program, tensors("q k1 u1 v1"), options={"flashmhf.inner": "eager"})
    (report,) = found.reports
    assert (len(report.rewrites), report.misses, found.calls) == (2, (), 2), str(report)
    found.check_error()


def test_products_of_two_feed_forwards() -> None:
    """Of each, the other is no operand: it has an axis of its own."""

    def program(q, k1, u1, v1):
        return gated(q, k1, u1, v1) * gated(q, u1, k1, v1)

    found = compare(program, tensors("q k1 u1 v1"), options={"flashmhf.inner": "eager"})
    (report,) = found.reports
    assert (len(report.rewrites), report.misses, found.calls) == (2, (), 2), str(report)
    found.check_error()


def test_halves_of_a_result_that_are_multiplied_are_of_one() -> None:
    """Heads that are put side by side stay together."""

    def program(q, k1, u1, v1):
        heads = [one_head(q[:, :, h], k1[h], u1[h], v1[h]) for h in range(H)]
        first, *others = torch.stack(heads, 2).unbind(2)
        return first * others[0] + others[1]

    check(program, tensors("q k1 u1 v1"))


@pytest.mark.parametrize("function", [silu, relu])
def test_weights_that_are_activations_too(function: Callable) -> None:
    """The router's relu is in the report, with what it is."""

    def program(q, k, u, v, r):
        gate, up = scores_of(q, k, u)
        return torch.einsum("bthe,bthef,hefo->btho", relu(r), function(gate) * up, v)

    found = compare(program, tensors("q k u v r"), options={"flashmhf.inner": "eager"})
    (report,) = found.reports
    assert (len(report.rewrites), found.calls) == (1, 1), str(report)
    (miss,) = report.misses
    assert "an operand of another feed-forward" in miss.reason
    found.check_error()


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


# -- convolutions --------------------------------------------------------------------------------------------


def convolved(width: int) -> Program:
    """Heads as groups of convolutions over the tokens."""

    def program(x: Tensor, k1: Tensor, u1: Tensor, v1: Tensor) -> Tensor:
        rows, columns = x.mT, v1.permute(0, 2, 1).reshape(H * D, F, 1)
        gate, up = (
            conv1d(rows, w.reshape(H * F, D, 1).expand(-1, -1, width), groups=H, padding="same")
            for w in (k1, u1)
        )
        return conv1d(silu(gate) * up, columns, groups=H).mT

    return program


def test_a_convolution_of_one_position_is_a_product() -> None:
    rewrite = check(convolved(1), tensors("x k1 u1 v1"))
    assert (rewrite.heads, rewrite.width) == (H, F)


def test_a_convolution_of_several_positions_is_a_miss_with_a_reason() -> None:
    found = compare(convolved(3), tensors("x k1 u1 v1"), options={"flashmhf.inner": "eager"})
    assert (found.rewrites, found.calls) == (0, 0)
    ((miss,),) = (report.misses for report in found.reports)
    assert "convolution" in miss.reason
    assert miss.source.startswith("tests/matching/test_search.py:")


# -- rearranging a program changes nothing ------------------------------------------------------------------

SHUFFLES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x,
    lambda x: x.transpose(0, -1).transpose(-1, 0),
    lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    lambda x: x.reshape(-1).view(x.shape),
    lambda x: x.flatten(-2).unflatten(-1, x.shape[-2:]),
    lambda x: x.unsqueeze(1).squeeze(1),
    lambda x: x.permute(*range(1, x.dim()), 0).clone().permute(-1, *range(x.dim() - 1)),
]
JOINS: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.cat(x.split(1, 0), 0),
    lambda x: torch.stack(x.unbind(1), 1),
]
FACTORS: list[Callable[[Tensor], Tensor]] = [lambda x: 2 * x * 0.5, lambda x: -(x / -1)]
FUNCTIONS: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
    (silu, lambda x: torch.sigmoid(x) * x),
    (gelu, lambda x: x / 2 * (1 + torch.erf(x / 2**0.5))),
    (lambda x: relu(x).square(), lambda x: x * relu(x)),
    (torch.sigmoid, lambda x: 1 / (1 + torch.exp(-x))),
]
"""Two spellings each."""


@settings(max_examples=24, derandomize=True, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_rearranging_changes_no_verdict(data: st.DataObject) -> None:
    """Operands commute; views, copies and factors come in pairs; a product is split in two."""

    looped = data.draw(st.booleans())
    moved = {name: data.draw(st.sampled_from(SHUFFLES + JOINS)) for name in "qkuv"}
    moved["r"] = data.draw(st.sampled_from(SHUFFLES))
    inner = {
        name: data.draw(st.sampled_from(SHUFFLES + FACTORS)) for name in ("gate", "up", "hidden", "part")
    }
    inner["out"] = data.draw(st.sampled_from(SHUFFLES + FACTORS + JOINS))
    flips = {name: data.draw(st.booleans()) for name in ("gate", "weight", "sum", "keys", "function")}
    place = data.draw(st.sampled_from(["up", "hidden", "part", "twice"]))
    order = data.draw(st.permutations(range(E)))
    function = data.draw(st.sampled_from(FUNCTIONS))
    is_gated = place == "up" or data.draw(st.booleans())
    names = "qkuvr" if is_gated else "qkvr"

    def multiply(a: Tensor, b: Tensor, name: str) -> Tensor:
        return b * a if flips[name] else a * b

    def weigh(x: Tensor, weight: Tensor, here: str) -> Tensor:
        if place == "twice" and here in ("up", "part"):
            return multiply(x, weight.sigmoid() if here == "up" else weight, "weight")
        return multiply(x, weight, "weight") if place == here else x

    def contract(equation: str, a: Tensor, b: Tensor) -> Tensor:
        if not flips["keys"]:
            return torch.einsum(equation, a, b)
        left, right = equation.split("->")[0].split(",")
        return torch.einsum(f"{right},{left}->{equation.split('->')[1]}", b, a)

    def activation(x: Tensor) -> Tensor:
        return function[flips["function"]](x)

    def network(q: Tensor, k: Tensor, u: Tensor | None, v: Tensor, r: Tensor, e: str) -> Tensor:
        gate = inner["gate"](contract(f"bthd,h{e}fd->bth{e}f", q, k))
        hidden = activation(gate)
        if u is not None:
            up = weigh(inner["up"](contract(f"bthd,h{e}fd->bth{e}f", q, u)), r[..., None], "up")
            hidden = multiply(hidden, up, "gate")
        hidden = weigh(inner["hidden"](hidden), r[..., None], "hidden")
        part = inner["part"](contract(f"bth{e}f,h{e}fo->bth{e}o", hidden, v))
        return weigh(part, r[..., None], "part")

    def program(*given: Tensor) -> Tensor:
        named = {name: moved[name](tensor) for name, tensor in zip(names, given, strict=True)}
        q, k, u, v, r = (named.get(name) for name in "qkuvr")
        if not looped:
            return inner["out"](network(q, k, u, v, r, "e").sum(3))
        out = torch.zeros_like(q)
        for e in order:
            part = network(q, k[:, e], u if u is None else u[:, e], v[:, e], r[..., e], "")
            out = part + out if flips["sum"] else out + part
        return inner["out"](out)

    rewrite = check(program, tensors(" ".join(names)))
    assert (rewrite.heads, rewrite.subnetworks, rewrite.width) == (H, E, F)
    assert rewrite.pattern == ("flash_mhf" if is_gated else "ungated_mhf")
