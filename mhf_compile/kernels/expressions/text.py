"""The expression of a text."""

from __future__ import annotations

import ast
import math
from fractions import Fraction
from functools import lru_cache

from mhf_compile.kernels.expressions.functions import FUNCTIONS
from mhf_compile.kernels.expressions.tree import Call, Expression, Number, Variable, call, walk

LARGEST = 256
"""Operations of the largest expression that is read from a text."""


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """The expression of a text. Raises ValueError with what is wrong."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError("it is not written as one") from error
    expression = _parsed(tree)
    if is_condition(expression):
        raise ValueError("it is a condition, want a number")
    if (count := sum(1 for _ in walk(expression))) > LARGEST:
        raise ValueError(f"found an expression of {count} operations, want at most {LARGEST}")
    return expression


def _parsed(tree: ast.expr) -> Expression:
    match tree:
        case ast.Constant(int() | float() as value) if not isinstance(value, bool) and math.isfinite(value):
            return Number(Fraction(value))
        case ast.Name(name):
            return Variable(name)
        case ast.UnaryOp(ast.USub(), operand):
            return -_numeric(operand)
        case ast.BinOp(left, ast.Add(), right):
            return _numeric(left) + _numeric(right)
        case ast.BinOp(left, ast.Sub(), right):
            return _numeric(left) - _numeric(right)
        case ast.BinOp(left, ast.Mult(), right):
            return _numeric(left) * _numeric(right)
        case ast.BinOp(left, ast.Div(), right):
            below = _numeric(right)
            return _numeric(left) / (below.value if isinstance(below, Number) and below.value else below)
        case ast.Call(ast.Name(name), given, []) if name in FUNCTIONS:
            row = FUNCTIONS[name]
            if len(given) != row.arguments + row.parameters:
                want = f"{row.arguments} arguments and {row.parameters} numbers"
                raise ValueError(f"found {name} of {len(given)}, want {want}")
            numbers = tuple(map(_number, given[row.arguments :]))
            arguments = [*map(_parsed, given[: row.arguments])]
            for position, argument in enumerate(arguments):
                if is_condition(argument) != (position in row.conditions):
                    want = "a condition" if position in row.conditions else "a number"
                    raise ValueError(f"found {name} of {argument}, want {want} in its place")
            return call(name, *arguments, parameters=numbers)
    raise ValueError(f"found {ast.unparse(tree)}, want sums, products and {', '.join(sorted(FUNCTIONS))}")


def _numeric(tree: ast.expr) -> Expression:
    """What stands in a sum or a product."""
    found = _parsed(tree)
    if is_condition(found):
        raise ValueError(f"found {found} in a sum or a product, want a number")
    return found


def is_condition(expression: Expression) -> bool:
    """Whether an expression holds or does not, and is no number."""
    return isinstance(expression, Call) and FUNCTIONS[expression.function].is_condition


def _number(tree: ast.expr) -> float:
    """A parameter, which may be ``inf``."""
    text = ast.unparse(tree)
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"found the parameter {text}, want a number") from error
