"""Weights that are picked by index, a copy for each token, are left alone; no more than there are, not."""

import pytest
import torch
from torch.nn.functional import embedding, silu

from tests.comparison import compare
from tests.programs import B, D, F, H, T


def by_gather(w, ids):
    return w.gather(0, ids[:, None, None].expand(-1, *w.shape[1:]))


def by_embedding(w, ids):
    return embedding(ids, w.flatten(1)).unflatten(1, w.shape[1:])


def by_index_of_a_view(w, ids):
    return w.mT[ids].mT.unsqueeze(1).squeeze(1)


PICKED = {
    "index": lambda w, ids: w[ids],
    "index of a view": by_index_of_a_view,
    "index_select": lambda w, ids: w.index_select(0, ids),
    "gather": by_gather,
    "embedding": by_embedding,
}


def of_tokens(pick, count):
    """A feed-forward for each of so many tokens, whose weights are picked for it."""

    def program(q, k, u, v):
        x = q[:, :, 0].flatten(0, 1)[:count]
        ids = torch.arange(count) % H
        k, u, v = (pick(w, ids) for w in (k, u, v))
        gate, up = (torch.einsum("nd,nfd->nf", x, w) for w in (k, u))
        return torch.einsum("nf,nfo->no", silu(gate) * up, v)

    return program


def found(pick, count):
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, T, H, D), (H, F, D), (H, F, D), (H, F, D)]
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    return compare(of_tokens(pick, count), tensors, options={"flashmhf.inner": "eager"})


@pytest.mark.parametrize("pick", PICKED.values(), ids=PICKED)
def test_a_copy_for_each_token_is_left_alone(pick):
    seen = found(pick, B * T)
    assert (seen.rewrites, seen.calls) == (0, 0)
    ((miss,),) = (report.misses for report in seen.reports)
    assert "is picked by index" in miss.reason and f"of the {H * F * D} in" in miss.reason
    assert "grouped_mm" in str(seen.reports[0])
    seen.check_error()


@pytest.mark.parametrize("pick", PICKED.values(), ids=PICKED)
def test_no_more_than_there_are_is_no_obstacle(pick):
    seen = found(pick, H - 1)
    assert (seen.rewrites, seen.calls) == (1, 1), seen.reports
    seen.check_error()
