"""Expressions: their values, their text, and the activation that one is."""

from __future__ import annotations

import math
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


def test_a_sum_of_nothing_is_zero_at_every_point() -> None:
    points = torch.linspace(-4, 4, 33, dtype=torch.float64)
    assert torch.equal(evaluate((), points), torch.zeros_like(points))


def test_an_expression_of_a_function_without_a_meaning_is_none() -> None:
    expression: Expression = ((Fraction(1, 2), (X(), Call("mish", MINUS))),)
    assert text(expression) == "0.5*x*mish(-1*x)"
    assert identify(expression) is None
    assert text(()) == "0"


def line(scale: float, shift: float = 0) -> Expression:
    """``scale * x + shift``."""
    return ((Fraction(scale), (X(),)), *[(Fraction(shift), ())] * (shift != 0))


def call(name: str, argument: Expression, factor: float = 1) -> Expression:
    return ((Fraction(factor), (Call(name, argument),)),)


BUMP = ((-ONE, (X(), X())), (Fraction(200), (X(),)), (Fraction(-9999), ()))  # 1 - (x - 100)**2
TANH = 2 / math.pi

FAR: dict[str, Expression] = {
    "relu clamped at 100": call("relu", PLUS) + call("relu", line(1, -100), -1),
    "relu clamped at 1e4": call("relu", PLUS) + call("relu", line(1, -1e4), -1),
    "relu clamped at 2**100": call("relu", PLUS) + call("relu", line(1, -(2.0**100)), -1),
    "a line by large numbers": call("relu", line(1, 1e16)),
    "relu, and again below -300": call("relu", PLUS) + call("relu", line(-1, -300), 2),
    "silu less one that is far out": call("silu", PLUS) + call("silu", line(1, -1e4), -1),
    "silu with a step far out": call("silu", PLUS) + call("sigmoid", line(1, -5000)),
    "relu with a bump between powers of two": call("relu", PLUS) + call("relu", BUMP),
    "silu with a bell": call("silu", PLUS) + call("exp", BUMP),
    "relu with a bump of a function": call("relu", PLUS) + call("relu", call("tanh", line(1, -1000))),
}
"""Expressions that are an activation from -90 to 90."""


@pytest.mark.parametrize("name", FAR)
def test_what_differs_far_out_is_none(name: str) -> None:
    assert identify(FAR[name]) is None


def cubic(scale: float) -> Expression:
    """What is inside a gelu by tanh, times a number."""
    root = Fraction(scale) * Fraction(math.sqrt(TANH))
    return ((root, (X(),)), (root * Fraction(0.044715), (X(), X(), X())))


def gated(inside: Call, factor: float = 1) -> Expression:
    return ((Fraction(factor), (X(), inside)),)


ROOT = math.sqrt(0.5)
ONE_AND_EXP: Expression = ((ONE, ()), *call("exp", MINUS))
SPELLED: dict[str, tuple[str, Expression]] = {
    "x / (1 + exp(-x))": ("silu", gated(Call("reciprocal", ONE_AND_EXP))),
    "x exp(x) / (1 + exp(x))": (
        "silu",
        ((ONE, (X(), Call("exp", PLUS), Call("reciprocal", ((ONE, ()), *call("exp", PLUS))))),),
    ),
    "x / 2 (1 + tanh(x / 2))": ("silu", line(0.5) + gated(Call("tanh", line(0.5)), 0.5)),
    "1 / (1 + exp(-x))": ("sigmoid", call("reciprocal", ONE_AND_EXP)),
    "x / 2 (1 + erf)": ("gelu", line(0.5) + gated(Call("erf", line(ROOT)), 0.5)),
    "x / 2 erfc": ("gelu", gated(Call("erfc", line(-ROOT)), 0.5)),
    "x / 2 (1 + tanh(cubic))": ("gelu_tanh", line(0.5) + gated(Call("tanh", cubic(1)), 0.5)),
    "x sigmoid(cubic)": ("gelu_tanh", gated(Call("sigmoid", cubic(2)))),
    "x relu(x)": ("relu_squared", gated(Call("relu", PLUS))),
}


@pytest.mark.parametrize("name", SPELLED)
def test_what_overflows_far_out_in_eager_is_known(name: str) -> None:
    activation, expression = SPELLED[name]
    assert identify(expression) == Known(activation)


def test_scales_of_x_are_known() -> None:
    for scale in (1.702, 1e-4, 300.0):
        factor = 1 / Fraction(scale)
        assert identify(gated(Call("sigmoid", line(scale)))) == Known("silu", factor, Fraction(scale))


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


def test_a_root_past_all_numbers_is_no_error() -> None:
    far: Expression = ((Fraction(1e308), ()), (ONE, (X(),)), (Fraction(1e-308), (X(), X())))
    assert identify(call("relu", far)) is None


def test_a_known_factor_is_that_of_the_scaled_function() -> None:
    """``relu(-3 x) * 2`` is 2 relu of -3 x; of what scales through, such as relu, factors may move."""
    twice = call("silu", line(3), 2)
    assert identify(twice) == Known("silu", Fraction(2), Fraction(3))
    assert identify(gated(Call("sigmoid", line(4)), 2)) == Known("silu", Fraction(1, 2), Fraction(4))
