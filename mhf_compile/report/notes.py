"""Notes of a report: what of the program as a whole explains it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import torch

from mhf_compile.report.data import Miss

log = logging.getLogger(__name__)

SPLIT = (
    "DistributedDataParallel's gradient buckets cut this model's graph into pieces, and a feed-forward that "
    "is cut apart is not found; torch._dynamo.config.optimize_ddp = False keeps it whole (a larger "
    "bucket_cap_mb only cuts in fewer places)"
)


def notes_of(misses: Sequence[Miss]) -> tuple[str, ...]:
    """What else explains that activations were left alone."""
    if not misses or not is_piece():  # what is cut apart leaves a miss
        return ()
    warn_of_split()
    return (SPLIT,)


def is_piece() -> bool:
    """Whether Dynamo's DDPOptimizer split the graph that is being compiled: then it compiles each piece."""
    context = torch._guards.TracingContext.try_get()
    return context is not None and context.ddp_optimizer_ctx is not None


@cache
def warn_of_split() -> None:
    """Warn of it, once a process."""
    log.warning("%s", SPLIT)
