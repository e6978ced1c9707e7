"""Statistics of what was measured, tables of it, and requirements on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Median, and 20th and 80th percentile, of repeated measurements."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Those of `samples`, interpolated between neighbours."""
        p20, median, p80 = torch.tensor(samples, dtype=torch.float64).quantile(
            torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        )
        return cls(median.item(), p20.item(), p80.item())


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The spread of `over / under`, taken pair by pair: what slows a whole round down cancels out."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def spread_table(title: str, rows: Mapping[str, Spread], digits: int = 3) -> str:
    """Lay out a spread a row."""
    table = {name: [spread.median, spread.p20, spread.p80] for name, spread in rows.items()}
    return number_table(title, ["median", "p20", "p80"], table, digits)


def number_table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[float]], digits: int) -> str:
    """Lay out numbers, with so many digits after the point, under the names of their columns."""
    lines = [f"{title:<36}" + "".join(f"{column:>12}" for column in columns)]
    for name, numbers in rows.items():
        lines.append(f"{name:<36}" + "".join(f"{number:>12.{digits}f}" for number in numbers))
    return "\n".join(lines)


@dataclass(frozen=True)
class Requirement:
    """Something required, what was measured (None: nothing can be, on this system), and whether it holds."""

    what: str
    required: str
    measured: float | None
    holds: bool | None

    def __str__(self) -> str:
        if self.measured is None:
            return f"not measured  {self.what}: required {self.required}"
        verdict = "holds" if self.holds else "FAILS"
        return f"{verdict}  {self.what}: {self.measured:.2f}, required {self.required}"


def at_least(what: str, measured: float | None, bound: float) -> Requirement:
    """Require a measurement not to be below a bound."""
    return Requirement(what, f">= {bound}", measured, None if measured is None else measured >= bound)


def at_most(what: str, measured: float | None, bound: float) -> Requirement:
    """Require a measurement not to be above a bound."""
    return Requirement(what, f"<= {bound}", measured, None if measured is None else measured <= bound)
