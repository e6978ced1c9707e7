"""Which rules of the reader and which refusals have fired."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import mhf_compile
from mhf_compile import backend
from mhf_compile.matching.match import Unmatched
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.reading.rules import RULES, Rule
from mhf_compile.report import Miss

HOUSE = Path(mhf_compile.__file__).parent

ERRORS = ("NoMatch", "Refusal", "NeededElsewhere", "TooDear", "kind")
"""What a refusal is called where it is made; kind is either."""


@dataclass(frozen=True)
class Site:
    """A place in the sources where a refusal is made, and the words that it has there."""

    file: str
    first: int
    last: int
    words: str

    def __str__(self) -> str:
        return f"{self.file}:{self.first} {self.words}"


@cache
def refusals() -> tuple[Site, ...]:
    """Every place where a refusal is made."""
    return tuple(
        Site(path.name, node.lineno, node.end_lineno or node.lineno, words(node.args[0]))
        for path in sorted(HOUSE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS
    )


def words(message: ast.expr) -> str:
    """What is said, with an ellipsis for what is put in."""
    if isinstance(message, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in message.values)
    return message.value if isinstance(message, ast.Constant) else f"({ast.unparse(message)})"


def site_of(file: str, line: int) -> Site | None:
    """The refusal that is made at a line; None of a proof that fails, which should never be."""
    return next((s for s in refusals() if s.file == file and s.first <= line <= s.last), None)


def fired() -> dict[str, int]:
    """Nothing yet: every rule and every refusal, with zero."""
    return {**{f"rule: {name}": 0 for name in RULES}, **{f"refusal: {site}": 0 for site in refusals()}}


@contextmanager
def counting(counts: Counter[str]) -> Iterator[None]:
    """Count each rule that is applied, and each refusal that a report tells.

    A refusal that is made on the way, and of which a nearer one is told, does not count.
    """

    def rule(name: str, plain: Rule) -> Rule:
        def read(*args: Any) -> Any:
            counts[f"rule: {name}"] += 1
            return plain.read(*args)

        return dataclasses.replace(plain, read=read)

    init, tell = NoMatch.__init__, backend.miss_of
    made: dict[NoMatch, tuple[str, int]] = {}  # where

    def make(self: NoMatch, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        frame = sys._getframe(1)
        made[self] = Path(frame.f_code.co_filename).name, frame.f_lineno

    def told(found: Unmatched) -> Miss:
        why = found.why
        quoted = {at for m, at in made.items() if m.reason in why.reason and m.reason != why.reason}
        for site in filter(None, (site_of(*place) for place in {made[why], *quoted})):
            counts[f"refusal: {site}"] += 1
        return tell(found)

    def record(*args: Any) -> Any:  # a graph begins
        made.clear()
        return recorded(*args)

    recorded = backend.record
    with (
        mock.patch.dict(RULES, {name: rule(name, plain) for name, plain in RULES.items()}),
        mock.patch.object(NoMatch, "__init__", make),
        mock.patch.object(backend, "miss_of", told),
        mock.patch.object(backend, "record", record),
    ):
        yield
