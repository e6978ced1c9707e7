"""DistributedDataParallel's buckets cut graphs apart: a report of such a piece says so, and what to set."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.nn.parallel import DistributedDataParallel

import mhf_compile
from mhf_compile import backend
from mhf_compile.report import notes

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

EAGER = {"flashmhf.inner": "eager", "flashmhf.strict": True}
HEADS, WIDTH, HEAD_DIM = 2, 1100, 128  # each weight is larger than 1 MiB, the size of DDP's first bucket


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k, self.u, self.v = (nn.Parameter(torch.randn(HEADS, WIDTH, HEAD_DIM) / 16) for _ in range(3))

    def forward(self, q: Tensor) -> Tensor:
        gate, up = (torch.einsum("bthd,hfd->bthf", q, w) for w in (self.k, self.u))
        return q + torch.einsum("bthf,hfo->btho", silu(gate) * up, self.v)


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    torch._dynamo.reset()
    notes.warn_of_split.cache_clear()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch._dynamo.reset()
    backend.flashmhf.reset()


def query() -> Tensor:
    return torch.randn(2, 3, HEADS, HEAD_DIM)


def reports(model: nn.Module) -> list[mhf_compile.Report]:
    torch.compile(model, backend="flashmhf", options=EAGER)(query()).sum().backward()
    return mhf_compile.last_reports()


def test_a_network_that_is_cut_apart(caplog: pytest.LogCaptureFixture) -> None:
    model = DistributedDataParallel(nn.Sequential(Heads(), Heads()), bucket_cap_mb=1)
    with caplog.at_level(logging.WARNING, "mhf_compile"):
        found = reports(model)
    assert len(found) > 2
    assert sum(len(report.rewrites) for report in found) == 0
    cut = [report for report in found if report.misses]
    assert [len(report.misses) for report in cut] == [1, 1]
    assert [notes.SPLIT in report.notes for report in found] == [bool(report.misses) for report in found]
    assert "torch._dynamo.config.optimize_ddp = False" in str(cut[0])
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("mhf_compile")]
    assert warnings == [notes.SPLIT]  # once, for two networks

    explained = mhf_compile.explain(model, query())
    assert notes.SPLIT in explained.notes
    assert [miss.module for miss in explained.misses] == ["module.0", "module.1"]


def test_what_the_note_says_to_set_helps() -> None:
    model = DistributedDataParallel(nn.Sequential(Heads(), Heads()), bucket_cap_mb=1)
    with torch._dynamo.config.patch(optimize_ddp=False):
        found = reports(model)
    assert [len(report.rewrites) for report in found] == [1, 1]
    assert [(report.misses, report.notes) for report in found] == [((), ())] * 2


class Missed(Heads):
    def forward(self, q: Tensor) -> Tensor:
        gate = silu(torch.einsum("bthd,hfd->bthf", q, self.k))
        return q + torch.einsum("bthf,hfo->btho", gate, self.v) + gate.mean() + self.u.mean()


def test_no_note_where_nothing_is_cut() -> None:
    """A miss of another cause, in a model that DDP wraps but whose parameters fit in a bucket."""
    small = Missed()
    small.u.requires_grad_(False)
    small.k.requires_grad_(False)
    (report,) = reports(DistributedDataParallel(small))
    assert len(report.misses) == 1
    assert report.notes == ()
    torch._dynamo.reset()
    backend.flashmhf.reset()
    (report,) = reports(Missed())
    assert len(report.misses) == 1
    assert report.notes == ()
