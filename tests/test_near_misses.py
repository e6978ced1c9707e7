"""Near misses: left alone for the true reason or rewritten, and never wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import mhf_compile
from tests.comparison import LONGEST_SUM, counted_calls
from tests.near_misses import NEAR_MISSES, SILENT, NearMiss

OPTIONS = {"flashmhf.strict": True, "flashmhf.inner": "eager", "flashmhf.dense": "always"}


def test_there_are_many() -> None:
    refused = [near for near in NEAR_MISSES if near.reason not in ("", SILENT)]
    assert len(refused) >= 60
    assert len({near.reason for near in refused}) >= 15
    assert len({near.kind for near in refused}) >= 13
    assert len({str(near) for near in NEAR_MISSES}) == len(NEAR_MISSES)


def outcome(near: NearMiss, program: Callable[..., Any]) -> list[Tensor | None]:
    """All results of a program, and the gradients of all its arguments; no gradients where eager has none."""
    torch.manual_seed(0)
    tensors = near.tensors()
    results = [result for result in tree_leaves(program(*tensors)) if isinstance(result, Tensor)]
    loss = torch.stack([result.square().mean() for result in results if result.requires_grad]).sum()
    if near.raises:
        with pytest.raises(RuntimeError, match=near.raises):
            loss.backward()
        return [result.detach() for result in results]
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [*(result.detach() for result in results), *gradients]


@pytest.mark.parametrize("near", NEAR_MISSES, ids=str)
def test_is_never_wrong_and_says_the_true_reason(near: NearMiss) -> None:
    torch._dynamo.reset()
    before = outcome(near, near.program)
    with counted_calls() as calls:
        after = outcome(near, torch.compile(near.program, backend="flashmhf", options=OPTIONS))
    for a, b in zip(after, before, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            # Each is off by half a unit in the last place for each product summed, at most.
            bound = LONGEST_SUM * torch.finfo(near.rounds).eps * float(b.double().norm())
            assert float((a.double() - b.double()).norm()) <= bound
    reports = mhf_compile.last_reports()
    shown = "\n".join(map(str, reports))
    rewrites = [rewrite for report in reports for rewrite in report.rewrites]
    misses = [miss for report in reports for miss in report.misses]
    assert calls[0] == len(rewrites), shown
    if near.reason:
        assert len(rewrites) == near.rewrites, shown
        assert bool(misses) == (near.reason != SILENT), "silence"
    else:
        assert rewrites and not misses, shown
    sources = {f"tests/near_misses.py:{line}" for line in near.lines}
    for miss in misses:
        assert re.search(near.reason, miss.reason), shown
    assert {found.source for found in (*rewrites, *misses)} <= sources, (shown, sources)
