"""An activation is known by what it computes, however it is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mhf_compile.kernels.activations import ACTIVATIONS
from mhf_compile.notation import ONE, Func, Leaf, Term
from mhf_compile.reading.activations import Activations
from mhf_compile.reading.expression import Known
from mhf_compile.reading.reader import Reader, entry_axes
from mhf_compile.tape.recorder import record_function
from mhf_compile.tape.values import Value

Function = Callable[..., Tensor]


def anchors(function: Function, *shapes: tuple[int, ...]) -> tuple[Activations, list[Value], Value]:
    tape, inputs, result = record_function(function, *shapes)
    return Activations(tape), inputs, result


def names(function: Function, *shapes: tuple[int, ...]) -> list[str]:
    """The functions of a program's anchors."""
    return list(anchors(function, *shapes)[0].anchors.values())


def read(activations: Activations, anchor: Value) -> tuple[Func, Term]:
    """The function of an anchor, and the product that it stands in."""
    (term,) = activations.read(Reader(), Leaf(anchor, entry_axes(anchor)))
    (function,) = (factor for factor in term.factors if isinstance(factor, Func))
    assert term.bound == () and activations.anchors[anchor] == function.name
    return function, term


def known(function: Function) -> Known:
    """What a function of one tensor is, its last operation being its only anchor."""
    activations, (x,), result = anchors(function, (2, 3))
    assert list(activations.anchors) == [result]
    found, term = read(activations, result)
    ((scale, (leaf,)),) = ((inner.coefficient, inner.factors) for inner in found.terms)
    assert term.factors == (found,) and isinstance(leaf, Leaf) and leaf.value is x
    return Known(found.name, term.coefficient, scale)


# -- which function it is -----------------------------------------------------------------------------------

ROOT = math.sqrt(2 / math.pi)


def cubic(x: Tensor) -> Tensor:
    """The argument of the tanh of gelu."""
    return ROOT * (x + 0.044715 * x**3)


SPELLINGS: dict[str, dict[str, Function]] = {
    "silu": {
        "x * sigmoid(x)": lambda x: x * torch.sigmoid(x),
        "x / (1 + exp(-x))": lambda x: x / (1 + torch.exp(-x)),
        "x * exp(x) / (1 + exp(x))": lambda x: x * torch.exp(x) / (1 + torch.exp(x)),
        "by tanh": lambda x: 0.5 * x * (1 + torch.tanh(0.5 * x)),
        "by tanh, multiplied out": lambda x: 0.5 * x + 0.5 * x * torch.tanh(x / 2),
        "x - x * sigmoid(-x)": lambda x: x - x * torch.sigmoid(-x),
    },
    "sigmoid": {
        "sigmoid": torch.sigmoid,
        "expit": torch.special.expit,
        "1 / (1 + exp(-x))": lambda x: 1 / (1 + torch.exp(-x)),
        "reciprocal": lambda x: (1 + torch.exp(-x)).reciprocal(),
        "exp(x) / (1 + exp(x))": lambda x: torch.exp(x) / (1 + torch.exp(x)),
        "by tanh": lambda x: 0.5 * torch.tanh(0.5 * x) + 0.5,
        "1 - sigmoid(-x)": lambda x: 1 - torch.sigmoid(-x),
    },
    "gelu": {
        "gelu": F.gelu,
        "erf": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "erf times the root of a half": lambda x: 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5))),
        "erf of a literal": lambda x: 0.5 * x * (1 + torch.erf(x * 0.7071067811865476)),
        "erf of another literal": lambda x: x * (0.5 * (1 + torch.erf(x / 1.4142135623730951))),
        "erf, multiplied out": lambda x: 0.5 * x + 0.5 * x * torch.erf(x * 2**-0.5),
        "erf of -x": lambda x: 0.5 * x * (1 - torch.erf(-x / 2**0.5)),
        "erfc of -x": lambda x: 0.5 * x * torch.erfc(-x * 2**-0.5),
        "erfc of x": lambda x: x * (1 - 0.5 * torch.erfc(x * 2**-0.5)),
        "x * ndtr(x)": lambda x: x * torch.special.ndtr(x),
    },
    "gelu_tanh": {
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
        "tanh": lambda x: 0.5 * x * (1 + torch.tanh(cubic(x))),
        "tanh, a power of 3.0": lambda x: (
            0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0))))
        ),
        "tanh, x taken out": lambda x: 0.5 * x * (1 + torch.tanh(ROOT * x * (1 + 0.044715 * x * x))),
        "sigmoid": lambda x: x * torch.sigmoid(2 * cubic(x)),
        "sigmoid of a literal": lambda x: x * torch.sigmoid(1.5957691216057308 * (x + 0.044715 * x**3)),
        "exp": lambda x: x / (1 + torch.exp(-2 * ROOT * (x + 0.044715 * x**3))),
        "exp of a multiple": lambda x: x / (1 + torch.exp(-2 * cubic(x))),
    },
    "relu": {
        "relu": F.relu,
        "relu_": lambda x: x.clone().relu_(),
        "the module": torch.nn.ReLU(),
        "twice a half": lambda x: 0.5 * (2 * F.relu(x)),
    },
    "relu_squared": {
        "square": lambda x: F.relu(x).square(),
        "power": lambda x: F.relu(x) ** 2,
        "relu(x) * relu(x)": lambda x: F.relu(x) * F.relu(x),
        "x * relu(x)": lambda x: x * F.relu(x),
    },
}
ALL = [(name, spelling) for name, spellings in SPELLINGS.items() for spelling in spellings]

POINTS = torch.linspace(-4, 4, 33, dtype=torch.float64)
"""Zero among them, where kinks are."""

ROUNDING = 100 * torch.finfo(torch.float64).eps * (1 + 4**3)
"""Of some 100 operations on numbers below 1 + abs(x)**3."""


def with_slope(function: Function) -> Tensor:
    x = POINTS.clone().requires_grad_()
    y = function(x)
    return torch.stack([y.detach(), *torch.autograd.grad(y.sum(), x)])


def check(function: Function, found: Known) -> None:
    """A function has the values and slopes of what it was taken for."""

    def wanted(x: Tensor) -> Tensor:
        return float(found.factor) * ACTIVATIONS[found.name].function(float(found.scale) * x)

    torch.testing.assert_close(with_slope(function), with_slope(wanted), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("name", "spelling"), ALL)
def test_a_spelling_is_known_by_what_it_computes(name: str, spelling: str) -> None:
    function = SPELLINGS[name][spelling]
    assert known(function) == Known(name)
    check(function, Known(name))


QUICK = Fraction(1.702)

SCALED: dict[str, tuple[Function, Known]] = {
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), Known("silu", 1 / QUICK, QUICK)),
    "quick gelu by exp": (lambda x: x / (1 + torch.exp(-1.702 * x)), Known("silu", 1 / QUICK, QUICK)),
    "a sigmoid of a multiple": (
        lambda x: x * torch.sigmoid(2 * x),
        Known("silu", Fraction(1, 2), Fraction(2)),
    ),
    "an exponential of a multiple": (
        lambda x: x / (1 + torch.exp(-x / 2)),
        Known("silu", Fraction(2), Fraction(1, 2)),
    ),
    "an exponential of minus a multiple": (
        lambda x: x / (1 + torch.exp(-(2 * x))),
        Known("silu", Fraction(1, 2), Fraction(2)),
    ),
    "a factor before": (lambda x: x / 3 * torch.sigmoid(x), Known("silu", Fraction(1, 3))),
    "another sign": (lambda x: -x * torch.sigmoid(x), Known("silu", -ONE)),
    "a factor that is no short fraction": (
        lambda x: (0.3 * x) * torch.sigmoid(x),
        Known("silu", Fraction(0.3)),
    ),
    "a factor after relu": (lambda x: -3 * F.relu(x), Known("relu", Fraction(-3))),
}


@pytest.mark.parametrize("name", SCALED)
def test_factors_and_scales_are_exact(name: str) -> None:
    function, wanted = SCALED[name]
    assert known(function) == wanted
    check(function, wanted)


UNKNOWN: dict[str, Function] = {
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "where": lambda x: torch.where(x > 0, x, 0),
    "the mean of x and abs(x)": lambda x: (x + x.abs()) / 2,
    "leaky relu": lambda x: F.leaky_relu(x, 0.01),
    "leaky relu without a slope": lambda x: F.leaky_relu(x, 0.0),
    "relu6": F.relu6,
    "elu": F.elu,
    "mish": F.mish,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "tanh gelu, 0.0447": lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.0447 * x**3))),
    "tanh gelu, 0.79788456": lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x**3))),
    "gelu, the root of a half 1e-7 off": lambda x: 0.5 * x * (1 + torch.erf(x * (math.sqrt(0.5) + 1e-7))),
    "gelu, 1.4142": lambda x: 0.5 * x * (1 + torch.erf(x / 1.4142)),
    "gelu, a half 1e-7 off": lambda x: (0.5 + 1e-7) * x + 0.5 * x * torch.erf(x * 2**-0.5),
    "silu, exp 1e-7 off": lambda x: x / (1 + (1 + 1e-7) * torch.exp(-x)),
    "x / (1 + exp(x))": lambda x: x / (1 + torch.exp(x)),
    "x / (2 + exp(-x))": lambda x: x / (2 + torch.exp(-x)),
    "x / (1 - exp(-x))": lambda x: x / (1 - torch.exp(-x)),
    "x + sigmoid(x)": lambda x: x + torch.sigmoid(x),
    "x * sigmoid(-x)": lambda x: x * torch.sigmoid(-x),
    "x * sigmoid(x + 1)": lambda x: x * torch.sigmoid(x + 1),
    "sigmoid(x) ** 2": lambda x: torch.sigmoid(x) * torch.sigmoid(x),
    "x * sigmoid(x) ** 2": lambda x: x * torch.sigmoid(x) ** 2,
    "relu(x) ** 3": lambda x: F.relu(x) ** 3,
    "relu but for x < -8": lambda x: F.relu(x) - F.relu(-x - 8),
    "silu but for x > 8": lambda x: F.silu(x) + F.relu(x - 8),
    "x + relu(-x), whose slope at zero is 1": lambda x: x + F.relu(-x),
    "relu(x) - relu(-x), whose slope at zero is 0": lambda x: F.relu(x) - F.relu(-x),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_computes_something_else_is_no_known_activation(name: str) -> None:
    activations, _, result = anchors(UNKNOWN[name], (2, 3))
    assert activations.anchors.get(result) not in ACTIVATIONS


def test_what_the_op_does_not_know_keeps_its_text() -> None:
    assert names(torch.tanh, (2,)) == ["tanh(gate)"]
    assert names(lambda x: F.leaky_relu(x, 0.25), (2,)) == ["leaky_relu(gate, 0.25)"]
    assert names(lambda x: x * torch.tanh(F.softplus(x)), (2,)) == ["gate * tanh(softplus(gate, 1, 20))"]
    assert names(lambda x: x * torch.tanh(0.7978845608 * x), (2,)) == ["gate * tanh(0.7978845608 * gate)"]
    activations, (x,), result = anchors(torch.tanh, (2,))
    function, _ = read(activations, result)
    assert [leaf.value for term in function.terms for leaf in term.factors] == [x]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / F.relu(-x),
        lambda x: F.relu(-x) / F.relu(-x),
        lambda x: torch.sigmoid(x) * torch.exp(torch.exp(torch.exp(x))),
    ],
    ids=["a division by zero", "none by none", "an overflow"],
)
def test_what_is_not_finite_everywhere_is_no_known_activation(function: Function) -> None:
    assert ACTIVATIONS.keys().isdisjoint(names(function, (2,)))


# -- where it is --------------------------------------------------------------------------------------------

# Each is silu(x) of some entry, for x of shape (2, 3).
ARRANGEMENTS = {
    "silu": lambda x: F.silu(x),
    "silu in place": lambda x: F.silu(x.clone(), inplace=True),
    "x * sigmoid": lambda x: x * torch.sigmoid(x),
    "sigmoid * x": lambda x: torch.sigmoid(x) * x,
    "a product in place": lambda x: x.clone().mul_(torch.sigmoid(x)),
    "x / (1 + exp(-x))": lambda x: x / (1 + torch.exp(-x)),
    "x / (exp(-x) + 1)": lambda x: x / (torch.exp(-x) + 1),
    "x / (1 + exp(-1 * x))": lambda x: x / (1 + torch.exp(-1 * x)),
    "x * (1 / (1 + exp(-x)))": lambda x: x * (1 / (1 + torch.exp(-x))),
    "x * reciprocal": lambda x: x * (1 + torch.exp(-x)).reciprocal(),
    "exp(-x) in place": lambda x: x / x.neg().exp_().add_(1),
    "casts between": lambda x: x * torch.sigmoid(x.float().to(torch.bfloat16)).double(),
    "a cast before": lambda x: x.bfloat16().double() * torch.sigmoid(x.bfloat16().double()),
    "views between": lambda x: x.view(6) * torch.sigmoid(x).view(6),
    "a transposition between": lambda x: x.t() * torch.sigmoid(x.t()),
    "a transposition after": lambda x: (x.t() * torch.sigmoid(x).t()).t(),
    "a view inside": lambda x: x / (1 + torch.exp((-x).view(6)).view(2, 3)),
    "a negation of a view": lambda x: x / (1 + torch.exp(-x.view(6).view(2, 3))),
    "a copy": lambda x: x.clone() * torch.sigmoid(x.contiguous()),
    "x computed twice": lambda x: (2 * x) * torch.sigmoid(2 * x),
    "x computed twice by a product": lambda x: (x @ x.t()) * torch.sigmoid(x @ x.t()),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_silu_is_found_once_however_its_parts_are_arranged(name: str) -> None:
    activations, _, _ = anchors(ARRANGEMENTS[name], (2, 3))
    ((anchor, function),) = activations.anchors.items()
    assert function == "silu"
    factor, term = read(activations, anchor)
    assert term.coefficient == 1 and term.factors == (factor,)
    ((scale, (leaf,)),) = ((inner.coefficient, inner.factors) for inner in factor.terms)
    assert scale == 1 and isinstance(leaf, Leaf)


# Other factors come between the parts of the activation.
PRODUCTS = {
    "(x * up) * sigmoid(x)": lambda x, up: (x * up) * torch.sigmoid(x),
    "(sigmoid(x) * up) * x": lambda x, up: (torch.sigmoid(x) * up) * x,
    "(up * x) / (1 + exp(-x))": lambda x, up: (up * x) / (1 + torch.exp(-x)),
    "(up / (1 + exp(-x))) * x": lambda x, up: (up / (1 + torch.exp(-x))) * x,
    "(x * up * 2) * sigmoid(x)": lambda x, up: (up * (x * 2)).view(2, 3) * torch.sigmoid(x),
    "views of the product": lambda x, up: (x * up).view(6) * torch.sigmoid(x.view(6)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_other_factors_may_come_between(name: str) -> None:
    activations, (x, up), _ = anchors(PRODUCTS[name], (2, 3), (2, 3))
    ((anchor, _),) = activations.anchors.items()
    function, term = read(activations, anchor)
    assert function.name == "silu"
    assert term.coefficient == (2 if "2" in name else 1)
    assert [leaf.value for inner in function.terms for leaf in inner.factors] == [x]
    assert [f.value for f in term.factors if isinstance(f, Leaf)] == [up]


BETWEEN: dict[str, tuple[Function, str]] = {
    "gelu": (lambda x, up: (0.5 * x * up) * (1 + torch.erf(x * 2**-0.5)), "gelu"),
    "gelu_tanh": (lambda x, up: (1 + torch.tanh(cubic(x))) * up * (0.5 * x), "gelu_tanh"),
    "relu_squared": (lambda x, up: (F.relu(x) * up) * F.relu(x), "relu_squared"),
    "quick gelu": (lambda x, up: torch.sigmoid(1.702 * x) * up * x, "silu"),
    "sigmoid": (lambda x, up: up * (1 / (1 + torch.exp(-x))), "sigmoid"),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_other_factors_may_come_between_the_parts_of_any(name: str) -> None:
    program, wanted = BETWEEN[name]
    activations, (x, up), _ = anchors(program, (2, 3), (2, 3))
    ((anchor, found),) = activations.anchors.items()
    assert found == wanted
    function, term = read(activations, anchor)
    assert [leaf.value for inner in function.terms for leaf in inner.factors] == [x]
    assert {f.value for f in term.factors if isinstance(f, Leaf)} <= {up}


# No silu: a sigmoid, which is a gate of its own where the rest of a pattern is there.
SIGMOIDS: dict[str, Function] = {
    "of something else": lambda x, y: x * torch.sigmoid(y),
    "of another entry": lambda x, y: x * torch.sigmoid(x.flip(0)),
    "of a transposition": lambda x, y: x * torch.sigmoid(x.t()),
    "of a shifted slice": lambda x, y: x[1:] * torch.sigmoid(x[:-1]),
    "of x before a write": lambda x, y: (lambda s: x.clone().add_(y) * s)(torch.sigmoid(x)),
    "of other random numbers": lambda x, y: torch.rand_like(x) * torch.sigmoid(torch.rand_like(x)),
}


@pytest.mark.parametrize("name", SIGMOIDS)
def test_a_sigmoid_of_something_else_is_no_silu(name: str) -> None:
    activations, _, _ = anchors(SIGMOIDS[name], (2, 2), (2, 2))
    ((anchor, function),) = activations.anchors.items()
    assert function == "sigmoid" and anchor.op.name == "sigmoid"


def test_an_exponential_of_something_else_is_a_sigmoid_of_it() -> None:
    activations, (x, y), result = anchors(lambda x, y: x / (1 + torch.exp(-y)), (2, 2), (2, 2))
    assert activations.anchors == {result: "sigmoid"}
    function, term = read(activations, result)
    assert [leaf.value for inner in function.terms for leaf in inner.factors] == [y]
    assert [f.value for f in term.factors if isinstance(f, Leaf)] == [x]


def test_a_written_x_is_another_x() -> None:
    def function(x: Tensor) -> Tensor:
        x = x.clone()
        gate = torch.sigmoid(x)
        x.add_(1)
        return x * gate

    assert names(function, (2, 2)) == ["(gate + 1) * sigmoid(gate)"]


def test_a_routers_sigmoid_is_an_anchor_beside_the_activation() -> None:
    """What it is not is known only where the rest of a pattern is looked for."""

    def function(x: Tensor, w: Tensor, up: Tensor) -> Tensor:
        scores = torch.sigmoid(x @ w)
        scores = scores / (scores.sum(-1, keepdim=True) + 1e-6)
        return (F.silu(up) * scores).sum(-1)

    activations, (_, _, up), _ = anchors(function, (2, 3), (3, 4), (2, 4))
    assert sorted(activations.anchors.values()) == ["sigmoid", "silu"]
    (silu,) = (anchor for anchor, name in activations.anchors.items() if name == "silu")
    assert silu.op.args[0] is up


def test_a_product_of_two_scores_has_the_identity_for_an_activation() -> None:
    activations, _, result = anchors(lambda x, k, u: (x @ k) * (x @ u), (2, 3), (3, 4), (3, 4))
    assert activations.anchors == {result: "identity"}
    function, term = read(activations, result)
    assert function.name == "identity" and len(term.factors) == 2
    assert names(lambda x, k: (x @ k) * x.sum(), (2, 3), (3, 4)) == []
    assert names(lambda x, y: x * y, (2, 3), (2, 3)) == []


def test_a_long_product_of_sigmoids_is_no_error() -> None:
    def function(x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        for _ in range(16):
            y = y * (1 + y)
        return y

    assert set(names(function, (2,))).isdisjoint(ACTIVATIONS.keys() - {"sigmoid"})
