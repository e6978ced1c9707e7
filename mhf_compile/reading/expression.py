"""Expressions in one entry, and the activations that they are.

An expression is known by what it computes: it is evaluated, and its slope, and compared with each function
that the op knows by name. So no spelling is named here; one that is none of them keeps its text as its name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch

from mhf_compile.kernels.activations import ACTIVATIONS, GATE
from mhf_compile.kernels.expressions import (
    FUNCTIONS,
    Call,
    Expression,
    Number,
    Variable,
    call,
    evaluate,
    parse,
    substitute,
    variables,
    walk,
)
from mhf_compile.notation import ONE

KNOWN = frozenset(["exp", "erf", "erfc", "tanh", "reciprocal", *ACTIVATIONS])
"""Functions of which activations with a name may be spelled: those of whose laws the proof knows."""

X = GATE
"""The entry that an expression depends on."""


def functions(expression: Expression) -> set[str]:
    """The functions that an expression is made of, but for sums and products."""
    return {node.function for node in _calls(expression)}


def _calls(expression: Expression) -> Iterator[Call]:
    return (n for n in walk(expression) if isinstance(n, Call) and n.function not in ("add", "mul"))


def varies(expression: Expression) -> bool:
    """Whether an expression depends on the entry at all."""
    return bool(variables(expression))


def differentiable(expression: Expression) -> set[str]:
    """The names of what an expression depends on otherwise than by conditions."""
    match expression:
        case Variable(name):
            return {name}
        case Call(function, arguments) if not FUNCTIONS[function].is_condition:
            conditions = FUNCTIONS[function].conditions
            numbers = (a for place, a in enumerate(arguments) if place not in conditions)
            return set().union(*map(differentiable, numbers))
    return set()


def of_function(name: str, *arguments: Expression) -> Expression:
    """A function by the name that its rule gives it, parameters and all: ``clamp(-inf, 7)``."""
    function, _, given = name.partition("(")
    parameters = tuple(map(float, given.removesuffix(")").split(", "))) if given else ()
    return call(function, *arguments, parameters=parameters)


def _content(expression: Expression) -> tuple[Fraction, Expression]:
    """A number and an expression of which it is the product, whatever factors the program put where."""
    match expression:
        case Number(value):
            return value, Number(ONE)
        case Call("mul", (a, b)):
            (x, left), (y, right) = _content(a), _content(b)
            return x * y, left * right
        case Call("add", (a, b)):
            (x, left), (y, right) = _content(a), _content(b)
            return (x, left + Number(y / x) * right) if x else (y, right)
    return ONE, expression


def scaled(text: str, variable: Variable, scale: Fraction) -> str:
    """The text of an expression of a variable times a number, by that of one of the variable."""
    return text if scale == 1 else str(substitute(parse(text), {variable: Number(scale) * variable}))


def is_joint(expression: Expression) -> bool:
    """Whether an expression is no sum of functions of one entry, each by itself or times another entry.

    The other one may have a number added to it, as it may in a score.
    """
    both = [part for part in _summands(expression) if len(variables(part)) > 1]
    return len(both) > 1 or any(map(_is_entangled, both))


def _is_entangled(product: Expression) -> bool:
    """Whether a product of functions of entries is more than a function of some times another one."""
    factors = _factors(product)
    if any(len(variables(factor)) > 1 for factor in factors):
        return True
    for name in variables(product):
        match [factor for factor in factors if name in variables(factor)]:
            case [factor] if is_linear(factor):
                return False
    return True


def is_linear(expression: Expression) -> bool:
    """Whether an expression of one entry is a number times it, with a number added."""
    return not functions(expression) and len(_coefficients(expression)) <= 2


def _summands(expression: Expression) -> list[Expression]:
    """What an expression adds up, be the sum multiplied by a number or not."""
    match expression:
        case Call("add", (a, b)) | Call("mul", (Number(), Call("add", (a, b)))):
            return [*_summands(a), *_summands(b)]
    return [expression]


def _factors(expression: Expression) -> list[Expression]:
    """What an expression is the product of."""
    match expression:
        case Call("mul", (a, b)):
            return [*_factors(a), *_factors(b)]
    return [expression]


def curvature(expression: Expression, variable: Variable) -> int:
    """The number of functions of a variable alone in an expression."""
    return sum(variables(node) == {variable.name} for node in _calls(expression))


@dataclass(frozen=True)
class Known:
    """An activation that the op knows: ``factor * name(scale * x)``."""

    name: str
    factor: Fraction = ONE
    scale: Fraction = ONE


@lru_cache(maxsize=4096)
def identify(expression: Expression) -> Known | None:
    """The activation that an expression is; None where it is none.

    ``x * sigmoid(1.702 * x)`` is a silu of ``1.702 * x``, divided by 1.702. ``clamp(x, min=0)`` is no relu:
    its slope at zero is 1. Nor is ``relu(x) - relu(x - 100)``.

    Decided is: values and slopes agree wherever the expression is finite, up to the rounding of some 100
    operations in float64. They are compared on a grid between -6 and 6, at powers of two up to 2**340, and at
    all distances from each point where a function in the expression may change: the roots and the extrema of
    its argument. Those of a polynomial are all found; of an argument with functions in it, roots are at which
    its sign changes between two of the other points. More than 128 from zero, slopes are compared at these
    points only. Where the expression overflows, more than 6 from zero, nothing is decided: eager has no value
    there.
    """
    content, expression = _content(expression)
    if not content or not functions(expression) <= KNOWN:
        return None
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        try:
            points, sloped = _points(expression)
            x = points.requires_grad_()
            found = _with_slope(_at(expression, x), x)
        except OverflowError:
            return None
        size = x.detach().abs()
        near = size <= 6
        if not found[:, near].isfinite().all():
            return None
        # Far out, eager may overflow where the op does not, and parts of its slope underflow.
        seen = found.isfinite().all(0) & torch.stack([torch.ones_like(sloped), sloped])
        inside, added = (
            100 * torch.finfo(torch.float64).eps * m for m in _magnitudes(expression, x.detach())
        )
        for scale, (name, activation) in itertools.product(_scales(expression), ACTIVATIONS.items()):
            wanted = _with_slope(activation.function(float(scale) * x), x)
            largest = (wanted[0].abs() * near).argmax()
            ratio = float(found[0][largest] / wanted[0][largest]) * float(scale)
            factor = Fraction(ratio).limit_denominator(64) / scale if math.isfinite(ratio) else Fraction(0)
            difference = (found - float(factor) * wanted).abs()
            slack = added + inside * max(1, abs(float(factor)))
            if factor and bool((difference <= slack)[seen].all()):
                return Known(name, factor * content, scale)
    return None


def _magnitudes(expression: Expression, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How large the numbers are at points in an activation, and that an expression adds up.

    The latter are those of the value and those of the slope.
    """
    size, added = x.abs(), _added(expression, x)
    inside = 1 + size.clamp(max=90) ** 3  # what a cube in an activation is, until the activation is flat
    return inside, torch.stack([added, added / size.clamp(min=1)])


def _at(expression: Expression, x: torch.Tensor) -> torch.Tensor:
    return evaluate(expression, {X.name: x})


def _added(expression: Expression, x: torch.Tensor) -> torch.Tensor:
    """What the sizes of all that an expression adds up come to."""
    match expression:
        case Call("add", (a, b)):
            return _added(a, x) + _added(b, x)
        case Call("mul", (a, b)):
            return _added(a, x) * _added(b, x)
    return _at(expression, x).abs()


def _points(expression: Expression) -> tuple[torch.Tensor, torch.Tensor]:
    """Points to compare an expression with functions at, and at which of them to compare slopes as well."""
    grid = torch.linspace(-6, 6, 49, dtype=torch.float64, device="cpu")
    powers = [*(3 + quarter / 4 for quarter in range(16)), *range(7, 341)]
    far = 2 ** torch.tensor(powers, dtype=torch.float64, device="cpu")
    points = torch.cat([grid, grid * 0.9173, far, -far])
    changes = _changes(expression, points)
    points = torch.cat([points, _around(changes)])
    return points, (points.abs() <= 128) | torch.isin(points, changes)


def _around(centres: torch.Tensor) -> torch.Tensor:
    """Points at all distances from some, and these themselves."""
    steps = 2 ** torch.arange(-30, 31, dtype=torch.float64, device="cpu")
    near = centres[:, None] + torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), steps, -steps])
    far = centres[:, None] * (1 + torch.cat([1 / steps[30:], -1 / steps[30:]]))
    return torch.cat([near.flatten(), far.flatten()]).clamp(-(2.0**1000), 2.0**1000)


def _changes(expression: Expression, points: torch.Tensor) -> torch.Tensor:
    """Where functions in an expression may change: the roots and extrema of their arguments."""
    found = [torch.zeros(1, dtype=torch.float64, device="cpu")]
    for argument in {argument for node in _calls(expression) for argument in node.arguments}:
        inner = _changes(argument, points)
        found.append(inner)
        if functions(argument):
            found.append(_sign_changes(argument, torch.cat([points, _around(inner)]).sort().values))
        else:
            coefficients = _polynomial(argument)
            slopes = [degree * c for degree, c in enumerate(coefficients)][1:]
            found += [_roots(coefficients), _roots(slopes)]
    changes: torch.Tensor = torch.cat(found).unique()
    return changes


def _polynomial(expression: Expression) -> list[float]:
    """The coefficients of an expression without functions, of the lowest power first."""
    powers = _coefficients(expression)
    while powers and not powers[-1]:
        powers.pop()
    return [float(power) for power in powers]


def _coefficients(expression: Expression) -> list[Fraction]:
    match expression:
        case Number(value):
            return [value]
        case Call("add", (a, b)):
            left, right = _coefficients(a), _coefficients(b)
            return [x + y for x, y in itertools.zip_longest(left, right, fillvalue=Fraction(0))]
        case Call("mul", (a, b)):
            left, right = _coefficients(a), _coefficients(b)
            product = [Fraction(0)] * (len(left) + len(right) - 1)
            for (i, x), (j, y) in itertools.product(enumerate(left), enumerate(right)):
                product[i + j] += x * y
            return product
    return [Fraction(0), ONE]


def _roots(coefficients: list[float]) -> torch.Tensor:
    """The roots of a polynomial, and the real parts of those that are complex."""
    monic = torch.tensor(coefficients[:-1], dtype=torch.float64, device="cpu") / (coefficients or [1.0])[-1]
    monic = monic[: len(monic) * bool(monic.isfinite().all())]  # a root past all numbers is none
    companion = torch.diag(torch.ones(max(len(monic) - 1, 0), dtype=torch.float64, device="cpu"), -1)
    if len(monic):
        companion[:, -1] = -monic
    return torch.linalg.eigvals(companion).real if len(monic) else monic


def _sign_changes(expression: Expression, points: torch.Tensor) -> torch.Tensor:
    """Where an expression changes its sign between neighbours among sorted points."""
    negative = _at(expression, points) < 0
    changes = negative[1:] != negative[:-1]
    low, high, below = points[:-1][changes], points[1:][changes], negative[:-1][changes]
    for _ in range(60):
        middle = low / 2 + high / 2
        same = (_at(expression, middle) < 0) == below
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return high


def _with_slope(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    (slope,) = torch.autograd.grad(y.sum(), x, allow_unused=True)
    return torch.stack([y.detach(), torch.zeros_like(x) if slope is None else slope])


def _scales(expression: Expression) -> list[Fraction]:
    """The factors that x stands with in an expression's functions, after 1."""
    scales = [ONE]
    for argument in (argument for node in _calls(expression) for argument in node.arguments):
        scale, rest = _content(argument)
        if rest == X and abs(scale) not in scales:
            scales.append(abs(scale))
    return scales
