"""Notes of a report: what of the program as a whole explains it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cache

from mhf_compile.report.data import Miss
from mhf_compile.tape.recorder import PIECE
from mhf_compile.tape.tape import Tape

log = logging.getLogger(__name__)

SPLIT = (
    "DistributedDataParallel's gradient buckets cut this model's graph into pieces, and a feed-forward that "
    "is cut apart is not found; torch._dynamo.config.optimize_ddp = False keeps it whole (a larger "
    "bucket_cap_mb only cuts in fewer places)"
)

NOTHING = 'nothing of the model was compiled, and so nothing looked at (TORCH_LOGS="graph_breaks" tells why)'

BREAK = "a feed-forward that a graph break cuts apart is not found: {}"


def notes_of(tape: Tape, misses: Sequence[Miss]) -> tuple[str, ...]:
    """What else explains that feed-forwards were left alone, or not seen."""
    breaks = tape.scopes[0].breaks if tape.scopes else ""
    if breaks == PIECE:
        if not misses:  # what is cut apart leaves a miss
            return ()
        warn_of_split()
        return (SPLIT,)
    return (BREAK.format(breaks),) if breaks else ()


def notes_of_model(graphs: int, breaks: Iterable[str]) -> tuple[str, ...]:
    """Of a whole model: in how many graphs it was compiled, and the graph breaks, in their words."""
    cut = tuple(BREAK.format(words.partition("\n")[0]) for words in breaks)
    if not graphs:
        return (NOTHING, *cut)
    return (f"the model was compiled in {graphs} graphs, each looked at on its own",) * (graphs > 1) + cut


@cache
def warn_of_split() -> None:
    """Warn of it, once a process."""
    log.warning("%s", SPLIT)
