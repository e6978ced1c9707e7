"""Elementwise functions, and tensors that hold a constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch

from mhf_compile.notation import Axes, Func, Leaf, Term, Unreadable
from mhf_compile.reading.entries import Indices, dimension, entry, scalar, times
from mhf_compile.tape.values import Op, Value


def zeros(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """No terms."""
    return []


def ones(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The number 1."""
    return [Term()]


def full(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A number, as it is in the dtype of the result, or a tensor of no dimensions: the last argument.

    Of 0 there are no terms, as of zeros.
    """
    fill = op.args[-1]
    if not isinstance(fill, Value):
        fill = torch.tensor(float(scalar(fill)), dtype=op.outputs[0].dtype, device="cpu").item()
    return [times(Fraction(1), fill, ())] if isinstance(fill, Value) or fill else []


Parameters = Callable[..., tuple[str, Sequence[float]]]


def _named_as(function: str, *defaults: float) -> Parameters:
    """That of an operation whose arguments behind the tensor are a function's parameters."""
    return lambda *given: (function, (*given, *defaults[len(given) :]))


SAME = "silu mish hardswish hardsigmoid sigmoid tanh relu exp expm1 log log1p erf erfc abs sign sin cos sqrt"
"""Operations without parameters that have the same name as functions of expressions."""


def _gelu(approximate: str = "none") -> tuple[str, Sequence[float]]:
    """One of two functions: of erf, or of its approximation by tanh."""
    return "gelu" if approximate == "none" else "gelu_tanh", ()


FUNCTION_OF: dict[str, Parameters] = {
    **{name: _named_as(name) for name in (*SAME.split(), "rsqrt", "reciprocal")},
    "elu": _named_as("elu", 1, 1, 1),
    "celu": lambda alpha=1: ("elu", (alpha, 1, 1 / alpha)),
    "leaky_relu": _named_as("leaky_relu", 0.01),
    "softplus": _named_as("softplus", 1, 20),
    "hardtanh": _named_as("hardtanh", -1, 1),
    "clamp": lambda min=None, max=None: ("clamp", (_or(min, -math.inf), _or(max, math.inf))),
    "clamp_min": lambda least: ("clamp", (least, math.inf)),
    "clamp_max": lambda most: ("clamp", (-math.inf, most)),
    "threshold": _named_as("threshold"),
    "softshrink": _named_as("softshrink", 0.5),
    "hardshrink": _named_as("hardshrink", 0.5),
    "log_sigmoid_forward": _named_as("logsigmoid"),
    "gelu": _gelu,
}
"""For each operation the function of an expression that it is, and its parameters, by its own."""


def _or(number: float | None, default: float) -> float:
    return default if number is None else number


def function(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A function of an entry, which is named as in an expression: ``clamp(-inf, 7)``."""
    if any(isinstance(argument, Value) for argument in (*op.args[1:], *op.kwargs.values())):
        raise Unreadable(f"{op.name} of several tensors")
    if out:
        raise Unreadable(f"what {op.name} keeps for its gradient")
    name, parameters = FUNCTION_OF[op.name](*op.args[1:], **op.kwargs)
    given = ", ".join(repr(float(parameter)).removesuffix(".0") for parameter in parameters)
    return [_named(f"{name}({given})" if given else name, op, index)]


LOGICAL = {"and": "both", "or": "either", "not": "opposite"}
"""For each operation on conditions the function of an expression that it is."""

SEVERAL = {name: name for name in ("maximum", "minimum", "gt", "ge", "lt", "le", "eq", "ne", "where")}
SEVERAL |= {f"{kind}_{name}": of for kind in ("logical", "bitwise") for name, of in LOGICAL.items()}
"""For each operation of several tensors, or numbers, the function of an expression that it is."""


def of_several(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A function of several entries, or of numbers in their places."""
    if op.kwargs:
        raise Unreadable(f"{op.name} with {', '.join(op.kwargs)}")
    return [_function(SEVERAL[op.name], op.args, index)]


def filled(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """An entry, or a number where a condition holds."""
    x, condition, number = op.args
    return [_function("where", (condition, number, x), index)]


def _function(name: str, arguments: Sequence[object], index: Indices) -> Term:
    """Raises Unreadable where there is a condition in the place of a number, or the other way around."""
    given: list[Leaf | tuple[Term, ...]] = []
    for position, argument in enumerate(arguments):
        is_condition = isinstance(argument, Value) and argument.dtype is torch.bool
        if is_condition != (name in LOGICAL.values() or (name == "where" and position == 0)):
            raise Unreadable(f"{name} of conditions and numbers")
        number = () if isinstance(argument, Value) else (times(Fraction(1), argument, index),)
        given.append(entry(argument, index) if isinstance(argument, Value) else number)
    return Term(factors=(Func(name, *given),))


def _named(name: str, op: Op, index: Indices) -> Term:
    return Term(factors=(Func(name, entry(op.args[0], index)),))


def glu(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """``a * sigmoid(b)`` of the two halves of a dimension."""
    source = op.args[0]
    dim = dimension(op.args[1] if len(op.args) > 1 else -1, source.rank)
    half = op.outputs[0].shape[dim]
    second = Leaf(source, (*index[:dim], index[dim].affine(1, half), *index[dim + 1 :]))
    return [Term(factors=(Leaf(source, index), Func("sigmoid", second)))]
