"""What a property is: a check that holds of every example of a strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

FRESH = settings(
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
)
"""How examples are drawn by a seed."""

SUITE = settings(FRESH, derandomize=True)
"""How the test suite draws: the same examples each time."""


def assume(condition: object) -> None:
    """Draw another example unless a condition holds: Hypothesis's own, for checks in other processes too."""
    if not condition:
        raise UnsatisfiedAssumption


class Example(Protocol):
    """What a property holds of; its repr is for the reader."""

    @property
    def source(self) -> str:
        """The text of a module that has the example, to be kept as a file where a property fails."""


@dataclass(frozen=True)
class Property:
    """A check that raises where it does not hold of an example.

    Attributes:
        check: the check; its name is the property's.
        examples: what it holds of.
        count: how many examples the test suite draws.
    """

    check: Callable[[Any], None]
    examples: st.SearchStrategy[Any]
    count: int

    @property
    def name(self) -> str:
        return self.check.__name__

    def hold(self, how: settings = SUITE, count: int | None = None, seed: int | None = None) -> None:
        """Draw examples and check each; a failure shrinks.

        Args:
            how: how Hypothesis draws; of how many, see ``count``.
            count: how many examples, if not as many as the suite draws.
            seed: which examples, where they are not the same each time.
        """
        check = given(self.examples)(self.check)
        if seed is not None:
            check = hypothesis.seed(seed)(check)
        settings(how, max_examples=count or self.count)(check)()
