"""`python -m benchmarks.gpu.sweep FILE`: the fastest tiles of a sweep, and how far they lead over what ships.

`python -m mhf_compile tune --sweep FILE` measures one; that of an H100 is benchmarks/results/h100/sweep.json.
Each row of the tables, a kernel with a dtype and a class of widths, was tried on the sizes of one call only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mhf_compile.kernels.flash_mhf import config, tuned
from mhf_compile.kernels.flash_mhf.config import Tiles
from mhf_compile.kernels.flash_mhf.swept import Problem, Row, read

HEADING = (
    f"{'kernel':<15}{'dtype':<9}{'columns':>7}{'tokens':>8}{'tried':>6}  {'fastest':<22}{'ms':>8}  "
    f"{'ships':<30}{'ms':>8}{'lead':>6}  {'shipped then':<30}{'ms':>8}{'lead':>6}"
)
NOTE = "lead: its time over that of the fastest; -: it was not measured, or there is no such row"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each problem, and the fastest after it where `--top` asks for them."""
    options = parser().parse_args(arguments)
    try:
        sweep = read(options.file)
    except (OSError, ValueError) as error:
        parser().error(f"{options.file}: {error}")
    table = config.table(sweep.machine["arch"])
    print(", ".join(sweep.machine.values()), sweep.method, NOTE, HEADING, sep="\n")
    for problem in sweep.problems:
        candidates = config.fitting(problem.key[0], problem.sizes.tokens, table.get(problem.key, ()))
        now = candidates[0] if candidates else None
        print("\n".join([line(problem, now), *further(problem, options.top)]))


def line(problem: Problem, now: Tiles | None) -> str:
    """The fastest of a problem, against what ships `now` and what shipped when it was measured."""
    kernel, _, columns = problem.key
    dtype = str(problem.sizes.dtype).removeprefix("torch.")
    measured = problem.measured()
    head = f"{kernel:<15}{dtype:<9}{columns or '-':>7}{problem.sizes.tokens:>8}{len(problem.rows):>6}  "
    if not measured:
        return f"{head}nothing works"
    best = measured[0]
    fastest = f"{spelled(best):<22}{milliseconds(best)}  "
    return f"{head}{fastest}{against(problem, best, now)}  {against(problem, best, problem.shipped)}"


def against(problem: Problem, best: Row, tiles: Tiles | None) -> str:
    """Tiles, their time, and how many times as long they take as the fastest."""
    row = problem.row_of(tiles) if tiles else None
    name = tuned.spelled(tiles) if tiles else "-"
    if row is None or row.seconds is None or best.seconds is None:
        return f"{name:<30}{'-':>8}{'-':>6}"
    return f"{name:<30}{milliseconds(row)}{row.seconds / best.seconds:>6.2f}"


def further(problem: Problem, count: int) -> list[str]:
    """A line for each of the next fastest, so that there are `count` in all."""
    return [f"{'':<47}{spelled(row):<22}{milliseconds(row)}" for row in problem.measured()[1:count]]


def milliseconds(row: Row) -> str:
    """The time of a row that was measured."""
    return f"{1e3 * (row.seconds or 0):>8.4f}"


def spelled(row: Row) -> str:
    """The tiles of a row, with what was not recorded as off."""
    tokens, rows, warps, stages, *others = (value or 0 for value in row.fields.values())
    described, columns, *flags = others
    return tuned.spelled(Tiles(tokens, rows, warps, stages, described, columns, *map(bool, flags)))


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.sweep",
        description="The fastest tiles of a sweep, and their lead over those that ship.",
    )
    parser.add_argument("file", type=Path, help="what python -m mhf_compile tune --sweep wrote")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="print so many of the fastest; 1")
    return parser


if __name__ == "__main__":
    main()
