"""What becomes of the graphs, and then of the rooms' tests, where the package is imported with a mutation.

All of it runs in a process of its own, in which ``mhf_compile`` is not yet imported.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import json
import logging
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypedDict

import torch
from torch import Tensor

from tests.mutation.corpus import Graph, outcome
from tests.mutation.operators import Mutation, marked, mutated

PACKAGE = "mhf_compile"
ROOMS = ("notation", "reading", "matching")

SECONDS = 20
"""What a graph may take of a processor: a mutant that takes longer does not end."""
TESTS_SECONDS = 300
"""And all tests of a mutant."""
MEMORY = 8 << 30
"""Bytes that a mutant may take."""

AFTER = 3
"""How many graphs are still looked at when a mutant is found out: for a wrong result, which is worse."""

ROUNDING = 0.05
"""The error of a graph that rounds to bfloat16."""

LONGEST_SUM = 1000
"""Products that a result is a sum of, at most; each is off by half a unit in the last place."""


_NUMBERED = re.compile(r"\b([a-z])\d+\b")
"""A name of an axis, of which the number hangs on what was read before."""


class Said(TypedDict):
    """What the package does to a graph."""

    name: str
    report: list[list[str]]  # of rewrites, and of misses
    value: float  # errors, relative
    gradient: float
    failure: str  # what was raised, in the analysis or in the rewritten graph


Line = tuple[str, int]
"""A module, and a line of it where a statement starts."""


@dataclass(frozen=True)
class KnownGraph:
    """A graph, what the package does to it without a mutation, the lines that it runs, and its seconds."""

    graph: Graph
    said: Said
    lines: frozenset[Line]
    seconds: float  # of a processor

    @property
    def cost(self) -> float:
        """What it takes, as a number that is the same each time."""
        return len(self.graph.module.graph.nodes)


def source(module: str) -> tuple[str, str]:
    """The source of a module, and its file; the packages that it is in are not imported."""
    base = Path(__file__).parents[2].joinpath(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return path.read_text(), str(path)


def modules() -> list[str]:
    """The modules of the rooms."""
    root = Path(__file__).parents[2]
    paths = sorted(path for room in ROOMS for path in (root / PACKAGE / room).glob("**/*.py"))
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


# -- in the process of a mutant -----------------------------------------------------------------------------


def plant(changed: dict[str, ast.Module]) -> None:
    """Have modules imported as they are changed, from now on."""
    assert not any(name.partition(".")[0] == PACKAGE for name in sys.modules), "too late"
    loader = importlib.machinery.SourceFileLoader
    original = loader.get_code
    codes = {name: compile(tree, source(name)[1], "exec") for name, tree in changed.items()}

    def get_code(self: Any, name: str) -> Any:
        return codes[name] if name in codes else original(self, name)

    loader.get_code = get_code  # type: ignore[method-assign]


def say(graph: Graph) -> Said:
    """What the package does to a graph, and how far the rewritten graph is from the graph."""
    import mhf_compile

    said = Said(name=graph.name, report=[], value=0.0, gradient=0.0, failure="")
    try:
        options = {"strict": True, "dense": "always", **graph.options}
        rewritten, report = mhf_compile.rewrite(graph.module, graph.inputs, **options)
        sizes = ("tokens", "heads", "kv_heads", "subnetworks", "head_dim", "width", "out_dim")
        told = ("pattern", "source", *sizes, "dtype", "proof", "saved_bytes")
        said["report"] = [[str(getattr(r, name)) for name in told] for r in report.rewrites]
        said["report"] += [[str(miss.source), _NUMBERED.sub(r"\1", miss.reason)] for miss in report.misses]
    except Exception as error:
        return {**said, "failure": f"the analysis raises {type(error).__name__}"}
    if report.rewrites:
        before = outcome(graph.module, graph.inputs)
        try:
            after = outcome(rewritten, graph.inputs)
        except Exception as error:
            return {
                **said,
                "value": float("inf"),
                "failure": f"the rewritten graph raises {type(error).__name__}",
            }
        said["value"], said["gradient"] = map(_error, after, before)
    return said


def _error(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """The largest error, relative to the norm of what is expected; infinite where only one has a value."""
    errors = [0.0 if len(found) == len(expected) else float("inf")]
    for a, b in zip(found, expected, strict=False):
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            errors.append(0.0 if a is b is None else float("inf"))
        elif not torch.equal(a, b):
            error = float((a.double() - b.double()).norm() / b.double().norm())
            errors.append(error if error == error else float("inf"))
    return max(errors)


def listen(graph: Graph) -> tuple[set[Line], set[Line]]:
    """The lines that run from now on, and those that run for the first graph only, whichever it is.

    They are of what is read once, as the patterns are.
    """
    lines: set[Line] = set()
    plant({module: marked(module, source(module)[0]) for module in modules()})
    builtins.__ran__ = lambda *line: lines.add(line)  # type: ignore[attr-defined]
    say(graph)
    first = lines.copy()
    lines.clear()
    say(graph)
    once = first - lines
    lines.clear()
    return lines, once


def learn(graphs: Sequence[Graph], out: IO[str]) -> None:
    """Write what the package does to graphs, not mutated, a line of JSON each, with the lines it runs."""
    lines, once = listen(graphs[0])
    for graph in graphs:
        lines.clear()
        start = time.process_time()
        said = say(graph)
        seconds = time.process_time() - start
        print(json.dumps([said, sorted(lines | once), seconds]), file=out, flush=True)


def judge(mutation: Mutation, graphs: Sequence[KnownGraph], tests: Sequence[str], out: IO[str]) -> None:
    """Write how a mutant differs on graphs, a line of JSON each: a verdict and what it is by.

    Then, of one that nothing has found out, which of some tests fails.
    """
    logging.disable()
    plant({mutation.module: mutated(mutation, source(mutation.module)[0])})
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    remaining = AFTER

    def write(verdict: str, by: str) -> None:
        print(json.dumps([verdict, by]), file=out, flush=True)

    for known in graphs:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        said = say(known.graph)
        verdict, by = differs(said, known.said)
        if verdict:
            write(verdict, f"{known.graph.name}: {by}")
        if verdict in ("wrong value", "wrong gradient"):
            return
        remaining -= bool(verdict) or remaining < AFTER
        if remaining < 0:
            return
    if tests and remaining == AFTER:
        from tests.mutation.suite import first_failure

        logging.disable(logging.NOTSET)
        signal.setitimer(signal.ITIMER_PROF, TESTS_SECONDS)
        if failed := first_failure(tests):
            write("found by a test", failed)


def usable(said: Said) -> bool:
    """Whether a graph can judge: without a mutation nothing is wrong with it but rounding."""
    proved = not any("proof failed" in entry[-1] for entry in said["report"])
    return proved and not said["failure"] and max(said["value"], said["gradient"]) < ROUNDING


def differs(said: Said, known: Said) -> tuple[str, str]:
    """The verdict on a mutant by what the package does to a graph with it and without; "" of none."""
    eps = LONGEST_SUM * torch.finfo(torch.float64).eps
    for what in ("value", "gradient"):
        error = said[what]  # type: ignore[literal-required]
        if error > eps + 10 * known[what]:  # type: ignore[literal-required]
            return f"wrong {what}", said["failure"] or f"an error of {error:.1e}"
    refused = [entry[-1] for entry in said["report"] if "proof failed" in entry[-1]]
    if refused:
        return "refused by the proof", refused[0]
    if said["failure"]:
        return "found by a test", said["failure"]
    if said["report"] != known["report"]:
        new = [entry for entry in said["report"] if entry not in known["report"]]
        return "found by a test", f"says {new[0][-1] if new and len(new[0]) == 2 else new[:1] or 'less'}"
    return "", ""
