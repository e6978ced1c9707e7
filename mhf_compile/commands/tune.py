"""The command `tune`: measure the tiles to choose from on this machine's GPU, and keep the fastest."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from mhf_compile.commands import parallel
from mhf_compile.commands.arguments import DTYPES, positive
from mhf_compile.models import CONFIGS

if TYPE_CHECKING:
    from mhf_compile.kernels.flash_mhf.config import Key, Sizes, Target, Tiles
    from mhf_compile.kernels.flash_mhf.tune import Trial

ROUNDS = 25  # samples of each candidate
COMPILING = 180.0  # s, what a candidate may take
FLUSH = 2**29  # bytes, more than any cache holds

HEADING = f"{'kernel':<16}{'bits':<6}{'columns':<9}{'tokens':<8}{'candidate':<30}{'ms':>9}"


def sizes_of(name: str, dtype: torch.dtype) -> Sizes:
    """The sizes of the FlashMHF layer of a configuration, on no tokens yet."""
    from mhf_compile.kernels.flash_mhf.config import Sizes

    model = CONFIGS[name]
    heads, width = model.ffn_heads, model.subnetwork_width
    dims = model.head_dim, model.head_dim
    return Sizes(0, heads, heads, model.subnetworks, width, *dims, gated=True, dtype=dtype)


def medians(runs: Sequence[Callable[[], object]]) -> list[float]:
    """The median of the times that each function takes on the GPU, in seconds.

    They take turns, another one first in each round, each with an L2 cache that was overwritten. What
    overwrites it keeps the GPU busy until the host has launched all that is timed.
    """
    buffer = torch.empty(FLUSH, dtype=torch.int8, device="cuda")

    def sample(run: Callable[[], object], writes: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(writes):
            buffer.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    flush = min(sample(buffer.zero_, 1) for _ in range(3))
    writes = []
    for run in runs:
        run()  # what happens at a first call
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        writes.append(1 + math.ceil(2 * (time.perf_counter() - start) / flush))
    samples: list[list[float]] = [[] for _ in runs]
    for number in range(ROUNDS):
        for i in range(len(runs)):
            at = (number + i) % len(runs)
            samples[at].append(sample(runs[at], writes[at]))
    return [statistics.median(taken) for taken in samples]


def rows(key: Key, sizes: Sizes, trials: Sequence[Trial]) -> str:
    """A line for each candidate of a row of the tables; the fastest is marked."""
    from mhf_compile.kernels.flash_mhf.tune import fastest
    from mhf_compile.kernels.flash_mhf.tuned import spelled

    kernel, size, columns = key
    first = f"{kernel:<16}{8 * size:<6}{columns or sizes.head_dim:<9}{sizes.tokens:<8}"
    lines = []
    for trial in trials:
        took = f"left out: {trial.why}" if trial.seconds is None else f"{1e3 * trial.seconds:>9.4f}"
        mark = "  <" if trial.tiles == fastest(trials) else ""
        lines.append(f"{first:<39}{spelled(trial.tiles):<30}{took}{mark}")
        first = ""
    return "\n".join(lines)


def compile_all(problems: Mapping[Key, Sizes], target: Target, jobs: int) -> dict[Key, dict[Tiles, str]]:
    """Compile all candidates in so many processes: why those that cannot be do not, by row.

    What is timed afterwards finds them in Triton's cache, and a compiler that hangs or dies ends none but its
    own process.
    """
    from mhf_compile.kernels.flash_mhf import tune

    candidates = [
        tune.Candidate(key, sizes, tiles, target)
        for key, sizes in problems.items()
        for tiles in tune.candidates_of(key, sizes, target.arch)
    ]
    start = time.perf_counter()
    failed: dict[Key, dict[Tiles, str]] = {key: {} for key in problems}
    outcomes = parallel.outcomes(tune.compiled, candidates, jobs, COMPILING)
    for candidate, why in zip(candidates, outcomes, strict=True):
        if why:
            failed[candidate.key][candidate.tiles] = why
    took = time.perf_counter() - start
    print(f"{len(candidates)} candidates compiled in {took:.0f} s by {jobs} processes", flush=True)
    return failed


def tune_all(
    problems: Mapping[Key, Sizes], target: Target, device: torch.device, jobs: int, file: Path | None = None
) -> int:
    """Measure row by row, print and store each, and say for how many there is a winner.

    All times go to `file` as well, if there is one; see `mhf_compile.kernels.flash_mhf.swept`.

    Raises:
        OSError: what is found cannot be stored.
    """
    from mhf_compile.kernels.flash_mhf import swept, tune, tuned

    sweep = swept.Sweep(machine(target), f"Median of {ROUNDS} calls in turns, the L2 cache overwritten.", ())
    if file:
        swept.write(file, sweep)  # it fails now or not at all
    failed = compile_all(problems, target, jobs)
    print(f"{target.name}, {target.arch}; the fastest of each is marked <\n{HEADING}", flush=True)
    winners = 0
    for key, sizes in problems.items():
        shipped = tuned.chosen(key, sizes.tokens, target)
        trials = tune.trials(key, sizes, target, device, medians, failed[key])
        print(rows(key, sizes, trials), flush=True)
        best = tune.fastest(trials)
        if best is not None:
            tuned.store(target.name, {key: best})
            winners += 1
        problem = swept.Problem(key, sizes, shipped, tuple(swept.Row.of(*trial) for trial in trials))
        sweep = replace(sweep, problems=(*sweep.problems, problem))
        if file:
            swept.write(file, sweep)
    return winners


def machine(target: Target) -> dict[str, str]:
    """Where a sweep is measured."""
    import triton

    today = time.strftime("%Y-%m-%d")
    versions = {"torch": torch.__version__, "triton": triton.__version__, "date": today}
    return {"gpu": target.name, "arch": target.arch, **versions}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `tune` and its options to the command line."""
    parser = commands.add_parser(
        "tune",
        help="find the fastest tiles of the kernels on this machine's GPU",
        description="Measure the tiles that each kernel has to choose from on this machine's GPU, and store "
        "the fastest in a file that every later run on such a GPU reads. One measurement serves all lengths "
        "of sequences: nothing is tuned while a model runs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--config",
        choices=CONFIGS,
        action="append",
        help="whose layers to measure on; may be given several times (default: all)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=positive,
        nargs="+",
        help="tokens to measure on: one number up to 64, for decoding, one above, for all else, or both "
        "(default: 16 and 16384)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--jobs", metavar="N", type=positive, default=parallel.processors(), help="processes that compile"
    )
    parser.add_argument(
        "--sweep",
        metavar="FILE",
        type=Path,
        help="write the time of every candidate to it, for `python -m benchmarks.gpu.sweep FILE`",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="dtype of the operands")

    def run(options: argparse.Namespace) -> None:
        def stop(why: object) -> NoReturn:
            parser.exit(2, f"{parser.prog}: error: {why}\n")

        if not torch.cuda.is_available():
            stop("there is no GPU to measure on (torch.cuda.is_available() is False)")
        from mhf_compile.kernels.flash_mhf import config, tune, tuned
        from mhf_compile.kernels.flash_mhf.launch import target_of

        numbers = sorted(getattr(options, "tokens", []))
        few = [n for n in numbers if n <= config.FEW] or [tune.DECODED]
        many = [n for n in numbers if n > config.FEW] or [tune.TOKENS]
        if len(few) > 1 or len(many) > 1:
            stop(f"--tokens takes one number up to {config.FEW} and one above, not {numbers}")
        device = torch.device("cuda", torch.cuda.current_device())
        target = target_of(device)
        layers = [
            sizes_of(name, getattr(torch, options.dtype)) for name in getattr(options, "config", CONFIGS)
        ]
        try:
            problems = tune.problems(layers, target.arch, many[0], few[0])
        except ValueError as error:  # an architecture without a table
            stop(error)
        try:
            file = getattr(options, "sweep", None)
            chosen = tune_all(problems, target, device, options.jobs, file)
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            stop(f"cannot write{where}: {error.strerror or error}")
        print(f"{chosen} of {len(problems)} stored in {tuned.path_of(target.name)}")
        if chosen < len(problems):
            parser.exit(1, f"{parser.prog}: no candidate works for {len(problems) - chosen}\n")

    parser.set_defaults(run=run)
