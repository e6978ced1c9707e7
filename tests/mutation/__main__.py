"""Plant faults in the reader, and print what finds each: ``python -m tests.mutation --count 300``.

The exit status is 1 where the result of a mutant is wrong, and where nothing notices one, unless it is known
to be equivalent.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, TypeVar

import torch

from tests.mutation.corpus import Graph, captured, programs
from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.judge import PACKAGE, KnownGraph, Line, judge, learn, modules, source, usable
from tests.mutation.operators import Mutation, drawn, mutations
from tests.mutation.suite import KnownTest, files, first_failure, learn_tests

VERDICTS = (
    "wrong value",
    "wrong gradient",
    "survived",
    "not equivalent",
    "refused by the proof",
    "found by a test",
    "equivalent",
)
"""The worst first; of what graphs show of a mutant, the worst is its verdict."""
BAD = VERDICTS[:4]

GRAPH_SECONDS = 12
TEST_SECONDS = 15
"""What the graphs, and the tests, that a mutant is tried on take without it, at most."""

One = TypeVar("One", KnownGraph, KnownTest)

Task = Callable[[IO[str]], None]


def forked(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[int, list[Any], int]]:
    """Run each task in a process of its own: its number, the JSON that it wrote, and what ended it, if not 0.

    Raises RuntimeError where the task raises.
    """
    waiting = list(enumerate(tasks))[::-1]
    running: dict[int, tuple[int, IO[str]]] = {}
    while waiting or running:
        if waiting and len(running) < jobs:
            number, task = waiting.pop()
            out = tempfile.TemporaryFile("w+")  # noqa: SIM115
            sys.stdout.flush()
            if (process := os.fork()) == 0:
                try:
                    task(out)
                    out.flush()
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            running[process] = number, out
            continue
        process, ended = os.wait()
        status = os.waitstatus_to_exitcode(ended)
        number, out = running.pop(process)
        out.seek(0)
        if status > 0:
            raise RuntimeError(f"task {number} fails, as is said above")
        yield number, [json.loads(line) for line in out if line.endswith("\n")], status
        out.close()


def known(graphs: Sequence[Graph], jobs: int) -> list[KnownGraph]:
    """Graphs that the package handles without a mutation, and how it does."""
    named = {graph.name: graph for graph in graphs}
    tasks = [lambda out, part=part: learn(part, out) for n in range(jobs) if (part := graphs[n::jobs])]
    found = []
    for _, said, status in forked(tasks, jobs):
        assert status == 0, "the package ends the process without a mutation"
        for entry, lines, seconds in said:
            if usable(entry):
                found.append(KnownGraph(named[entry["name"]], entry, frozenset(map(tuple, lines)), seconds))
            else:
                print(f"left out, as it fails without a mutation: {entry}")
    return found


def known_tests(graph: Graph, jobs: int) -> list[KnownTest]:
    """The rooms' tests that pass without a mutation."""
    tasks = [
        lambda out, part=part: learn_tests(part, graph, out)
        for n in range(jobs)
        if (part := files()[n::jobs])
    ]
    return [
        KnownTest(name, frozenset(map(tuple, lines)), seconds)
        for _, said, _ in forked(tasks, jobs)
        for name, lines, seconds in said
    ]


def reaches(one: KnownGraph | KnownTest, mutation: Mutation) -> bool:
    return mutation.imported or (mutation.module, mutation.line) in one.lines


def unlike(among: Iterable[One], seconds: float) -> list[One]:
    """Graphs or tests that run for some time in all, those first that run lines that none before them does.

    Where all lines are run it begins anew; what runs more of them at less cost comes first.
    """
    rest, taken = list(among), list[One]()
    lines = missing = frozenset[Line]().union(*(one.lines for one in rest))
    while rest:
        best = max(rest, key=lambda one: len(one.lines & missing) / one.cost)
        if not best.lines & missing and missing != lines:
            missing = lines
            continue
        rest.remove(best)
        missing -= best.lines
        if (seconds := seconds - best.seconds) < 0:
            break
        taken.append(best)
    return taken


def verdict(
    mutation: Mutation, found: Sequence[tuple[str, str]], status: int, reached: bool
) -> tuple[str, str]:
    """The verdict on a mutant, and what it is by."""
    if status:
        found = [*found, ("found by a test", "it does not end, or the process dies")]
    why = EQUIVALENT.get(mutation.key)
    if not found:
        return (
            ("equivalent", why) if why else ("survived", "" if reached else "no graph and no test reaches it")
        )
    first = min(found, key=lambda one: VERDICTS.index(one[0]))
    return ("not equivalent", first[1]) if why else first


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="how many mutants; 0: of all functions one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="mutants that have this in their name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--programs", type=int, help="how many programs to judge by, if not by all")
    parser.add_argument("--no-tests", action="store_true", help="judge by programs alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    among = [m for name in modules() for m in mutations(name, source(name)[0]) if options.only in m.key]
    chosen = drawn(among, options.count or len({(m.module, m.function) for m in among}), options.seed)
    taken = [program for program, _ in zip(programs(), range(options.programs or sys.maxsize), strict=False)]
    graphs = [graph for program in taken for graph in captured(program)]
    assert not any(name.startswith(PACKAGE) for name in sys.modules), (
        "mutants need a package not yet imported"
    )
    usual = known(graphs, options.jobs)
    tests = [] if options.no_tests else known_tests(graphs[0], options.jobs)
    print(f"{len(chosen)} of {len(among)} mutants, {len(usual)} graphs, {len(tests)} tests", end="")
    print(f": {time.perf_counter() - start:.0f} s", flush=True)

    reached = [any(reaches(one, m) for one in (*usual, *tests)) for m in chosen]

    def task(mutation: Mutation) -> Task:
        def run(out: IO[str]) -> None:
            graphs = unlike((one for one in usual if reaches(one, mutation)), GRAPH_SECONDS)
            checks = unlike((one for one in tests if reaches(one, mutation)), TEST_SECONDS)
            judge(mutation, graphs, [test.name for test in checks], out)

        return run

    counts: Counter[tuple[str, str]] = Counter()
    bad, failing = [], set[str]()
    for number, found, status in forked([task(m) for m in chosen], options.jobs):
        mutation = chosen[number]
        what, by = verdict(mutation, found, status, reached[number])
        line = f"{what:20} {mutation}  [{by}]"
        print(line, flush=True)
        counts[mutation.module.split(".")[1], what] += 1
        bad += [f"{line}\n{'':20} {mutation.key!r}"] * (what in BAD)
        failing |= {by} & {one for _, one in found if one.startswith("tests/")}
    for room in sorted({room for room, _ in counts}):
        totals = ", ".join(f"{counts[room, what]} {what}" for what in VERDICTS if counts[room, what])
        print(f"{room:10} {totals}")
    print(*bad, f"{len(chosen)} mutants in {time.perf_counter() - start:.0f} s", sep="\n")
    return bool(bad) or _fails_anyway(failing)


def _fails_anyway(tests: set[str]) -> bool:
    """Whether a test that found a mutant fails without one as well."""
    if not tests:
        return False
    ((_, said, _),) = forked([lambda out: print(json.dumps(first_failure(sorted(tests))), file=out)], 1)
    if said != [""]:
        print(f"fails without a mutation: {said}")
    return said != [""]


if __name__ == "__main__":
    sys.exit(main())
