"""Each kind of mutation is made where it can be, and nowhere else."""

from __future__ import annotations

import ast
from textwrap import dedent
from typing import Any

import pytest

from tests.mutation.operators import drawn, marked, mutated, mutations

CHANGES = {
    "x == y": {"x != y"},
    "x < y": {"x <= y", "x >= y"},
    "x is not None": {"x is None"},
    "x in y": {"x not in y"},
    "x + y": {"x - y", "x"},
    "x // y": {"x * y", "x"},
    "x | y": {"x & y", "x"},
    "x and y": {"x or y", "x", "y"},
    "not x": {"x"},
    "x if y else z": {"x", "z"},
    "x[0]": {"x[1]", "x[-1]"},
    "x[y:z]": {"x[:z]", "x[y:]"},
    "f(x, y)": {"f(y, x)"},
    "f(x, k=y)": {"f(x)"},
    "min(x)": {"max(x)"},
    "sorted(x, key=y)": {"list(x)", "sorted(x)"},
    "x.startswith(y)": {"x.endswith(y)"},
    "(x, y)": {"(y, x)"},
    "{x, y}": {"{x}"},
    "frozenset([x, y])": set(),
    "{x: y, y: z}": {"{x: y}"},
    "[a for a in x if y]": {"[a for a in x]"},
    "f(True)": {"f(False)"},
    "f(7)": {"f(8)", "f(6)"},
    "f('word')": {"f('')"},
    "isinstance(x, y)": set(),
    "zip(x, strict=True)": set(),
    "f('words for a reader')": set(),
    "f'{x + y}'": set(),
}

STATEMENTS = {
    "if x:\n    y()": {"if False:\n    y()", "if True:\n    y()", "if x:\n    pass"},
    "x += y": {"x -= y", "pass"},
    "x.a = y": {"pass"},
    "for a in x:\n    continue": {"for a in x:\n    pass"},
    "if x:\n    return y": {"if False:\n    return y", "if True:\n    return y", "if x:\n    pass"},
    "match x:\n    case 1 if y:\n        z()\n    case _:\n        pass": {
        "match x:\n    case _:\n        pass",
        "match x:\n    case 1 if y:\n        z()",
        "match x:\n    case 1:\n        z()\n    case _:\n        pass",
        "match x:\n    case 2 if y:\n        z()\n    case _:\n        pass",
        "match x:\n    case 0 if y:\n        z()\n    case _:\n        pass",
        "match x:\n    case 1 if y:\n        pass\n    case _:\n        pass",
    },
    "assert x == y": set(),
    "log.debug(x, y)": set(),
    "a: f[0] = x": set(),
    "import x": set(),
}


def sources(source: str) -> set[str]:
    """The source of a module with each of its mutations."""
    return {ast.unparse(mutated(mutation, source)) for mutation in mutations("module", source)}


@pytest.mark.parametrize("expression", CHANGES)
def test_expressions(expression: str) -> None:
    expected = {ast.unparse(ast.parse(f"def f():\n    return {after}")) for after in CHANGES[expression]}
    assert sources(f"def f():\n    return {expression}") == expected


@pytest.mark.parametrize("statement", STATEMENTS)
def test_statements(statement: str) -> None:
    def inside(text: str) -> str:
        return "def f():\n" + "".join(f"    {line}\n" for line in text.splitlines())

    expected = {ast.unparse(ast.parse(inside(after))) for after in STATEMENTS[statement]}
    assert sources(inside(statement)) == expected


MODULE = dedent('''
    """A module."""
    LIMIT = 5
    Alias = tuple[int, ...]

    class A:
        """A class."""

        def f(self, x: int = 2) -> "list[int]":
            """A method."""
            def g(y):
                return y * 2
            return [g(x), 3]

        def __repr__(self):
            return "A" + str(self.f(1))
''')


def test_where() -> None:
    """In functions, defaults and constants, each under the name of the innermost function."""
    found = {(m.function, m.before, m.after) for m in mutations("module", MODULE)}
    assert {name for name, _, _ in found} == {"", "A.f", "A.f.g"}
    assert ("", "LIMIT = 5", "LIMIT = 6") in found or ("", "5", "6") in found
    assert ("A.f.g", "y * 2", "y + 2") in found
    assert not any("Alias" in before or "method" in before for _, before, _ in found)


def test_no_mutation_is_made_twice() -> None:
    found = [m.key for m in mutations("module", "def f(x):\n    return x[0], x[-1], x[1:]\n")]
    assert not any(key.endswith("#2") for key in found)


def test_what_is_mutated_runs() -> None:
    (mutation,) = (m for m in mutations("module", MODULE) if m.after == "y * 3")
    names: dict[str, Any] = {}
    exec(compile(mutated(mutation, MODULE), "module.py", "exec"), names)
    assert names["A"]().f() == [6, 3]
    assert mutation.line == 12


def test_what_runs_is_told() -> None:
    lines: list[int] = []
    names: dict[str, Any] = {"__ran__": lambda module, line: lines.append(line)}
    exec(compile(marked("module", MODULE), "module.py", "exec"), names)
    assert lines == []
    assert names["A"]().f() == [4, 3]
    assert lines == [9, 10, 11, 13, 11, 12]


def test_each_function_is_drawn_first() -> None:
    """And of a function the same mutations, whatever others there are."""
    among = mutations("module", MODULE)
    assert {m.function for m in drawn(among, 3, seed=0)} == {"", "A.f", "A.f.g"}
    assert len(drawn(among, 1000, seed=0)) == len(among) == len({m.key for m in among})
    longer = mutations("module", MODULE + "\ndef h(x):\n    return x + 1\n")
    assert {m.key for m in drawn(among, 3, seed=0)} < {m.key for m in drawn(longer, 4, seed=0)}
