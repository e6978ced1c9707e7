"""How a term is a pattern: what each operand is, and which axis has which role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from mhf_compile import notation
from mhf_compile.notation import Axis, Factor, Leaf, Size, Term


class Place(NamedTuple):
    """What stands in one place of an operand: a sum of products, and the axes summed inside its score."""

    terms: tuple[Term, ...]
    inner: tuple[Axis, ...] = ()


Assignment = dict[str, list[Place]]
"""For each operand of a pattern what stands in each of its places in the formula."""


@dataclass(frozen=True)
class Operand:
    """An operand of the op: a sum of products of tensor entries.

    Attributes:
        terms: the products, of leaves and of reciprocals of leaves, each times a number and summed over the
            axes that it binds.
        dims: for each dimension of the operand the axes it runs over, most significant first; an axis that a
            product does not have is broadcast.
        twins: other values, computed alike, that the program used in its place.
    """

    terms: tuple[Term, ...]
    dims: tuple[tuple[Axis, ...], ...]
    twins: tuple[Leaf, ...] = ()

    @property
    def entries(self) -> tuple[Leaf, ...]:
        """Every leaf that it is made of."""
        return tuple(leaf for term in self.terms for leaf in notation.leaves(term.factors))

    @property
    def leaf(self) -> Leaf | None:
        """The leaf that it is, where it is no more than that."""
        match self.terms:
            case (Term(1, (Leaf() as leaf,), ()),):
                return leaf
        return None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that it has, without those it is broadcast over."""
        return tuple(dict.fromkeys(axis for term in self.terms for axis in term.free))


@dataclass(frozen=True)
class Unification:
    """How a term is a pattern: its operands, the axes of the result, the sizes of the roles."""

    operands: Mapping[str, Operand]
    result: tuple[tuple[Axis, ...], ...]
    roles: Mapping[str, tuple[Axis, ...]]
    activation: str
    scalars: Mapping[str, Fraction]
    behind: tuple[Factor, ...] = ()
    """Leaves, and reciprocals of leaves, that the result is multiplied with."""

    def size(self, *roles: str) -> Size:
        """The size of some roles: of all their axes together."""
        return notation.product([axis.size for role in roles for axis in self.roles[role]])
