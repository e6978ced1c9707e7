"""The end of a GPU run: our rates, the fastest peer's times over ours, and the bandwidth of decode."""

import math
from collections.abc import Mapping

from benchmarks.gpu.peers import OURS
from benchmarks.gpu.results import Results, Speed
from benchmarks.results import number_table

CONTESTS = (
    ("op", "forward"),
    ("op", "backward"),
    ("layer", "forward"),
    ("layer", "step"),
    ("dense", "forward"),
    ("dense", "step"),
)


def summary(results: Results) -> str:
    """Tables with a column for each number of tokens; NaN is what was not measured."""
    tables = [_contest_table(results, level, part) for level, part in CONTESTS]
    return "\n\n".join(table for table in [*tables, _decode_table(results)] if table)


def _contest_table(results: Results, level: str, part: str) -> str:
    rows: dict[str, dict[int, float]] = {}
    for speed in results.speeds:
        if (speed.level, speed.part) == (level, part):
            rows.setdefault(speed.size, {})[speed.tokens] = speed.tflops(OURS)
            rows.setdefault(f"  {speed.size}, fastest peer / ours", {})[speed.tokens] = fastest(speed)
    return _table(f"{level} {part}, TFLOP/s", rows)


def fastest(speed: Speed) -> float:
    """The time over ours of the fastest peer."""
    over = [spread.median for name, spread in speed.race.over.items() if name != OURS]
    return min(over, default=math.nan)


def _decode_table(results: Results) -> str:
    copied = results.machine.get("bandwidth")
    rows: dict[str, dict[int, float]] = {}
    for decode in results.decodes:
        share = 100 * decode.bandwidth(OURS) / copied if isinstance(copied, float) else math.nan
        rows.setdefault(decode.size, {})[decode.tokens] = share
    return _table("decode, cold, % of the copy's bandwidth", rows)


def _table(title: str, rows: Mapping[str, Mapping[int, float]]) -> str:
    columns = sorted({tokens for row in rows.values() for tokens in row})
    cells = {name: [row.get(tokens, math.nan) for tokens in columns] for name, row in rows.items()}
    return number_table(title, [f"N {tokens}" for tokens in columns], cells, digits=2) if rows else ""
