"""What a pattern is: a formula, the axes of its operands, and the op that takes its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mhf_compile.notation import Axis, Leaf

Roles = dict[str, list[Axis]]


@dataclass(frozen=True, eq=False)
class Pattern:
    """A computation that an op does in one call.

    Attributes:
        name: the op's name in the report.
        op: the qualified name of the op, whose arguments have the names of the operands and scalars; those
            that the pattern lacks are None.
        formula: the computation in eager PyTorch, ``formula(*operands, activation, *scalars)``: the
            definition, and the oracle of the tests and of the proof. An optional operand may be None; the
            activation is a function.
        operands: for each operand the axes of its dimensions; ``"h g"`` is one dimension of two digits.
        result: the same for the result.
        sizes: a size for each axis, to trace the formula with; all different.
        optional: operands that may be absent.
        contracted: axes that are summed inside the scores.
        required: axes that a match must have.
        shared: operands that must have an axis for the others to be broadcast over it.
        product: the optional operand that takes up any further factor of the right axes.
        scalars: the formula's numbers, each with the value it is traced with; all different, none 1.
        activations: the elementwise functions the op knows.
        tokens: the axes that no operand contracts and no weight has.
        distribute: tells roles apart that occur in the same operands, given the leaf of each operand.
    """

    name: str
    op: str
    formula: Callable[..., torch.Tensor]
    operands: Mapping[str, tuple[str, ...]]
    result: tuple[str, ...]
    sizes: Mapping[str, int]
    optional: frozenset[str]
    contracted: frozenset[str]
    required: frozenset[str]
    shared: frozenset[str]
    product: str
    scalars: Mapping[str, int]
    activations: frozenset[str]
    tokens: tuple[str, ...]
    distribute: Callable[[Roles, Mapping[str, Leaf]], Roles]
