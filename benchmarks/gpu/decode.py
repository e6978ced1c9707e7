"""A call at one or a few tokens, which reads weights and computes next to nothing.

A sample goes through several layers, whose weights differ, as one CUDA graph where that is possible: cold,
the cache does not hold them; warm, all layers are the same one. The time is that of a layer.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.peers import OURS, operands, ops
from benchmarks.gpu.protocol import Lab, Op
from benchmarks.gpu.results import Decode
from benchmarks.gpu.timing import Failure, Race, Task, attempt, race, release
from benchmarks.results import Spread

ROTATED = 4  # times the size of the cache: bytes of weights that a cold sample goes through, at least


def decode(size: str, tokens: int, lab: Lab) -> Iterator[Decode]:
    """Measure all implementations of the operator."""
    torch.compiler.reset()
    release()
    torch.manual_seed(0)
    protocol = lab.protocol
    model, cache = protocol.sizes[size], protocol.cache_bytes()
    first = [x.detach() for x in operands(model, tokens, protocol.dtype, protocol.device)]
    q, *weights, r = first
    weight_bytes = sum(weight.nbytes for weight in weights)
    layers = max(2, math.ceil(ROTATED * cache / weight_bytes))
    cold = [first, *([q, *(torch.randn_like(w) * w.std() for w in weights), r] for _ in range(layers - 1))]
    captured: set[str] = set()
    races = [
        _race(layer_operands, lab, captured, warm=warm)
        for layer_operands, warm in ((cold, False), ([first] * layers, True))
    ]
    moved = sum(x.nbytes for x in first) + q.nbytes
    yield Decode(
        size, model.head_dim, tokens, weight_bytes, moved, layers, cache, sorted(captured), races[0], races[1]
    )


def _race(layers: list[list[Tensor]], lab: Lab, captured: set[str], *, warm: bool) -> Race:
    """Time a call of each function, as the share of a layer in a sample of all of them."""
    tasks: dict[str, Task] = {}
    capturing: dict[str, float] = {}
    lost: dict[str, str] = {}
    for name, function in ops(lab).items():
        if name in lab.lost:
            lost[name] = lab.lost[name]
            continue
        work = _through(function, layers)
        start = time.perf_counter()
        with lab.turn(name):
            replay = attempt(lab.clock, lab.clock.captured, work)
        if isinstance(replay, Failure):
            replay = work  # it fails without a graph too, and is recorded by the race, or it runs
        elif replay is not work:
            captured.add(name)
        capturing[name] = time.perf_counter() - start  # and compiling, before it
        tasks[name] = _task(replay, warm)
    found = race(tasks, lab.clock, lab.protocol.limits, OURS)
    timings = {
        name: replace(
            timing,
            seconds=_divided(timing.seconds, len(layers)),
            first=capturing[name] + timing.first,
        )
        for name, timing in found.timings.items()
    }
    return Race(timings, found.over, {**lost, **found.failures})


def _through(function: Op, layers: list[list[Tensor]]) -> Callable[[], object]:
    @torch.no_grad()
    def work() -> object:
        return [function(*layer) for layer in layers]

    return work


def _task(work: Callable[[], object], warm: bool) -> Task:
    return Task(lambda _: work(), warm=warm)


def _divided(spread: Spread, by: int) -> Spread:
    return Spread(spread.median / by, spread.p20 / by, spread.p80 / by)
