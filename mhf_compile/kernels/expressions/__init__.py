"""Elementwise functions of scores as expressions: their text, their values, their gradients, their programs.

An expression is a tree of variables, numbers and the functions of :data:`FUNCTIONS`. Its text is Python's,
``gate * sigmoid(1.702 * gate)``, from which :func:`parse` makes the tree again. Its gradients are expressions
too, of what autograd computes: with the same values at kinks, and NaN and infinity where autograd has them.
"""

from mhf_compile.kernels.expressions.calculus import (
    GRADIENT,
    evaluate,
    evaluate_all,
    gradients,
    lowered,
    program,
    special,
)
from mhf_compile.kernels.expressions.functions import FUNCTIONS
from mhf_compile.kernels.expressions.text import parse
from mhf_compile.kernels.expressions.tree import (
    Call,
    Expression,
    Number,
    Variable,
    call,
    size,
    substitute,
    variables,
    walk,
)

__all__ = [
    "FUNCTIONS",
    "GRADIENT",
    "Call",
    "Expression",
    "Number",
    "Variable",
    "call",
    "evaluate",
    "evaluate_all",
    "gradients",
    "lowered",
    "parse",
    "program",
    "size",
    "special",
    "substitute",
    "variables",
    "walk",
]
