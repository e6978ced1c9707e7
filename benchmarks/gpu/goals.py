"""What is required of the kernels on an H200, and whether a run shows it."""

import math
from collections.abc import Iterator

from benchmarks.gpu.peers import OURS, SWIGLU_INDUCTOR
from benchmarks.gpu.protocol import Protocol
from benchmarks.gpu.results import Decode, Memory, Results, Speed, worst
from benchmarks.results import Requirement, at_least, at_most

FORWARD, BACKWARD = 560, 380  # TFLOP/s
MEMORY = 5
BANDWIDTH = 0.7


def requirements(results: Results, protocol: Protocol) -> list[Requirement]:
    """All requirements. What a run did not get to is not measured; what failed in it does not hold."""
    return [
        *_rates(results, protocol),
        *_memory(results, protocol),
        *_bandwidth(results, protocol),
        *_contests(results, protocol),
        *_errors(results),
    ]


def _rates(results: Results, protocol: Protocol) -> Iterator[Requirement]:
    """Forward and backward at the goals' tokens and head width, of every size."""
    for part, bound in (("forward", FORWARD), ("backward", BACKWARD)):
        for size, model in protocol.sizes.items():
            if model.head_dim != protocol.goal_head_dim:
                continue
            found = [
                speed.tflops(OURS)
                for speed in results.speeds
                if (speed.level, speed.size, speed.part, speed.tokens)
                == ("op", size, part, protocol.goal_tokens)
            ]
            what = f"{part} of {size}, N {protocol.goal_tokens}, TFLOP/s"
            yield at_least(what, found[0] if found else None, bound)


def _memory(results: Results, protocol: Protocol) -> Iterator[Requirement]:
    """The peak of a layer's training step at the most tokens measured, of every size of the paper."""
    for size in protocol.paper:
        found = [memory for memory in results.memories if (memory.level, memory.size) == ("layer", size)]
        largest = max(found, key=lambda memory: memory.tokens, default=None)
        what = f"peak memory of {size}, {SWIGLU_INDUCTOR}'s over ours"
        if largest is None:
            yield at_least(what, None, MEMORY)
        else:
            yield at_least(f"{what}, N {largest.tokens}", _peak_ratio(largest), MEMORY)


def _peak_ratio(memory: Memory) -> float | None:
    """How far ours is below the peer's; 0 where ours failed, None where either cannot be known."""
    ours, theirs = memory.peaks.get(OURS), memory.peaks.get(SWIGLU_INDUCTOR)
    if OURS in memory.failures:
        return 0.0
    return None if ours is None or theirs is None else theirs / max(ours, 1)


def _bandwidth(results: Results, protocol: Protocol) -> Iterator[Requirement]:
    """Decode of one token, of sizes of which a single layer's weights do not fit the cache."""
    ceiling = results.machine.get("bandwidth")
    fewest = min(protocol.decode_tokens)
    found = {d.size: d for d in results.decodes if d.tokens == fewest and d.weights > d.cached}
    if not found:
        yield at_least(f"decode, N {fewest}, share of the copy's bandwidth", None, BANDWIDTH)
    for size, decode in found.items():
        what = f"decode of {size}, N {fewest}, share of the copy's bandwidth"
        yield at_least(what, _share(decode, ceiling), BANDWIDTH)


def _share(decode: Decode, ceiling: object) -> float | None:
    return decode.bandwidth(OURS) / ceiling if isinstance(ceiling, float) else None


def _contests(results: Results, protocol: Protocol) -> Iterator[Requirement]:
    """For each peer, its time over ours where that is least."""
    least: dict[tuple[str, str], tuple[float, str]] = {}
    for speed in results.speeds:
        if speed.tokens < protocol.contest_from:
            continue
        for peer, over in _over_ours(speed).items():
            where = f"{speed.size}, N {speed.tokens}, {speed.part}"
            key = speed.level, peer
            least[key] = min(least.get(key, (math.inf, "")), (over, where))
    if not least:
        yield at_least(f"time of any peer over ours, N >= {protocol.contest_from}", None, 1.0)
    for (level, peer), (over, where) in least.items():
        yield at_least(f"{level}: time of {peer} over ours, least at {where}", over, 1.0)


def _over_ours(speed: Speed) -> dict[str, float]:
    """The time over ours of every peer that finished; 0 where ours did not."""
    race = speed.race
    return {
        name: race.over[name].median if name in race.over else 0.0 for name in race.timings if name != OURS
    }


def _errors(results: Results) -> Iterator[Requirement]:
    """The law of errors, and bits that do not change, in all checks."""
    over = [errors.over_allowed for errors in results.errors]
    what = "error over twice eager's own and rounding, the largest"
    yield at_most(what, worst(over) if over else None, 1.0)
    equal = [errors.bit_equal for errors in results.errors]
    yield at_least("share of checks in which two runs are bit-equal", _mean(equal), 1.0)


def _mean(values: list[bool]) -> float | None:
    return sum(values) / len(values) if values else None
