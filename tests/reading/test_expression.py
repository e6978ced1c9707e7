"""Expressions: their values, their text, and the activation that one is."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from mhf_compile.kernels.expressions import Expression, Number, call, evaluate
from mhf_compile.reading.expression import Known, X, identify


def test_values_are_not_enough() -> None:
    """``x + relu(-x)`` is relu but for its slope at zero, where autograd gives 1."""
    expression = X + call("relu", -X)
    points = torch.linspace(-4, 4, 33, dtype=torch.float64)
    assert torch.equal(evaluate(expression, {X.name: points}), F.relu(points))
    assert identify(expression) is None
    assert identify(call("relu", X)) == Known("relu")


def test_nothing_is_no_activation() -> None:
    assert identify(Number(Fraction(0))) is None


BUMP = 1 - (X - 100) * (X - 100)
TANH = 2 / math.pi

FAR: dict[str, Expression] = {
    "relu clamped at 100": call("relu", X) - call("relu", X - 100),
    "relu clamped at 1e4": call("relu", X) - call("relu", X - 1e4),
    "relu clamped at 2**100": call("relu", X) - call("relu", X - 2.0**100),
    "a line by large numbers": call("relu", X + 1e16),
    "relu, and again below -300": call("relu", X) + 2 * call("relu", -X - 300),
    "silu less one that is far out": call("silu", X) - call("silu", X - 1e4),
    "silu with a step far out": call("silu", X) + call("sigmoid", X - 5000),
    "relu with a bump between powers of two": call("relu", X) + call("relu", BUMP),
    "silu with a bell": call("silu", X) + call("exp", BUMP),
    "relu with a bump of a function": call("relu", X) + call("relu", call("tanh", X - 1000)),
}
"""Expressions that are an activation from -90 to 90."""


@pytest.mark.parametrize("name", FAR)
def test_what_differs_far_out_is_none(name: str) -> None:
    assert identify(FAR[name]) is None


def cubic(scale: float) -> Expression:
    """What is inside a gelu by tanh, times a number."""
    return scale * math.sqrt(TANH) * (X + 0.044715 * (X * X * X))


ROOT = math.sqrt(0.5)
SPELLED: dict[str, tuple[str, Expression]] = {
    "x / (1 + exp(-x))": ("silu", X / (1 + call("exp", -X))),
    "x exp(x) / (1 + exp(x))": ("silu", X * call("exp", X) / (1 + call("exp", X))),
    "x / 2 (1 + tanh(x / 2))": ("silu", 0.5 * X * (1 + call("tanh", 0.5 * X))),
    "1 / (1 + exp(-x))": ("sigmoid", call("reciprocal", 1 + call("exp", -X))),
    "x / 2 (1 + erf)": ("gelu", 0.5 * X + 0.5 * X * call("erf", ROOT * X)),
    "x / 2 erfc": ("gelu", 0.5 * (X * call("erfc", -ROOT * X))),
    "x / 2 (1 + tanh(cubic))": ("gelu_tanh", X * 0.5 * (call("tanh", cubic(1)) + 1)),
    "x sigmoid(cubic)": ("gelu_tanh", X * call("sigmoid", cubic(2))),
    "x relu(x)": ("relu_squared", X * call("relu", X)),
    "-(relu(x) - 3 relu(x)) / 2": ("relu", -(call("relu", X) - 3 * call("relu", X)) / 2),
}


@pytest.mark.parametrize("name", SPELLED)
def test_what_overflows_far_out_in_eager_is_known(name: str) -> None:
    activation, expression = SPELLED[name]
    assert identify(expression) == Known(activation)


def test_scales_of_x_are_known() -> None:
    for scale in (1.702, 1e-4, 300.0):
        factor = 1 / Fraction(scale)
        assert identify(X * call("sigmoid", scale * X)) == Known("silu", factor, Fraction(scale))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_no_mode_changes_what_it_is(mode: Callable[[], AbstractContextManager[object]]) -> None:
    expression = 3 * (X * call("sigmoid", X))
    identify.cache_clear()
    with mode():
        assert identify(expression) == Known("silu", Fraction(3))


def test_a_root_past_all_numbers_is_no_error() -> None:
    far = 1e308 + X + 1e-308 * (X * X)
    assert identify(call("relu", far)) is None


def test_a_known_factor_is_that_of_the_scaled_function() -> None:
    """``relu(-3 x) * 2`` is 2 relu of -3 x; of what scales through, such as relu, factors may move."""
    twice = 2 * call("silu", 3 * X)
    assert identify(twice) == Known("silu", Fraction(2), Fraction(3))
    assert identify(2 * X * call("sigmoid", 4 * X)) == Known("silu", Fraction(1, 2), Fraction(4))
