"""`python -m benchmarks.gpu`: the kernels and their peers on one GPU, in less than ten minutes.

The most important shapes come first. When the time is up no new one is started; what was left out is in the
JSON, which is written after each shape. `--dry-run` goes through all of it on the CPU with tiny sizes.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.contest import forward, training
from benchmarks.gpu.decode import decode
from benchmarks.gpu.errors import check
from benchmarks.gpu.goals import requirements
from benchmarks.gpu.machine import describe, state
from benchmarks.gpu.peers import external
from benchmarks.gpu.protocol import DRY, FULL, Lab, Protocol, Shape
from benchmarks.gpu.results import Result, Results
from benchmarks.gpu.summary import summary
from benchmarks.gpu.timing import CudaClock, DeviceLost, Failure, WallClock, attempt

STAGES = ("correctness", "forward", "backward", "layer", "decode", "dense")


@dataclass(frozen=True)
class Unit:
    """One step of a run: a shape of a stage. `run` yields results as they come."""

    stage: str
    what: str
    run: Callable[[], Iterator[Result]]

    def __str__(self) -> str:
        return f"{self.stage}: {self.what}"


class Budget:
    """Seconds that a run may take, from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seconds = seconds
        self.start = clock()

    def spent(self) -> float:
        """Seconds until now."""
        return self.clock() - self.start

    def over(self) -> bool:
        """Whether the time is up."""
        return self.spent() >= self.seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what `arguments` ask for (default: those of the process). 1: the device was lost on the way."""
    options = parser().parse_args(arguments)
    budget = Budget(60 * options.minutes)
    protocol = DRY if options.dry_run else FULL
    if protocol.device == "cuda" and not torch.cuda.is_available():
        parser().error("there is no CUDA device; --dry-run needs none")
    chosen = replace(protocol, sizes={name: protocol.sizes[name] for name in options.config})
    clock = CudaClock() if protocol.device == "cuda" else WallClock()
    lab = Lab(chosen, clock, dict(options.peer))
    results = Results(describe(lab), {**asdict(chosen), "minutes": options.minutes})
    print("\n".join(f"{what}: {value}" for what, value in results.machine.items()), flush=True)
    units = [unit for unit in plan(lab) if unit.stage in options.only]
    gc.collect()
    gc.freeze()  # what lives now stays: each of many collections need not look at it
    with suppress(DeviceLost):  # it is in the results
        work_off(units, budget, clock, results, options.json)
    gc.unfreeze()
    results.machine["state_at_end"] = state()
    finish(results, chosen, options.json)
    return int("device" in results.failed)


def work_off(units: Sequence[Unit], budget: Budget, clock: WallClock, results: Results, file: Path) -> None:
    """Run units until the time is up, print what comes of them, and write all results after each.

    Raises:
        DeviceLost: nothing more can be measured.
    """
    for unit in units:
        if budget.over():
            results.left_out.append(str(unit))
            continue
        print(f"\n[{budget.spent():.0f} s] {unit}", flush=True)
        try:
            outcome = attempt(clock, _collect, unit, results)
        except DeviceLost as error:
            results.failed[str(unit)] = results.failed["device"] = str(error)
            results.left_out += map(str, units[units.index(unit) + 1 :])
            raise
        if isinstance(outcome, Failure):
            results.failed[str(unit)] = outcome.why
            print(f"not measured: {outcome.why}", flush=True)
        results.seconds = budget.spent()
        results.write(file)


def _collect(unit: Unit, results: Results) -> None:
    for result in unit.run():
        results.add(result)
        print(result, flush=True)


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


def plan(lab: Lab) -> Iterator[Unit]:
    """All units, the most important first."""
    protocol = lab.protocol
    yield from correctness(lab)
    for number, tokens in enumerate(protocol.tokens):
        for size, model in protocol.sizes.items():
            shape = Shape("op", size, model, tokens)
            yield timed("forward", forward, shape, lab)
            yield timed("backward", training, shape, lab)
        for size in protocol.paper if tokens in protocol.layer_tokens else ():
            if size in protocol.sizes:
                yield from both("layer", Shape("layer", size, protocol.sizes[size], tokens), lab)
        if number == 0:
            yield from decodes(lab)
            few = Shape("dense", "dense", protocol.dense, protocol.ragged[-1])
            yield checked("dense", few, protocol.dtype, lab)
            yield from both("dense", replace(few, tokens=protocol.dense_tokens[0]), lab)
    for tokens in protocol.dense_tokens[1:]:
        yield from both("dense", Shape("dense", "dense", protocol.dense, tokens), lab)


def correctness(lab: Lab) -> Iterator[Unit]:
    """Every size at ragged numbers of tokens; one of them in other dtypes, and at many tokens."""
    protocol = lab.protocol
    cases = [(size, tokens, protocol.dtype) for size in protocol.sizes for tokens in protocol.ragged]
    if protocol.checked in protocol.sizes:
        cases += [(protocol.checked, protocol.ragged[-1], dtype) for dtype in protocol.other_dtypes]
        cases.append((protocol.checked, protocol.long, protocol.dtype))
    for size, tokens, dtype in cases:
        yield checked("correctness", Shape("op", size, protocol.sizes[size], tokens), dtype, lab)


def decodes(lab: Lab) -> Iterator[Unit]:
    """Every size at few tokens."""
    for size in lab.protocol.sizes:
        for tokens in lab.protocol.decode_tokens:
            run = partial(decode, size, tokens, lab)
            yield Unit("decode", f"{size}, {tokens} tokens", run)


def checked(stage: str, shape: Shape, dtype: torch.dtype, lab: Lab) -> Unit:
    """The unit of a check against float64."""
    return Unit(stage, f"{shape}, {dtype}, errors", partial(check, shape, dtype, lab))


def both(stage: str, shape: Shape, lab: Lab) -> Iterator[Unit]:
    """The contests of forward and training at a shape."""
    yield timed(stage, forward, shape, lab)
    yield timed(stage, training, shape, lab)


def timed(stage: str, run: Callable[[Shape, Lab], Iterator[Result]], shape: Shape, lab: Lab) -> Unit:
    """The unit of a contest at a shape."""
    return Unit(stage, f"{shape}, {run.__name__}", partial(run, shape, lab))


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
        type=external,
        action="append",
        default=[],
        metavar="FILE.py:FUNCTION",
        help="another implementation, function(q, k, u, v, r) -> out as flash_mhf; repeatable",
    )
    parser.add_argument("--dry-run", action="store_true", help="the whole way on the CPU, with tiny sizes")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
