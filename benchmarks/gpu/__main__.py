"""`python -m benchmarks.gpu`: the kernels and their peers on one GPU, in less than ten minutes.

The most important shapes come first. When the time is up no new one is started; what was left out is in the
JSON, which is written after each shape. All is measured in another process, with a limit for each turn of an
implementation: see `supervisor`. `--dry-run` goes through all of it on the CPU with tiny sizes.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.gpu.goals import requirements
from benchmarks.gpu.peers import STAGES, named
from benchmarks.gpu.plan import plan
from benchmarks.gpu.protocol import DRY, FULL, Lab, Protocol
from benchmarks.gpu.results import Results
from benchmarks.gpu.summary import summary
from benchmarks.gpu.supervisor import Supervisor
from benchmarks.gpu.timing import Budget, DeviceLost, WallClock
from benchmarks.gpu.worker import work
from mhf_compile.commands.child import Child

OWN = 120.0  # s, of what is no implementation's turn: to start, to describe the machine, to draw operands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what `arguments` ask for (default: those of the process). 1: the device was lost on the way."""
    options = parser().parse_args(arguments)
    budget = Budget(60 * options.minutes)
    protocol = DRY if options.dry_run else FULL
    if protocol.device == "cuda" and not torch.cuda.is_available():
        parser().error("there is no CUDA device; --dry-run needs none")
    chosen = replace(
        protocol,
        sizes={name: protocol.sizes[name] for name in options.config},
        limits=replace(protocol.limits, turn=options.limit),
    )
    results = Results({}, {**asdict(chosen), "minutes": options.minutes})
    units = [str(unit) for unit in plan(Lab(chosen, WallClock(), {})) if unit.stage in options.only]
    supervisor = Supervisor(
        lambda peers, describing: Child(work, chosen, peers, describing), options.peer, OWN, results
    )
    try:
        with suppress(DeviceLost):  # it is in the results
            supervisor.work_off(units, budget, options.json)
        supervisor.end()
    finally:
        supervisor.kill()
    finish(results, chosen, options.json)
    return int("device" in results.failed)


def finish(results: Results, protocol: Protocol, file: Path) -> None:
    """Judge, print the verdicts and what is missing, and write the last JSON."""
    results.requirements = requirements(results, protocol)
    results.write(file)
    print(f"\n{summary(results)}\n")
    for unit in results.left_out:
        print(f"left out  {unit}")
    for unit, why in results.failed.items():
        print(f"failed  {unit}: {why}")
    note = " (a dry run: the figures mean nothing)" if protocol.device == "cpu" else ""
    print(f"\nRequired, in {results.seconds:.0f} s of measuring{note}:")
    print("\n".join(map(str, results.requirements)))
    print(f"\n{file}", flush=True)


def several(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads names with commas between them; the order is that of `allowed`."""

    def names(text: str) -> list[str]:
        given = text.split(",")
        unknown = [name for name in given if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(allowed)}, not {', '.join(unknown)}")
        return [name for name in allowed if name in given]

    return names


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    sizes = list(FULL.sizes)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measure the kernels on one GPU: errors against float64, forward, backward, peak memory, "
        "whole layers, decode and dense feed-forwards, each against its peers.",
    )
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE", help="gpu.json")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no new shape is started; 9")
    parser.add_argument(
        "--config", type=several(sizes), default=sizes, help=f"sizes, of {','.join(sizes)}; all of them"
    )
    parser.add_argument(
        "--only", type=several(STAGES), default=list(STAGES), help=f"stages, of {','.join(STAGES)}; all"
    )
    parser.add_argument(
        "--peer",
        type=named,
        action="append",
        default=[],
        metavar="FILE.py:FUNCTION[@STAGE,...]",
        help="another implementation, function(q, k, u, v, r) -> out as flash_mhf, of some stages or all; "
        "repeatable",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=FULL.limits.turn,
        metavar="SECONDS",
        help="that one implementation may take at a time, compiling included, before its process is ended "
        f"and it is left out there; {FULL.limits.turn:.0f}",
    )
    parser.add_argument("--dry-run", action="store_true", help="the whole way on the CPU, with tiny sizes")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
