"""Expressions: their values, their text, and the activation that one is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from mhf_compile.notation import ONE
from mhf_compile.reading.expression import Call, Expression, Known, X, evaluate, identify, text

PLUS: Expression = ((ONE, (X(),)),)
MINUS: Expression = ((-ONE, (X(),)),)


def test_values_are_not_enough() -> None:
    """``x + relu(-x)`` is relu but for its slope at zero, where autograd gives 1."""
    expression: Expression = ((ONE, (X(),)), (ONE, (Call("relu", MINUS),)))
    points = torch.linspace(-4, 4, 33, dtype=torch.float64)
    assert torch.equal(evaluate(expression, points), F.relu(points))
    assert identify(expression) is None
    assert identify(((ONE, (Call("relu", PLUS),)),)) == Known("relu")


def test_an_expression_of_a_function_without_a_meaning_is_none() -> None:
    expression: Expression = ((Fraction(1, 2), (X(), Call("mish", MINUS))),)
    assert text(expression) == "0.5*x*mish(-1*x)"
    assert identify(expression) is None
    assert text(()) == "0"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_no_mode_changes_what_it_is(mode: Callable[[], AbstractContextManager[object]]) -> None:
    expression: Expression = ((Fraction(3), (X(), Call("sigmoid", PLUS))),)
    identify.cache_clear()
    with mode():
        assert identify(expression) == Known("silu", Fraction(3))


def test_the_text_of_a_number_tells_it_from_its_neighbours() -> None:
    numbers = [0.7978845608, 0.7978845608028654, 1 / 3, 1e-7, -1.0, 3.0, 2.0**60]
    for number in numbers:
        assert float(text(((Fraction(number), ()),))) == number
    assert text(((Fraction(0.7978845608), (X(),)), (Fraction(3), ()))) == "0.7978845608*x + 3"
