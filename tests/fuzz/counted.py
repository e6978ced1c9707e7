"""Programs are run, and what comes of it is counted."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tests.strategies.choices import Claims
from tests.strategies.running import Compiled, compiled

COUNTS: Counter[str] = Counter()
"""What was run, and what came of it."""


class Program(Protocol):
    """A program: its text, and what is so of it."""

    @property
    def text(self) -> str: ...

    @property
    def claims(self) -> Claims: ...


@dataclass(frozen=True)
class Kept:
    """A program that was kept as a file."""

    text: str
    claims: Claims


def run(program: Program, **how: Any) -> Compiled:
    """Run a program, and count what comes of it."""
    found = compiled(program.text, **how)
    COUNTS["mutants" if program.claims.mutant else "right programs"] += 1
    COUNTS["feed-forwards rewritten"] += found.rewrites
    for reason in found.reasons:
        COUNTS[f"refused: {re.sub(r'[a-z_]*_[0-9]+|[0-9]+', 'N', reason)[:90]}"] += 1
    if program.claims.mutant and not found.rewrites and not found.reasons:
        COUNTS["nothing found"] += 1
    return found


def eps_of(program: Program) -> float:
    """The precision to which a program and what is compiled agree."""
    return torch.finfo(getattr(torch, program.claims.rounds)).eps
