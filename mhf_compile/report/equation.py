"""An equation in index notation as data, of names and numbers alone; ``str`` of it is its text."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

PHI = "phi"
"""The name of a function that has none of its own."""


@dataclass(frozen=True)
class Axis:
    """An axis, by its role in the pattern; ``number`` counts from 1 where a role is several axes, else 0."""

    role: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.role}{self.number or ''}"


@dataclass(frozen=True)
class Position:
    """The position ``offset + sum(stride * axis)`` along a dimension; a symbolic number is a string."""

    digits: tuple[tuple[int | str, Axis], ...]
    offset: int | str = 0

    def __str__(self) -> str:
        parts = [f"{axis}" if stride == 1 else f"{stride}*{axis}" for stride, axis in self.digits]
        return "+".join(parts + [str(self.offset)] * (self.offset != 0 or not parts))


@dataclass(frozen=True)
class Entry:
    """An entry of a tensor, which has the shortest name that tells it from the others of its equation."""

    tensor: str
    index: tuple[Position, ...]

    def __str__(self) -> str:
        return f"{self.tensor}[{','.join(map(str, self.index))}]"


@dataclass(frozen=True)
class Function:
    """An elementwise function of sums of terms; without a name one sum itself."""

    name: str
    arguments: tuple[tuple[Term, ...], ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(' + '.join(map(str, terms)) for terms in self.arguments)})"


@dataclass(frozen=True)
class Term:
    """``coefficient`` times the sum over axes of the product of factors."""

    factors: tuple[Entry | Function, ...]
    summed: tuple[Axis, ...] = ()
    coefficient: Fraction = Fraction(1)

    def __str__(self) -> str:
        body = " * ".join([str(self.coefficient)] * (self.coefficient != 1) + list(map(str, self.factors)))
        return f"sum_{{{','.join(map(str, self.summed))}}} {body or 1}" if self.summed else body or "1"


@dataclass(frozen=True)
class Equation:
    """What an entry of the result is: a sum of terms; and what PHI is, where there is one in them.

    ``phi`` is the text of an expression of ``gate`` and ``up``, its first argument and its second.
    """

    result: Entry
    terms: tuple[Term, ...]
    phi: str = ""

    def __str__(self) -> str:
        found = f"{self.result} = {' + '.join(map(str, self.terms))}"
        return f"{found} with {self.signature} = {self.phi}" if self.phi else found

    @property
    def signature(self) -> str:
        """PHI and what it is of."""
        functions = (f for term in self.terms for f in term.factors if isinstance(f, Function))
        count = max((len(f.arguments) for f in functions if f.name == PHI), default=0)
        return f"{PHI}({', '.join(('gate', 'up')[:count])})"
