"""The rooms' own tests: which statements each reaches, and which of them fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from tests.mutation.corpus import Graph
from tests.mutation.judge import ROOMS, Line, listen

TESTS = Path(__file__).parents[1]

SECONDS = 10
"""What a test may take of a processor, to be run for a mutant."""


@dataclass(frozen=True)
class KnownTest:
    """A test that passes without a mutation, the lines that it runs, and its seconds."""

    name: str
    lines: frozenset[Line]
    seconds: float  # of a processor

    @property
    def cost(self) -> float:
        """What it takes; more than nothing."""
        return self.seconds + 1e-3


def files() -> list[str]:
    """The files of the rooms' tests."""
    paths = sorted(path for room in ROOMS for path in (TESTS / room).glob("test_*.py"))
    return [str(path.relative_to(TESTS.parent)) for path in paths]


def learn_tests(among: Sequence[str], graph: Graph, out: IO[str]) -> None:
    """Write what each test in some files runs, a line of JSON each: its name, lines and seconds."""
    lines, once = listen(graph)
    _run(among, _Lines(lines, once, out))


def first_failure(tests: Sequence[str]) -> str:
    """The first of some tests that fails, in this order, "" where none does."""
    first = _First(tests)
    _run(list(dict.fromkeys(name.partition("::")[0] for name in tests)), first, "-x")
    return first.failed


def _run(among: Sequence[str], plugin: object, *options: str) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options, *among], [plugin])


def _stop(*_: object) -> None:
    raise TimeoutError("takes too long to be run for a mutant")


class _Lines:
    """A plugin of pytest that writes what each test runs that passes."""

    def __init__(self, lines: set[Line], once: set[Line], out: IO[str]) -> None:
        self.lines, self.once, self.out = lines, once, out
        self.passed = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.passed = False
        self.lines.clear()
        signal.signal(signal.SIGPROF, _stop)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        start = time.process_time()
        result = yield
        signal.setitimer(signal.ITIMER_PROF, 0)
        if self.passed:
            said = [item.nodeid, sorted(self.lines | self.once), time.process_time() - start]
            print(json.dumps(said), file=self.out, flush=True)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed |= report.when == "call" and report.passed


class _First:
    """A plugin of pytest that runs some tests in an order of its own, and notes the first failure."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order: Mapping[str, int] = {name: number for number, name in enumerate(tests)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        self.pytest_runtest_logreport(report)
