"""The table of functions: each in ATen, by others, and with the gradient that PyTorch gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mhf_compile.kernels.expressions.tree import Call, Expression, as_expression

Definition = Callable[..., Expression]
Backward = Callable[..., tuple[Expression, ...]]


@dataclass(frozen=True)
class Function:
    """An elementwise function.

    Attributes:
        evaluate: it in ATen, of tensors and then its parameters.
        backward: the gradient of each argument, as autograd has it: of the result's gradient, the result, the
            arguments, and the parameters. None where it is that of the definition.
        definition: it in terms of other functions; None of those that a kernel has an instruction for, or a
            few lines.
        arguments: the number of arguments.
        conditions: which of them are conditions, not numbers.
        is_condition: whether its result is one.
        parameters: the number of parameters.
        is_special: whether it takes an instruction of the unit for special functions, at least.
    """

    evaluate: Callable[..., Tensor]
    backward: Backward | None = None
    definition: Definition | None = None
    arguments: int = 1
    conditions: tuple[int, ...] = ()
    is_condition: bool = False
    parameters: int = 0
    is_special: bool = False


def where(condition: Expression, a: Expression | float, b: Expression | float) -> Expression:
    """``a`` where a condition holds, else ``b``."""
    return Call("where", (condition, as_expression(a), as_expression(b)))


def _compare(name: str) -> Callable[[Expression, Expression | float], Expression]:
    return lambda a, b: Call(name, (a, as_expression(b)))


_le, _lt, _ge, _gt, _eq = map(_compare, ("le", "lt", "ge", "gt", "eq"))


def _both(a: Expression, b: Expression) -> Expression:
    return Call("both", (a, b))


def _within(x: Expression, least: float, most: float) -> Expression:
    """Whether a number is between two, of which one may be infinite; NaN is not."""
    above, below = _ge(x, least) if math.isfinite(least) else None, None
    if math.isfinite(most):
        below = _le(x, most)
    if above is not None and below is not None:
        return _both(above, below)
    return above or below or _eq(x, x)


def _f(name: str) -> Callable[..., Expression]:
    return lambda *arguments: Call(name, tuple(map(as_expression, arguments)))


_exp, _sigmoid, _tanh, _erf, _abs, _log1p, _expm1, _rsqrt = map(
    _f, ("exp", "sigmoid", "tanh", "erf", "abs", "log1p", "expm1", "rsqrt")
)


def _part(function: Callable[..., Tensor], backward: Definition, is_special: bool = True) -> Function:
    """A function of one argument that kernels have, with its gradient: of (grad, result, argument)."""
    return Function(function, lambda g, y, x: (backward(g, y, x),), is_special=is_special)


def _defined(function: Callable[..., Tensor], definition: Definition, parameters: int = 0) -> Function:
    """One whose gradient is that of its definition."""
    return Function(function, None, definition, parameters=parameters)


def _kinked(
    function: Callable[..., Tensor], definition: Definition, backward: Definition, parameters: int = 0
) -> Function:
    """One with a gradient of its own: of (grad, argument, parameters)."""
    return Function(function, lambda g, y, x, *p: (backward(g, x, *p),), definition, parameters=parameters)


def _condition(
    function: Callable[..., Tensor], arguments: int = 2, conditions: tuple[int, ...] = ()
) -> Function:
    """What holds or does not, and has no gradient."""
    return Function(
        function, lambda *given: (), arguments=arguments, conditions=conditions, is_condition=True
    )


def _extremum(function: Callable[..., Tensor], misses: str) -> Function:
    """The larger or the smaller of two; of equal ones each has half of the gradient, of NaN all of it.

    ``misses`` is the comparison with the other one of what the function does not take.
    """
    of = _compare(misses)

    def backward(g: Expression, y: Expression, a: Expression, b: Expression) -> tuple[Expression, ...]:
        shared = where(_eq(a, b), g / 2, g)
        return where(of(a, b), 0, shared), where(of(b, a), 0, shared)

    def definition(a: Expression, b: Expression) -> Expression:
        return where(of(a, b), b, where(_eq(a, a), where(_eq(b, b), a, b), a))

    return Function(function, backward, definition, arguments=2)


SIXTH = float(torch.tensor(1 / 6))
"""As hardsigmoid's gradient has it at any dtype."""


def _clamp(x: Expression, least: float, most: float) -> Expression:
    low = where(_lt(x, least), least, x) if math.isfinite(least) else x
    return where(_gt(x, most), most, low) if math.isfinite(most) else low


def _softplus(x: Expression, beta: float, threshold: float) -> Expression:
    return where(_gt(beta * x, threshold), x, _log1p(_exp(beta * x)) / beta)


FUNCTIONS: dict[str, Function] = {
    "add": Function(torch.add, lambda g, y, a, b: (g, g), arguments=2),
    "mul": Function(torch.mul, lambda g, y, a, b: (g * b, g * a), arguments=2),
    "reciprocal": _part(torch.reciprocal, lambda g, y, x: -g * (y * y)),
    "sqrt": _part(torch.sqrt, lambda g, y, x: g / (2 * y)),
    "rsqrt": _part(torch.rsqrt, lambda g, y, x: -0.5 * g * (y * y * y)),
    "exp": _part(torch.exp, lambda g, y, x: g * y),
    "expm1": _part(torch.expm1, lambda g, y, x: g * (y + 1)),
    "log": _part(torch.log, lambda g, y, x: g / x),
    "log1p": _part(torch.log1p, lambda g, y, x: g / (x + 1)),
    "sin": _part(torch.sin, lambda g, y, x: g * _f("cos")(x)),
    "cos": _part(torch.cos, lambda g, y, x: -g * _f("sin")(x)),
    "erf": _part(torch.erf, lambda g, y, x: g * (2 / math.sqrt(math.pi) * _exp(-(x * x)))),
    # 1 - sigmoid(x) has few digits left where x is large
    "sigmoid": _part(torch.sigmoid, lambda g, y, x: g * y * _sigmoid(-x)),
    "tanh": _part(torch.tanh, lambda g, y, x: g * (1 - y * y)),
    "abs": _part(torch.abs, lambda g, y, x: g * _f("sign")(x), is_special=False),
    "sign": Function(torch.sign, lambda g, y, x: ()),
    **{name: _condition(getattr(torch, name)) for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    "both": _condition(torch.logical_and, 2, (0, 1)),
    "either": _condition(torch.logical_or, 2, (0, 1)),
    "opposite": _condition(torch.logical_not, 1, (0,)),
    "maximum": _extremum(torch.maximum, "lt"),
    "minimum": _extremum(torch.minimum, "gt"),
    "where": Function(
        torch.where,
        lambda g, y, c, a, b: (as_expression(0), where(c, g, 0), where(c, 0, g)),
        arguments=3,
        conditions=(0,),
    ),
    "erfc": Function(
        torch.erfc,
        lambda g, y, x: (-g * (2 / math.sqrt(math.pi) * _exp(-(x * x))),),
        lambda x: 1 - _erf(x),
    ),
    "relu": _kinked(F.relu, lambda x: where(_le(x, 0), 0, x), lambda g, x: where(_le(x, 0), 0, g)),
    "silu": _defined(F.silu, lambda x: x * _sigmoid(x)),
    "gelu": _defined(F.gelu, lambda x: 0.5 * x * (1 + _erf(math.sqrt(0.5) * x))),
    "gelu_tanh": _defined(
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + _tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x)))),
    ),
    "softplus": _kinked(
        F.softplus,
        _softplus,
        lambda g, x, beta, threshold: where(_gt(beta * x, threshold), g, g * _sigmoid(beta * x)),
        parameters=2,
    ),
    "mish": _defined(F.mish, lambda x: x * _tanh(Call("softplus", (x,), (1.0, 20.0)))),
    "logsigmoid": _kinked(
        F.logsigmoid, lambda x: where(_gt(x, 0), 0, x) - _log1p(_exp(-_abs(x))), lambda g, x: g * _sigmoid(-x)
    ),
    "clamp": _kinked(
        torch.clamp, _clamp, lambda g, x, least, most: where(_within(x, least, most), g, 0), parameters=2
    ),
    "hardtanh": _kinked(
        F.hardtanh,
        _clamp,
        lambda g, x, least, most: where(_both(_gt(x, least), _lt(x, most)), g, 0),
        parameters=2,
    ),
    "hardsigmoid": _kinked(
        F.hardsigmoid,
        lambda x: _clamp(x + 3, 0, 6) / 6,
        lambda g, x: where(_both(_gt(x, -3), _lt(x, 3)), g * SIXTH, 0),
    ),
    "hardswish": _kinked(
        F.hardswish,
        lambda x: x * _clamp(x + 3, 0, 6) / 6,
        lambda g, x: where(_le(x, -3), 0, where(_ge(x, 3), g, g * (x / 3 + 0.5))),
    ),
    "leaky_relu": _kinked(
        F.leaky_relu,
        lambda x, slope: where(_gt(x, 0), x, slope * x),
        lambda g, x, slope: where(_gt(x, 0), g, slope * g),
        parameters=1,
    ),
    "elu": _kinked(
        torch.ops.aten.elu,
        lambda x, alpha, scale, inside: where(_le(x, 0), alpha * scale * _expm1(inside * x), scale * x),
        lambda g, x, alpha, scale, inside: where(
            _gt(x, 0), scale * g, alpha * scale * inside * g * _exp(inside * x)
        ),
        parameters=3,
    ),
    "threshold": _kinked(
        F.threshold,
        lambda x, threshold, value: where(_le(x, threshold), value, x),
        lambda g, x, threshold, value: where(_le(x, threshold), 0, g),
        parameters=2,
    ),
    "softshrink": _kinked(
        F.softshrink,
        lambda x, width: where(_gt(x, width), x - width, where(_lt(x, -width), x + width, 0 * x)),
        lambda g, x, width: where(_gt(_abs(x), width), g, 0),
        parameters=1,
    ),
    "hardshrink": _kinked(
        F.hardshrink,
        lambda x, width: where(_within(x, -width, width), 0, x),
        lambda g, x, width: where(_gt(_abs(x), width), g, 0),
        parameters=1,
    ),
}
"""The functions that expressions are made of. Where one is not smooth, its gradient is PyTorch's there."""
