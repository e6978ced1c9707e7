"""What is computed of expressions: values in ATen, gradients, and programs for kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from mhf_compile.kernels.expressions.functions import FUNCTIONS
from mhf_compile.kernels.expressions.tree import (
    Call,
    Expression,
    Number,
    Variable,
    call,
    quotient,
    substitute,
    variables,
    walk,
)

# -- values -------------------------------------------------------------------------------------------------


def evaluate(expression: Expression, given: Mapping[str, Tensor]) -> Tensor:
    """An expression in ATen, of the tensors of its variables.

    Raises:
        KeyError: a variable is not given.
    """
    return evaluate_all([expression], given)[0]


def evaluate_all(expressions: Sequence[Expression], given: Mapping[str, Tensor]) -> list[Tensor]:
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
        case (("gt" | "ge" | "lt" | "le" | "eq" | "ne"), [Tensor() as x, Fraction() as value]):
            return FUNCTIONS[node.function].evaluate(x, float(value))
        case "where", [Tensor() as condition, a, b] if isinstance(a, Tensor) or isinstance(b, Tensor):
            chosen = (x if isinstance(x, Tensor) else float(x) for x in (a, b))
            return FUNCTIONS[node.function].evaluate(condition, *chosen)
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
