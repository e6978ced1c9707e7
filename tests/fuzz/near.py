"""What holds of the table of near misses, whatever the numbers are."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

import mhf_compile
from mhf_compile.backend import flashmhf
from mhf_compile.kernels.support import DTYPES
from tests.comparison import LONGEST_SUM, counted_calls
from tests.fuzz.property import Property
from tests.near_misses import NEAR_MISSES, SILENT, NearMiss
from tests.strategies.running import OPTIONS, quiet

BY_NAME = {str(near): near for near in NEAR_MISSES}


@dataclass(frozen=True)
class Near:
    """A near miss and the numbers that it is given."""

    name: str
    seed: int = 0

    @property
    def source(self) -> str:
        """The text of a module that has it."""
        return f"from tests.fuzz.near import Near\n\nEXAMPLE = {self}\n"

    @property
    def miss(self) -> NearMiss:
        return BY_NAME[self.name]

    def outcome(self, program: Callable[..., Any]) -> list[Tensor | None]:
        """All results, and the gradients of all arguments; no gradients where eager has none."""
        torch.manual_seed(self.seed)
        tensors = self.miss.tensors(self.seed)
        results = [result for result in tree_leaves(program(*tensors)) if isinstance(result, Tensor)]
        loss = torch.stack([result.square().mean() for result in results if result.requires_grad]).sum()
        if self.miss.raises:
            with pytest.raises(RuntimeError, match=self.miss.raises):
                loss.backward()
            return [result.detach() for result in results]
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
        return [*(result.detach() for result in results), *gradients]


def a_near_miss_is_left_alone_or_right(near: Near) -> None:
    """It is left alone for the true reason, or rewritten where it is still the formula, and never wrong."""
    miss = near.miss
    torch._dynamo.reset()
    flashmhf.reset()  # Dynamo resets the backends that it called itself
    options = {**OPTIONS, **miss.options}
    compiled = torch.compile(miss.program, backend="flashmhf", dynamic=miss.dynamic, options=options)
    taken = tuple(dtype for dtype in DTYPES["cpu"] if dtype != miss.without)
    with quiet(), mock.patch.dict(DTYPES, cpu=taken):
        before = near.outcome(miss.program)
        with counted_calls() as calls:
            after = near.outcome(compiled)
    for a, b in zip(after, before, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            # Each is off by half a unit in the last place for each product summed, at most.
            bound = LONGEST_SUM * torch.finfo(miss.rounds).eps * float(b.double().norm())
            assert float((a.double() - b.double()).norm()) <= bound
    reports = mhf_compile.last_reports()
    shown = "\n".join(map(str, reports))
    rewrites = [rewrite for report in reports for rewrite in report.rewrites]
    told, hidden = ("others", "misses") if miss.other else ("misses", "others")
    misses = [found for report in reports for found in getattr(report, told)]
    assert not any(getattr(report, hidden) for report in reports), shown
    assert calls[0] == len(rewrites), shown
    if miss.reason:
        assert len(rewrites) == miss.rewrites, shown
        assert bool(misses) == (miss.reason != SILENT), "silence"
    else:
        assert rewrites and not misses, shown
    sources = {f"tests/near_misses.py:{line}" for line in miss.lines}
    assert not any("the proof failed" in said.reason for said in misses), shown
    for said in misses:
        assert re.search(miss.reason, said.reason), shown
    assert {found.source for found in (*rewrites, *misses)} <= sources, (shown, sources)


NEARS = st.builds(Near, st.sampled_from(sorted(BY_NAME)), st.integers(1, 1000))

PROPERTIES = (Property(a_near_miss_is_left_alone_or_right, NEARS, 300),)
"""The suite draws none of them: it goes through the table."""
