"""Sizes of dimensions: ints, or sympy expressions where Dynamo keeps them symbolic.

Arithmetic on them never asks the shape environment anything, so it cannot add a guard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import sympy

Size: TypeAlias = "int | sympy.Expr"


def size_of(size: object) -> Size:
    """A Python int, ``torch.SymInt`` or sympy expression as a Size."""
    if isinstance(size, int):
        return size
    node = getattr(size, "node", None)
    if node is not None and not hasattr(node, "expr"):  # of jagged rows, which have a length each
        return sympy.Symbol(str(size), integer=True, nonnegative=True)
    expression = sympy.sympify(node.expr if node is not None else size)
    return int(expression) if expression.is_Integer else expression


@lru_cache(maxsize=65536)
def times(a: Size, b: Size) -> Size:
    """The product of two sizes."""
    return a * b if isinstance(a, int) and isinstance(b, int) else size_of(sympy.expand(a * b))


@lru_cache(maxsize=65536)
def quotient(a: Size, b: Size) -> Size | None:
    """``a / b`` where b divides a for every value of the symbols, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    ratio = sympy.cancel(sympy.sympify(a) / b)
    return size_of(ratio) if ratio.is_integer else None


@lru_cache(maxsize=65536)
def at_most(a: Size, b: Size) -> bool:
    """Whether ``a <= b`` for every value of the symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a <= b
    return bool(sympy.factor(sympy.sympify(b) - a).is_nonnegative)


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes; 1 of none."""
    result: Size = 1
    for size in sizes:
        result = times(result, size)
    return result


UNTOLD = 8192
"""What a size is taken to be that is known only when the program runs."""


def known(size: Size, hints: Mapping[sympy.Symbol, int]) -> int:
    """A size as a number: its value, where it is symbolic, for some values of the symbols.

    A symbol that only the data tell has none; it is taken to be large.
    """
    if isinstance(size, int):
        return size
    return int(size.subs(hints).subs(dict.fromkeys(size.free_symbols, UNTOLD)))
