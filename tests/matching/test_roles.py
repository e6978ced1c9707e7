"""The roles with which the op does least: what is in q and the result, and not in the weights, is tokens."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from tests.comparison import compare

HEADS, WIDTH, INNER = 4, 16, 24


def experts(h: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return (silu(h @ k) * (h @ u)) @ v


def batched(x, k, u, v):
    return experts(x.view(HEADS, -1, WIDTH), k, u, v).view(x.shape)


def a_loop_over_parts(x, k, u, v):
    parts = x.flatten(0, -2).chunk(HEADS)
    return torch.cat([experts(c, k[i], u[i], v[i]) for i, c in enumerate(parts)]).view(x.shape)


def a_loop_that_is_stacked(x, k, u, v):
    parts = x.reshape(HEADS, -1, WIDTH)
    return torch.stack([experts(parts[i], k[i], u[i], v[i]) for i in range(HEADS)]).flatten(0, 1)


def under_vmap(x, k, u, v):
    return torch.vmap(experts)(x.view(HEADS, -1, WIDTH), k, u, v)


def interleaved(x, k, u, v):
    return experts(x.view(-1, HEADS, WIDTH).transpose(0, 1), k, u, v).transpose(0, 1)


def operands(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*shape, WIDTH), *[(HEADS, WIDTH, INNER)] * 2, (HEADS, INNER, WIDTH)]
    return [torch.randn(s, generator=generator, requires_grad=True) for s in shapes]


PROGRAMS = [batched, a_loop_over_parts, a_loop_that_is_stacked, under_vmap, interleaved]


@pytest.mark.parametrize("shape", [(64,), (2, 32), (8, 8)], ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_a_sequence_cut_into_a_part_for_each_head_is_tokens(program, shape) -> None:
    found = compare(program, operands(*shape), options={"flashmhf.inner": "eager"})
    assert (found.rewrites, found.calls) == (1, 1), found.reports
    (rewrite,) = found.reports[0].rewrites
    assert (rewrite.tokens, rewrite.heads, rewrite.kv_heads) == (64 // HEADS, HEADS, HEADS)
    found.check_error()


def grouped(q, k, u, v):
    """Query heads that share weights, as grouped-query attention lays them out: [B, T, (h g), D]."""
    q = q.unflatten(2, (HEADS, -1))
    gate, up = (torch.einsum("bthgd,hdf->bthgf", q, w) for w in (k, u))
    return torch.einsum("bthgf,hfo->bthgo", silu(gate) * up, v).flatten(2, 3)


@pytest.mark.parametrize(
    ("length", "tokens", "heads"),
    [(100, 100, 2 * HEADS), (64, 64, 2 * HEADS), (63, 126, HEADS), (1, 2, HEADS)],
)
def test_heads_of_a_group_are_tokens_where_there_are_few_of_them(length, tokens, heads) -> None:
    found = compare(grouped, operands(1, length, 2 * HEADS), options={"flashmhf.inner": "eager"})
    (rewrite,) = found.reports[0].rewrites
    assert (rewrite.tokens, rewrite.heads, rewrite.kv_heads) == (tokens, heads, HEADS)
    found.check_error()
