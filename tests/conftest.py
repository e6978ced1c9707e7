"""What holds for every test: a fresh compiler, its share of the cores, counts that are told at the end."""

from __future__ import annotations

import gc
import os
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch

from mhf_compile.backend import flashmhf

PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def pytest_configure() -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // PROCESSES))
    # After each compile Dynamo looks for garbage, and flushes the caches to time its guards.
    torch._dynamo.config.run_gc_after_compile = False
    torch._dynamo.guards.profile_guard_manager = lambda *_: 0.0


def pytest_collection_finish() -> None:
    """What is there before the first test is no garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Nothing that was compiled before counts, whichever tests came first."""
    torch._dynamo.reset()
    flashmhf.reset()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the counts that tests have recorded, as ``record_property(title, {what: count})``, added up."""
    totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for title, counts in report.user_properties:
                    if isinstance(counts, dict):
                        totals[title].update(counts)
    for title, counts in totals.items():
        terminalreporter.section(title)
        for what, number in counts.most_common():
            terminalreporter.line(f"{number:6} {what}")
