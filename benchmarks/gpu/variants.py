"""`python -m benchmarks.gpu.variants`: variants of the kernels, checked and timed on one GPU.

They are the split of the last wave on and off, heads of 96 columns through descriptors and through pointers,
and few tokens in one launch and in two. All are first checked against float64, several at once, each with a
time limit in a process that is replaced if the variant hangs, crashes or fails: that is a result. Those of a
kernel that are right are then timed in turns, with nothing else on the device. What was found is in the JSON
after each kernel. When the time is up nothing new is started; what was left out is there too.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue
from typing import Any

import torch

from benchmarks.gpu import variant_contests
from benchmarks.gpu.__main__ import several
from benchmarks.gpu.machine import state
from benchmarks.gpu.protocol import FULL
from benchmarks.gpu.timing import Budget, CudaClock, Failure, Limits, message
from benchmarks.gpu.variant_contests import Contest
from benchmarks.results import number_table
from mhf_compile.commands.child import Child, Died, Silent
from mhf_compile.kernels.flash_mhf.launch import target_of

TOKENS = (16384, 4096, 1)
AT_ONCE = 10  # processes that check; one that measures time is alone
CHECK_SECONDS, RACE_SECONDS = 60.0, 120.0  # limits of a process; to start torch takes 5 to 10

Work = Callable[[str, Contest, Sequence[int], float], dict[str, Any] | Failure]
"""Does "check" or "time" with some variants of a contest, by number, within so many seconds."""

Here = Callable[[str, Contest, Sequence[int]], dict[str, Any]]
"""The same in this process."""


@dataclass
class Outcome:
    """What came of a contest, its variants by number.

    Attributes:
        what: the contest.
        variants: their names.
        checked: the largest error over what is allowed, of those that were checked.
        race: as `benchmarks.gpu.timing.Race`; empty where nothing was timed.
        failures: why a variant has no times; "race": why none has.
    """

    what: str
    variants: list[str]
    checked: dict[str, float] = field(default_factory=dict)
    race: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = {}
        for number, timing in self.race.get("timings", {}).items():
            spread, over = timing["seconds"], self.race["over"].get(number, {}).get("median", float("nan"))
            micro = [1e6 * spread[name] for name in ("median", "p20", "p80")]
            rows[self.variants[int(number)]] = [*micro, over, self.checked.get(number, float("nan"))]
        failed = [f"{self.variants[int(n)] if n.isdigit() else n}: {why}" for n, why in self.failures.items()]
        columns = ["median, us", "p20", "p80", "/ first", "of allowed"]
        return "\n".join([number_table(self.what, columns, rows, digits=3), *failed])


def work_off(
    planned: Sequence[Contest],
    workers: Sequence[Work],
    over: Callable[[], bool],
    report: Callable[[Outcome], object],
) -> list[str]:
    """Check all variants, by all workers at once; then let the first time those that are right.

    Reports each contest, until the time is up, and returns those that were left out.
    """
    checked = check_all(planned, workers, over)
    for number, contest in enumerate(planned):
        if over():
            return [str(left) for left in planned[number:]]
        report(compete(contest, checked[number], workers[0], over))
    return []


def check_all(
    planned: Sequence[Contest], workers: Sequence[Work], over: Callable[[], bool]
) -> list[list[dict[str, Any] | Failure]]:
    """What came of the check of each variant of each contest."""
    free: Queue[Work] = Queue()
    for worker in workers:
        free.put(worker)

    def check(contest: Contest, variant: int) -> dict[str, Any] | Failure:
        if over():
            return Failure("the time is up")
        worker = free.get()
        try:
            return worker("check", contest, [variant], CHECK_SECONDS)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        checks = [
            [pool.submit(check, contest, i) for i in range(len(contest.variants))] for contest in planned
        ]
    return [[future.result() for future in futures] for futures in checks]


def compete(
    contest: Contest, checked: Sequence[dict[str, Any] | Failure], work: Work, over: Callable[[], bool]
) -> Outcome:
    """Time the variants of a contest that are right."""
    outcome = Outcome(str(contest), [str(variant) for variant in contest.variants])
    for i, found in enumerate(checked):
        match found:
            case Failure(why):
                outcome.failures[str(i)] = why
            case answer:
                outcome.checked[str(i)] = answer["over_allowed"]
                if not answer["over_allowed"] <= 1:
                    outcome.failures[str(i)] = f"errs {answer['over_allowed']:.2f} times what is allowed"
                elif not answer["bit_equal"]:
                    outcome.failures[str(i)] = "two runs differ"
    right = [i for i in range(len(contest.variants)) if str(i) not in outcome.failures]
    if right:
        match Failure("the time is up") if over() else work("time", contest, right, RACE_SECONDS):
            case Failure(why):
                outcome.failures["race"] = why
            case race:
                outcome.race = race
                outcome.failures |= race["failures"]
    return outcome


def work_here(action: str, contest: Contest, variants: Sequence[int]) -> dict[str, Any]:
    """Do the work on the current CUDA device, in this process."""
    target = target_of(torch.device("cuda", torch.cuda.current_device()))
    if action == "check":
        found = variant_contests.check(contest, variants[0], "cuda", target)
        torch.cuda.empty_cache()  # for the other processes
        return found
    return variant_contests.time(contest, variants, "cuda", target, CudaClock(), Limits(seconds=4.0))


class Worker:
    """Works in another process, until that hangs, ends or fails: the next work gets a new one."""

    def __init__(self, work: Here = work_here) -> None:
        self._work = work
        self._child: Child | None = None

    def __call__(
        self, action: str, contest: Contest, variants: Sequence[int], limit: float
    ) -> dict[str, Any] | Failure:
        """Do the work, or say why it was not done."""
        if self._child is None:
            self._child = Child(_serve, self._work)
        found: dict[str, Any] | Failure
        try:
            self._child.send((action, contest, variants))
            found = self._child.receive(limit)
        except Silent:
            found = Failure(f"no result in {limit:.0f} s")
        except Died as error:
            found = Failure(str(error))
        if isinstance(found, Failure):  # the device may be lost to the process
            self.end()
        return found

    def end(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child = None


def _serve(connection: Connection, work: Here) -> None:
    while True:
        asked = connection.recv()
        try:
            connection.send(work(*asked))
        except Exception as error:  # of Triton, the driver, or for want of memory
            connection.send(Failure(message(error)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what `arguments` ask for (default: those of the process). 2: there is no GPU."""
    options = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("there is no CUDA device to measure on", file=sys.stderr)
        return 2
    target = target_of(torch.device("cuda", torch.cuda.current_device()))
    planned = [x for x in variant_contests.plan(target, options.tokens) if x.size in options.config]
    budget = Budget(60 * options.minutes)
    found: dict[str, Any] = {"gpu": target.name, "state": state(), "contests": [], "left_out": []}
    report = partial(_report, found, options.json)
    workers = [Worker() for _ in range(AT_ONCE)]

    try:
        found["left_out"] = work_off(planned, workers, budget.over, report)
    finally:
        for worker in workers:
            worker.end()
    found["state_at_end"] = state()
    write(found, options.json)
    print(*(f"left out  {what}" for what in found["left_out"]), options.json, sep="\n", flush=True)
    return 0


def _report(found: dict[str, Any], file: Path, outcome: Outcome) -> None:
    found["contests"].append(asdict(outcome))
    write(found, file)
    print(f"\n{outcome}", flush=True)


def write(found: dict[str, Any], file: Path) -> None:
    """Write JSON; an interrupted run leaves the file before it whole."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(file)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.variants", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--json", type=Path, default=Path("variants.json"), metavar="FILE", help="variants.json"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing new is started; 9")
    sizes = list(FULL.sizes)
    parser.add_argument(
        "--config", type=several(sizes), default=sizes, help=f"sizes, of {','.join(sizes)}; all of them"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=TOKENS,
        help=f"numbers of tokens; {' '.join(map(str, TOKENS))}",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
