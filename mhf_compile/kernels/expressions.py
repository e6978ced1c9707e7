"""Elementwise functions of scores as expressions: their text, their values, and their gradients.

An expression is a tree of variables, numbers and the functions of :data:`FUNCTIONS`. Its text is Python's,
``gate * sigmoid(1.702 * gate)``, from which :func:`parse` makes the tree again. Its gradients are expressions
too, of what autograd computes: with the same values at kinks, and NaN and infinity where autograd has them.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 256
"""Operations of the largest expression that is read from a text."""


class Expression:
    """A number for each entry; sums and products of expressions are expressions."""

    def __add__(self, other: Expression | float) -> Expression:
        return _sum(self, _expression(other))

    def __radd__(self, other: float) -> Expression:
        return _sum(_expression(other), self)

    def __sub__(self, other: Expression | float) -> Expression:
        return _sum(self, _product(Number(Fraction(-1)), _expression(other)))

    def __rsub__(self, other: float) -> Expression:
        return _expression(other) - self

    def __mul__(self, other: Expression | float) -> Expression:
        return _product(self, _expression(other))

    def __rmul__(self, other: float) -> Expression:
        return _product(_expression(other), self)

    def __truediv__(self, other: Expression | Fraction | float) -> Expression:
        if not isinstance(other, Expression):
            return self * Number(1 / Fraction(other))
        return self * call("reciprocal", other)

    def __neg__(self) -> Expression:
        return _product(Number(Fraction(-1)), self)


@dataclass(frozen=True)
class Variable(Expression):
    """What an expression is of, such as ``gate``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Number(Expression):
    """The same number for each entry."""

    value: Fraction

    def __str__(self) -> str:
        above, below = quotient(self.value)
        return _text(above) if below == 1 else f"{_text(above)} / {_text(below)}"


@dataclass(frozen=True)
class Call(Expression):
    """A function of expressions, and of numbers that are its parameters."""

    function: str
    arguments: tuple[Expression, ...]
    parameters: tuple[float, ...] = ()

    def __str__(self) -> str:
        match self.function, self.arguments:
            case "add", (left, Call("mul", (Number(value), right))) if value < 0:
                return f"{left} - {_factor(Number(-value) * right)}"
            case "add", (left, Number(value)) if value < 0:
                return f"{left} - {Number(-value)}"
            case "add", (left, right):
                return f"{left} + {_factor(right) if _is_sum(right) else right}"
            case "mul", (Number(Fraction(numerator=-1, denominator=1)), right):
                return f"-{_operand(right)}"
            case "mul", (Number(value), right) if quotient(value)[0] == 1:
                return f"{_factor(right)} / {_text(quotient(value)[1])}"
            case "mul", (left, Call("reciprocal", (below,))):
                return f"{_factor(left)} / {_operand(below)}"
            case "mul", (left, right):
                return f"{_factor(left)} * {_operand(right)}"
            case "reciprocal", (below,):
                return f"1 / {_operand(below)}"
        given = [*map(str, self.arguments), *map(_text, self.parameters)]
        return f"{self.function}({', '.join(given)})"


def _text(number: float) -> str:
    return repr(float(number)).removesuffix(".0")


def quotient(value: Fraction) -> tuple[float, float]:
    """Two numbers of which a fraction is the quotient; the second is 1 where the fraction is a float.

    Where there are no such floats, the fraction is rounded.
    """
    for above, below in (
        (value, Fraction(1)),
        (Fraction(1), 1 / value if value else value),
        value.as_integer_ratio(),
    ):
        if Fraction(float(above)) == above and below and Fraction(float(below)) == below:
            return float(above), float(below)
    return float(value), 1.0


def _is_sum(expression: Expression) -> bool:
    return isinstance(expression, Call) and expression.function == "add"


def _factor(expression: Expression) -> str:
    """The text of the first factor of a product."""
    return f"({expression})" if _is_sum(expression) else str(expression)


def _operand(expression: Expression) -> str:
    """The text of a later factor, or of a divisor."""
    text = str(expression)
    is_product = isinstance(expression, Call) and expression.function in ("add", "mul", "reciprocal")
    return f"({text})" if is_product or text.startswith("-") or " / " in text else text


# -- the functions ------------------------------------------------------------------------------------------

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
        parameters: the number of parameters.
        is_special: whether it takes an instruction of the unit for special functions, at least.
    """

    evaluate: Callable[..., Tensor]
    backward: Backward | None = None
    definition: Definition | None = None
    arguments: int = 1
    parameters: int = 0
    is_special: bool = False


def call(function: str, *arguments: Expression, parameters: tuple[float, ...] = ()) -> Expression:
    """A function of expressions; a number where all of them are, and it is a sum or a product."""
    if function == "add":
        return _sum(*arguments)
    if function == "mul":
        return _product(*arguments)
    return Call(function, arguments, tuple(map(float, parameters)))


def _expression(x: Expression | float) -> Expression:
    return x if isinstance(x, Expression) else Number(Fraction(x))


def _sum(a: Expression, b: Expression) -> Expression:
    match a, b:
        case Number(x), Number(y):
            return Number(x + y)
        case (Number(Fraction(numerator=0)), other) | (other, Number(Fraction(numerator=0))):
            return other
    return Call("add", (b, a) if isinstance(a, Number) else (a, b))


def _product(a: Expression, b: Expression) -> Expression:
    """A product; a number stands first, and 1 is left out, but not what is multiplied by 0."""
    match a, b:
        case Number(x), Number(y):
            return Number(x * y)
        case (Number(Fraction(numerator=1, denominator=1)), other) | (
            other,
            Number(Fraction(numerator=1, denominator=1)),
        ):
            return other
        case Number(Fraction(numerator=-1, denominator=1)), Call("mul", (Number(x), other)):
            return _product(Number(-x), other)
    return Call("mul", (b, a) if isinstance(b, Number) else (a, b))


def where(condition: Expression, a: Expression | float, b: Expression | float) -> Expression:
    """``a`` where a condition holds, else ``b``."""
    return Call("where", (condition, _expression(a), _expression(b)))


def _compare(name: str) -> Callable[[Expression, Expression | float], Expression]:
    return lambda a, b: Call(name, (a, _expression(b)))


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
    return lambda *arguments: Call(name, tuple(map(_expression, arguments)))


_exp, _sigmoid, _tanh, _erf, _abs, _log1p, _expm1, _rsqrt = map(
    _f, ("exp", "sigmoid", "tanh", "erf", "abs", "log1p", "expm1", "rsqrt")
)


def _part(function: Callable[..., Tensor], backward: Definition, is_special: bool = True) -> Function:
    """A function of one argument that kernels have, with its gradient: of (grad, result, argument)."""
    return Function(function, lambda g, y, x: (backward(g, y, x),), is_special=is_special)


def _defined(function: Callable[..., Tensor], definition: Definition, parameters: int = 0) -> Function:
    """One whose gradient is that of its definition."""
    return Function(function, None, definition, 1, parameters)


def _kinked(
    function: Callable[..., Tensor], definition: Definition, backward: Definition, parameters: int = 0
) -> Function:
    """One with a gradient of its own: of (grad, argument, parameters)."""
    return Function(function, lambda g, y, x, *p: (backward(g, x, *p),), definition, 1, parameters)


def _comparison(function: Callable[..., Tensor]) -> Function:
    return Function(function, lambda g, y, a, b: (), arguments=2)


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
    **{name: _comparison(getattr(torch, name)) for name in ("gt", "ge", "lt", "le", "eq")},
    "both": _comparison(torch.logical_and),
    "where": Function(
        torch.where, lambda g, y, c, a, b: (Number(Fraction(0)), where(c, g, 0), where(c, 0, g)), arguments=3
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

# -- text ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """The expression of a text. Raises ValueError with what is wrong."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"found {text!r}, want an expression such as gate * sigmoid(gate)") from error
    expression = _parsed(tree)
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
            return -_parsed(operand)
        case ast.BinOp(left, ast.Add(), right):
            return _parsed(left) + _parsed(right)
        case ast.BinOp(left, ast.Sub(), right):
            return _parsed(left) - _parsed(right)
        case ast.BinOp(left, ast.Mult(), right):
            return _parsed(left) * _parsed(right)
        case ast.BinOp(left, ast.Div(), right):
            below = _parsed(right)
            return _parsed(left) / (below.value if isinstance(below, Number) and below.value else below)
        case ast.Call(ast.Name(name), given, []) if name in FUNCTIONS:
            row = FUNCTIONS[name]
            if len(given) != row.arguments + row.parameters:
                want = f"{row.arguments} arguments and {row.parameters} numbers"
                raise ValueError(f"found {name} of {len(given)}, want {want}")
            numbers = tuple(map(_number, given[row.arguments :]))
            return call(name, *map(_parsed, given[: row.arguments]), parameters=numbers)
    raise ValueError(f"found {ast.unparse(tree)}, want sums, products and {', '.join(sorted(FUNCTIONS))}")


def _number(tree: ast.expr) -> float:
    """A parameter, which may be ``inf``."""
    text = ast.unparse(tree)
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"found the parameter {text}, want a number") from error


def walk(expression: Expression) -> Iterator[Expression]:
    """An expression and all in it, what is in several places once, each after its arguments."""
    seen: set[Expression] = set()
    pending = [(expression, False)]
    while pending:
        node, ready = pending.pop()
        if node in seen:
            continue
        if ready or not isinstance(node, Call):
            seen.add(node)
            yield node
        else:
            pending += [(node, True), *((argument, False) for argument in node.arguments[::-1])]


def variables(expression: Expression) -> set[str]:
    """The names of what an expression is of."""
    return {node.name for node in walk(expression) if isinstance(node, Variable)}


# -- values -------------------------------------------------------------------------------------------------


def evaluate(expression: Expression, given: Mapping[str, Tensor]) -> Tensor:
    """An expression in ATen, of the tensors of its variables.

    Raises:
        KeyError: a variable is not given.
    """
    return evaluate_all([expression], given)[0]


def evaluate_all(expressions: list[Expression], given: Mapping[str, Tensor]) -> list[Tensor]:
    """Several expressions; what they share is computed once, and kept no longer than it is needed."""
    like = next(iter(given.values()))
    uses: dict[Expression, int] = {}
    order: dict[Expression, None] = {}
    for expression in expressions:
        for node in walk(expression):
            if node not in order:
                order[node] = None
                for argument in node.arguments if isinstance(node, Call) else ():
                    uses[argument] = uses.get(argument, 0) + 1
    for expression in expressions:
        uses[expression] = uses.get(expression, 0) + 1
    values: dict[Expression, Tensor | Fraction] = {}
    for node in order:
        if isinstance(node, Call):
            inputs = [values[argument] for argument in node.arguments]
            values[node] = _evaluated(node, inputs, like)
            for argument in node.arguments:
                uses[argument] -= 1
                if not uses[argument]:
                    del values[argument]
        else:
            values[node] = given[node.name] if isinstance(node, Variable) else _value(node)
    return [_filled(values[expression], like) for expression in expressions]


def _filled(value: Tensor | Fraction, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full_like(like, float(value))


def _value(node: Expression) -> Fraction:
    assert isinstance(node, Number)
    return node.value


def _evaluated(node: Call, inputs: list[Tensor | Fraction], like: Tensor) -> Tensor:
    """A call; products and sums with numbers are those of PyTorch with a number, as are quotients."""
    match node.function, inputs:
        case "mul", [Fraction() as value, Tensor() as x]:
            above, below = quotient(value)
            product = x if above == 1 else x * above
            return product if below == 1 else product / below
        case "add", [Tensor() as x, Fraction() as value]:
            return x + float(value)
        case (("gt" | "ge" | "lt" | "le" | "eq"), [Tensor() as x, Fraction() as value]):
            return FUNCTIONS[node.function].evaluate(x, float(value))
    return FUNCTIONS[node.function].evaluate(*(_filled(x, like) for x in inputs), *node.parameters)


# -- gradients ----------------------------------------------------------------------------------------------

GRADIENT = Variable("gradient")
"""That of the value of an expression, in its gradients."""


@lru_cache(maxsize=1024)
def gradients(expression: Expression, names: tuple[str, ...]) -> tuple[Expression, ...]:
    """The gradient of each variable, in terms of the variables and of GRADIENT; 0 where there is none."""
    found: dict[Expression, Expression] = {expression: GRADIENT}
    for node in reversed(list(walk(expression))):
        if not isinstance(node, Call) or node not in found:
            continue
        for argument, gradient in zip(node.arguments, _backward(node, found[node]), strict=False):
            if variables(argument) and gradient != Number(Fraction(0)):
                found[argument] = found[argument] + gradient if argument in found else gradient
    return tuple(found.get(Variable(name), Number(Fraction(0))) for name in names)


def _backward(node: Call, gradient: Expression) -> tuple[Expression, ...]:
    """The gradients of the arguments of a call."""
    row = FUNCTIONS[node.function]
    if row.backward is not None:
        return row.backward(gradient, node, *node.arguments, *node.parameters)
    assert row.definition is not None and row.arguments == 1
    x = Variable("x")
    (slope,) = gradients(row.definition(x, *node.parameters), ("x",))
    return (substitute(slope, {x: node.arguments[0], GRADIENT: gradient}),)


def substitute(expression: Expression, given: Mapping[Expression, Expression]) -> Expression:
    """An expression with others in the place of some in it."""
    done: dict[Expression, Expression] = {}
    for node in walk(expression):
        if node in given:
            done[node] = given[node]
        elif isinstance(node, Call):
            arguments = (done[argument] for argument in node.arguments)
            done[node] = call(node.function, *arguments, parameters=node.parameters)
        else:
            done[node] = node
    return done[expression]


# -- programs -----------------------------------------------------------------------------------------------


def lowered(expression: Expression) -> Expression:
    """An expression of functions that have no definition by others: those that kernels have."""
    done: dict[Expression, Expression] = {}
    for node in walk(expression):
        done[node] = node
        if isinstance(node, Call):
            arguments = [done[argument] for argument in node.arguments]
            definition = FUNCTIONS[node.function].definition
            if definition is not None:
                done[node] = lowered(definition(*arguments, *node.parameters))
            else:
                done[node] = call(node.function, *arguments, parameters=node.parameters)
    return done[expression]


@lru_cache(maxsize=1024)
def program(expressions: tuple[Expression, ...], names: tuple[str, ...]) -> str:
    """Expressions as one line of steps, each of which names a function and the steps that it is of.

    The first steps are the variables, in the order of their names, and are not written; the last are the
    expressions: ``sigmoid 0; mul 0 1; same 2``. A step is a number, ``number 1.702``, or a function's.
    """
    place: dict[Expression, int] = {Variable(name): i for i, name in enumerate(names)}
    steps: list[str] = []
    for expression in map(lowered, expressions):
        for node in walk(expression):
            if node in place:
                continue
            place[node] = len(names) + len(steps)
            if isinstance(node, Call):
                steps.append(" ".join([node.function, *(str(place[a]) for a in node.arguments)]))
            else:
                steps.append(f"number {float(_value(node))!r}")
    steps += [f"same {place[lowered(expression)]}" for expression in expressions]
    return "; ".join(steps)


def special(expressions: tuple[Expression, ...]) -> int:
    """How many special functions expressions take for each entry, what they share once."""
    nodes = {node for expression in expressions for node in walk(lowered(expression))}
    return sum(isinstance(node, Call) and FUNCTIONS[node.function].is_special for node in nodes)
