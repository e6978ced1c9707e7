"""What a pattern is: a formula, its operands, the roles of their axes, and the op that takes its place.

What is said of roles and operands is said here and in the patterns; everything else asks them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import prod

import torch

from mhf_compile.notation import Axis, Leaf

Roles = dict[str, list[Axis]]

RESULT = "result"
"""Beside the operands that an axis occurs in: that it is in the result."""


@dataclass(frozen=True)
class Role:
    """What an axis is in a pattern.

    Attributes:
        name: what people call one of what it counts, such as "head".
        size: a size to trace the formula with; those of a pattern differ.
        is_token: whether no operand contracts it and no weight has it.
        is_contracted: whether it is summed inside the scores.
        is_required: whether a match must have such an axis.
    """

    name: str
    size: int
    is_token: bool = False
    is_contracted: bool = False
    is_required: bool = False


class Purpose(Enum):
    """What an operand is for in a pattern.

    INPUT: others are broadcast over an axis that it and the result have, and it over none.
    WEIGHT: what the input and the hidden values are contracted with.
    BIAS: what is added to a score.
    FACTOR: what takes up any further factor of the right axes.
    """

    INPUT = "input"
    WEIGHT = "weight"
    BIAS = "bias"
    FACTOR = "factor"


@dataclass(frozen=True)
class Slot:
    """The place of an operand in a pattern.

    Attributes:
        dims: the roles of each dimension; ``"h g"`` is one dimension of two digits.
        words: what people call the operand.
        purpose: what it is for.
        is_optional: whether it may be absent.
    """

    dims: tuple[str, ...]
    words: str
    purpose: Purpose
    is_optional: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of all dimensions."""
        return split(self.dims)


@dataclass(frozen=True, eq=False)
class Pattern:
    """A computation that an op does in one call.

    Attributes:
        name: the op's name in the report.
        op: the qualified name of the op, whose arguments have the names of the operands and scalars; those
            that the pattern lacks are None.
        formula: the computation in eager PyTorch, ``formula(*operands, hidden, *scalars)``: the
            definition, and the oracle of the tests and of the proof. An optional operand may be None;
            ``hidden`` is a function of the scores, gate and, where it is gated, up.
        roles: what the axes are, by the letters that stand for them.
        operands: the slot of each operand.
        result: the roles of each dimension of the result.
        hidden: the roles of the hidden value: the activation of a score, which no program should keep.
        dense: a match in which all of these have size 1 is dense.
        fields: for each field of the report the roles whose size it is.
        scalars: the formula's numbers, each with the value it is traced with; all different, none 1.
        activations: the elementwise functions the op knows.
        distribute: tells roles apart that occur in the same operands, given the leaf of each operand.
    """

    name: str
    op: str
    formula: Callable[..., torch.Tensor]
    roles: Mapping[str, Role]
    operands: Mapping[str, Slot]
    result: tuple[str, ...]
    hidden: tuple[str, ...]
    dense: tuple[str, ...]
    fields: Mapping[str, tuple[str, ...]]
    scalars: Mapping[str, int]
    activations: frozenset[str]
    distribute: Callable[[Roles, Mapping[str, Leaf]], Roles]

    @cached_property
    def is_gated(self) -> bool:
        """Whether hidden values are a function of two scores, not of one."""
        return "u" in self.operands

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The roles of tokens."""
        return tuple(letter for letter, role in self.roles.items() if role.is_token)

    @cached_property
    def broadcast(self) -> tuple[str, ...]:
        """The roles over which weights may be broadcast: those of the result that all inputs have."""
        inputs = {RESULT, *self.of(Purpose.INPUT)}
        return tuple(role for role in self.roles if inputs <= self.occurrences(role))

    @cached_property
    def optional(self) -> frozenset[str]:
        """The operands that may be absent."""
        return frozenset(name for name, slot in self.operands.items() if slot.is_optional)

    @cached_property
    def product(self) -> str:
        """The operand that takes up any further factor of the right axes."""
        (name,) = self.of(Purpose.FACTOR)
        return name

    def of(self, purpose: Purpose) -> list[str]:
        """The operands of a purpose, in order."""
        return [name for name, slot in self.operands.items() if slot.purpose is purpose]

    def occurrences(self, role: str) -> frozenset[str]:
        """The operands that have axes of a role, and RESULT where the result has."""
        has = [name for name, slot in self.operands.items() if role in slot.roles]
        return frozenset([*has, RESULT] if role in split(self.result) else has)

    def shape(self, dims: Iterable[str]) -> tuple[int, ...]:
        """Sizes of dimensions to trace the formula with."""
        return tuple(prod(self.roles[role].size for role in dim.split()) for dim in dims)

    def words(self, names: Iterable[str]) -> str:
        """Operands, or RESULT, in words, in the order of the pattern: "the values and the result"."""
        given = set(names)
        said = [slot.words for name, slot in self.operands.items() if name in given]
        return " and ".join([*said, "the result"] if RESULT in given else said)

    def counted(self, roles: Iterable[str]) -> list[str]:
        """What roles count, such as "token" and "head"."""
        return list(dict.fromkeys(self.roles[role].name for role in roles))


def split(dims: Iterable[str]) -> tuple[str, ...]:
    """The roles of dimensions."""
    return tuple(role for dim in dims for role in dim.split())
