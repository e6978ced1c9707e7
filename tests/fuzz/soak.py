"""Fuzz for a while: all properties, of fresh examples, on every core.

    python -m tests.fuzz --minutes 30

Prints how many programs a second, what came of them, and how often each rule of the reader and each refusal
fired. Each failure is kept as a file in tests/regressions, which the test suite checks from then on.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import queue
import random
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis.errors import UnsatisfiedAssumption

from tests.fuzz import ambient, coverage, near, programs
from tests.fuzz.counted import COUNTS
from tests.fuzz.kept import FOLDER, PROPERTIES, keep
from tests.fuzz.property import FRESH, Property
from tests.kernels import implementations
from tests.kernels import properties as kernels

AT_LEAST = 20
"""How often each rule and each refusal fires in half an hour on two cores."""

KINDS: dict[str, tuple[tuple[Property, ...], int]] = {
    "programs": (programs.PROPERTIES, 13),
    "near misses": (near.PROPERTIES, 8),
    "calls of the kernels": (kernels.PROPERTIES, 1),
    "ambient states": (ambient.PROPERTIES, 3),
}
"""What is drawn, the properties of it, and the share of the time that these have."""

SHARES = {
    p.name: share * p.count / sum(other.count for other in properties)
    for properties, share in KINDS.values()
    for p in properties
}
"""Of each property, in proportion to what the suite draws."""

TURN = 5.0
"""Seconds for a property before the next has its turn."""

GRACE = 600
"""Seconds that a process has beyond its time, to start and for the example that it is at."""


@dataclass
class Result:
    """What came of examples of a property: how many, counts of what they are, of what fired, and failures."""

    examples: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        self.examples += other.examples
        self.counts += other.counts
        self.fired += other.fired
        self.failures += other.failures


class TurnIsOver(BaseException):
    """Nothing that Hypothesis takes for a failure."""


def hold(property_: Property, seed: int, end: float, folder: Path) -> Result:
    """Check fresh examples of a property until the end; keep the smallest one for which it fails."""
    result = Result()
    failed: tuple[Any, Exception] | None = None

    def check(example: Any) -> None:
        nonlocal failed
        if time.time() > end and failed is None:
            raise TurnIsOver
        try:
            property_.check(example)
        except UnsatisfiedAssumption:  # it does not count
            raise
        except Exception as error:
            failed = example, error
            raise
        result.examples[property_.name] += 1

    COUNTS.clear()
    ambient.COUNTS.clear()
    with coverage.counting(result.fired), contextlib.suppress(TurnIsOver):
        try:
            Property(check, property_.examples, property_.count).hold(FRESH, 1000, seed)
        except Exception as error:
            example, why = failed or (None, error)  # the last one that failed is the smallest
            if example is None:
                result.failures.append(f"{property_.name} (seed {seed}) drew nothing: {error}")
            else:
                path = keep(property_.name, example, f"{type(why).__name__}: {why}", folder)
                result.failures.append(f"{path} (seed {seed})")
    result.counts.update(COUNTS)
    result.counts.update({f"in a drawn state: {what}": n for what, n in ambient.COUNTS.items()})
    return result


def work(number: int, seed: int, seconds: float, only: str, folder: Path, results: Any) -> None:
    """Give the turn to the property that had the least of its share, again and again, for some seconds."""
    start, parent = time.time(), multiprocessing.parent_process()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    draw = random.Random(f"{seed} {number}")
    chosen = [p for p in PROPERTIES if only in p.name]
    draw.shuffle(chosen)
    had = dict.fromkeys(chosen, 0.0)
    while (now := time.time()) < start + seconds and (parent is None or parent.is_alive()):
        property_ = min(chosen, key=lambda p: had[p] / SHARES[p.name])
        seed_here = draw.getrandbits(32)
        results.put((number, f"{property_.name} (seed {seed_here})"))
        results.put((number, hold(property_, seed_here, min(now + TURN, start + seconds), folder)))
        had[property_] += time.time() - now
    implementations.close()
    results.put((number, None))


def soak(seconds: float, jobs: int, seed: int, only: str = "", folder: Path = FOLDER) -> Result:
    """Fuzz for some seconds with some processes."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    start = time.time()
    workers = [
        context.Process(target=work, args=(n, seed, seconds, only, folder, results)) for n in range(jobs)
    ]
    for worker in workers:
        worker.start()
    total = Result()
    at: dict[int, str] = dict.fromkeys(range(jobs), "the start")
    told = start
    while at and time.time() < start + seconds + GRACE:
        try:
            number, what = results.get(timeout=1)
        except queue.Empty:
            for number in [n for n in at if not workers[n].is_alive()]:
                total.failures.append(f"a process died with {workers[number].exitcode} in {at.pop(number)}")
            continue
        if what is None:
            del at[number]
        elif isinstance(what, str):
            at[number] = what
        else:
            total.add(what)
            for failure in what.failures:
                print("FAILED", failure, flush=True)
        if time.time() > told + 60:
            told = time.time()
            print(f"{(told - start) / 60:5.1f} min  {rate(total, told - start)}", flush=True)
    for number in at:
        workers[number].kill()
        total.failures.append(f"no end of {at[number]}")
    return total


def rate(total: Result, seconds: float) -> str:
    """How many of each kind there were."""
    done = {kind: sum(total.examples[p.name] for p in properties) for kind, (properties, _) in KINDS.items()}
    told = ", ".join(f"{number} {kind}" for kind, number in done.items())
    return f"{told}; {done['programs'] / seconds:.2f} programs a second; {len(total.failures)} failures"


def show(total: Result, seconds: float) -> None:
    """Print what came of it."""
    for title, counts in (("examples", total.examples), ("what came of them", total.counts)):
        print(f"\n{title}")
        print(*(f"{number:7} {name}" for name, number in counts.most_common()), sep="\n")
    print("\nwhat fired, the rarest first")
    every = Counter(coverage.fired())
    every.update(total.fired)
    print(*(f"{number:7} {name}" for name, number in reversed(every.most_common())), sep="\n")
    print(f"\n{rate(total, seconds)}")
    for failure in total.failures:
        print("FAILED", failure)


def rare(total: Result) -> list[str]:
    """Rules and refusals that fired too seldom."""
    return [name for name in coverage.fired() if total.fired[name] < AT_LEAST]


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz; returns 1 after a failure, or where half an hour did not make everything fire often enough."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, help="how long (5, if no hours are given)")
    parser.add_argument("--hours", type=float, default=0.0, help="how long in hours, in addition")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="of all examples (the time)")
    parser.add_argument("--only", default="", help="properties whose names contain this")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where failures are kept")
    given = parser.parse_args(arguments)
    minutes = given.minutes if given.minutes is not None else 0.0 if given.hours else 5.0
    seconds = 60 * minutes + 3600 * given.hours
    print(f"seed {given.seed}, {given.jobs} processes, {seconds / 60:.1f} minutes", flush=True)
    total = soak(seconds, given.jobs, given.seed, given.only, given.folder)
    show(total, seconds)
    seldom = rare(total) if seconds >= 1800 and not given.only else []
    for name in seldom:
        print(f"fired less than {AT_LEAST} times: {name}")
    return 1 if total.failures or seldom else 0
