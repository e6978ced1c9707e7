"""The house: rooms from low to high, imports that only go down, no circles, and files of readable length."""

from __future__ import annotations

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "mhf_compile"

ROOMS = (
    "kernels",
    "errors",
    "options",
    "notation",
    "tape",
    "reading",
    "patterns",
    "matching",
    "rewriting",
    "report",
    "inner",
    "backend",
    "graphs",
    "api",
    "mhf_compile",  # what the package shows
    "models",
    "commands",
    "__main__",
)
"""From low to high: a room may import itself and what is lower, in functions and for types too."""

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Imports (of a module, by a module) that may go up or around, each with the reason."""

FLOORS, ARROWS = 12, 52
"""At most so many rooms on the longest way down, and pairs of rooms of which one imports the other."""

LONGEST = 400
"""Lines of a file."""

TABLES = {
    "tests/edits.py": "a row for each edit",
    "tests/near_misses.py": "a program for each near miss",
    "tests/rewriting/planted.py": "a row for each fault",
    "tests/spellings/algebra.py": "a program for each spelling",
    "tests/spellings/ported.py": "a program for each spelling",
    "tests/spellings/production.py": "a program for each spelling",
    "tests/spellings/research.py": "a program for each spelling",
}
"""Files that may be longer: tables, each with what its rows are."""


@cache
def modules() -> dict[str, Path]:
    """The file of each module of the package."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        names = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def room(module: str) -> str:
    """The room of a module: its folder, or the file that it is in the package's own."""
    return module.split(".")[1] if "." in module else module


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that a module imports anywhere in its file."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if part in modules() else str(node.module) for part in parts}
    return frozenset(found & modules().keys() - {module})


def arrows() -> list[tuple[str, str]]:
    """Every import (of a module, by a module) without the exceptions."""
    every = [(a, b) for a in modules() for b in sorted(imports(a))]
    return [arrow for arrow in every if arrow not in EXCEPTIONS]


def floors(graph: dict[str, set[str]]) -> int:
    """The number of nodes on the longest way down."""
    heights: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        heights[node] = 1 + max((heights[below] for below in graph.get(node, ())), default=0)
    return max(heights.values())


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in modules()} == set(ROOMS)
    assert len(set(ROOMS)) == len(ROOMS)


def test_imports_go_down() -> None:
    up = [f"{a} -> {b}" for a, b in arrows() if ROOMS.index(room(a)) < ROOMS.index(room(b))]
    assert up == []


def test_no_circles() -> None:
    graph = {module: {b for a, b in arrows() if a == module} for module in modules()}

    def below(module: str) -> set[str]:
        found: set[str] = set()
        pending = [module]
        while pending:
            new = graph[pending.pop()] - found
            found |= new
            pending += new
        return found

    around = {module: below(module) for module in modules()}
    assert [f"{a} -> {b}" for a, b in arrows() if a in around[b]] == []


def test_the_exceptions_are_needed() -> None:
    for (importer, imported), reason in EXCEPTIONS.items():
        assert imported in imports(importer) and reason


def test_the_plan_of_the_house(capsys: pytest.CaptureFixture[str]) -> None:
    """Rooms, floors and arrows, as they are: shown with -s."""
    between = {(room(a), room(b)) for a, b in arrows() if room(a) != room(b)}
    graph = {name: {b for a, b in between if a == name} for name in ROOMS}
    number = floors(graph)
    with capsys.disabled():
        print(f"\n{len(ROOMS)} rooms on {number} floors, {len(between)} arrows; {len(modules())} modules")
    assert number <= FLOORS and len(between) <= ARROWS


def test_the_kernels_know_torch_and_triton_only() -> None:
    known = {"torch", "triton", PACKAGE}
    for module, path in modules().items():
        if room(module) != "kernels":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - known:
                assert name in sys.stdlib_module_names, f"{module} imports {name}"


def lengths() -> dict[str, int]:
    """The lines of each Python file of the repository."""
    paths = (path for folder in (PACKAGE, "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}


def test_files_are_of_a_readable_length() -> None:
    long = {name: lines for name, lines in lengths().items() if lines > LONGEST and name not in TABLES}
    assert long == {}


def test_the_tables_are_long() -> None:
    assert [name for name in TABLES if lengths().get(name, 0) <= LONGEST] == []
