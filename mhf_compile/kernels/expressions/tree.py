"""Expressions as trees: variables, numbers and functions, and their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction


class Expression:
    """A number for each entry; sums and products of expressions are expressions."""

    def __add__(self, other: Expression | float) -> Expression:
        return _sum(self, as_expression(other))

    def __radd__(self, other: float) -> Expression:
        return _sum(as_expression(other), self)

    def __sub__(self, other: Expression | float) -> Expression:
        return _sum(self, _product(Number(Fraction(-1)), as_expression(other)))

    def __rsub__(self, other: float) -> Expression:
        return as_expression(other) - self

    def __mul__(self, other: Expression | float) -> Expression:
        return _product(self, as_expression(other))

    def __rmul__(self, other: float) -> Expression:
        return _product(as_expression(other), self)

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


# -- sums, products, functions ------------------------------------------------------------------------------


def call(function: str, *arguments: Expression, parameters: tuple[float, ...] = ()) -> Expression:
    """A function of expressions; a number where all of them are, and it is a sum or a product."""
    if function == "add":
        return _sum(*arguments)
    if function == "mul":
        return _product(*arguments)
    return Call(function, arguments, tuple(map(float, parameters)))


def as_expression(x: Expression | float) -> Expression:
    """An expression, or that of a number."""
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


# -- what is in an expression -------------------------------------------------------------------------------


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


def size(expression: Expression) -> int:
    """How many operations, variables and numbers an expression has when it is written out."""
    sizes: dict[Expression, int] = {}
    for node in walk(expression):
        sizes[node] = 1 + sum(sizes[a] for a in node.arguments) if isinstance(node, Call) else 1
    return sizes[expression]


def variables(expression: Expression) -> set[str]:
    """The names of what an expression is of."""
    return {node.name for node in walk(expression) if isinstance(node, Variable)}


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
