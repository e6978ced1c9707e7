"""Expressions: their text, their values and gradients against autograd, and what kernels run of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mhf_compile.kernels import expressions
from mhf_compile.kernels.activations import compiled_in, hidden_of
from mhf_compile.kernels.expressions import (
    FUNCTIONS,
    GRADIENT,
    Expression,
    Number,
    Variable,
    call,
    evaluate,
    gradients,
    lowered,
    parse,
    special,
)
from mhf_compile.kernels.flash_mhf import elementwise
from mhf_compile.kernels.ops import flash_mhf
from tests.fuzz.property import SUITE

PARAMETERS = {
    "clamp": ("-3, 3", "-inf, 2", "-2, inf"),
    "hardtanh": ("-1, 1",),
    "softplus": ("1, 20", "2, 3"),
    "leaky_relu": ("0.2",),
    "elu": ("1, 1, 1", "1.5, 2, 0.5"),
    "threshold": ("0.5, 3",),
    "softshrink": ("0.5",),
    "hardshrink": ("0.5",),
}
"""Of each function with parameters, some."""

TEXTS = [
    f"{name}(gate{', ' * bool(given)}{given})"
    for name, row in FUNCTIONS.items()
    if row.arguments == 1 and not row.is_condition
    for given in PARAMETERS.get(name, ("",))
]
KINKS = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 20.0, 1.5]
FAR = [25.0, -25.0, 1e4, -1e4, math.inf, -math.inf, math.nan]


def points(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.cat([torch.linspace(-8, 8, 321, dtype=dtype), torch.tensor(KINKS + FAR, dtype=dtype)])


def close(a: Tensor, b: Tensor, units: float = 64) -> bool:
    """Whether numbers are the same up to so many units in the last place, those of 1 at least; and NaN."""
    slack = units * torch.finfo(a.dtype).eps
    return torch.allclose(a, b, rtol=slack, atol=slack, equal_nan=True)


@pytest.mark.parametrize("text", TEXTS)
def test_a_function_is_its_definition_and_its_gradient_autograd_s(text: str) -> None:
    """At kinks, at infinity and NaN as well."""
    expression, x = parse(text), points()
    value = evaluate(expression, {"gate": x})
    assert close(evaluate(lowered(expression), {"gate": x}), value)
    incoming = torch.linspace(-2, 2, len(x), dtype=x.dtype)
    (gradient,) = gradients(expression, ("gate",))
    given = {"gate": x, "gradient": incoming}
    for found in (evaluate(gradient, given), evaluate(lowered(gradient), given)):
        usual = ~x.isnan()
        assert close(found[usual], by_autograd(expression, x, incoming)[usual])
        # Of NaN, PyTorch may have another gradient in the loop over vectors than in that over their rest.
        ends = (
            by_autograd(expression, some, incoming[-1:].expand(len(some)))
            for some in (x[-1:], x[-1:].tile(64))
        )
        assert any(close(found[-1], end[-1]) for end in ends)


def by_autograd(expression: Expression, x: Tensor, incoming: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    value = evaluate(expression, {"gate": x})
    return torch.autograd.grad(value, x, incoming)[0] if value.requires_grad else torch.zeros_like(x)


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_of_an_expression_is_that_expression_again(text: str) -> None:
    expression = parse(text)
    for one in (expression, lowered(expression), *gradients(expression, ("gate",))):
        assert parse(str(one)) == one


def test_numbers_are_exact() -> None:
    x = Variable("gate")
    assert str(x / 6) == "gate / 6"
    assert str(x / 1.702) == "gate / 1.702"
    assert str(2 * x - 1) == "2 * gate - 1"
    assert str(-(x * x)) == "-(gate * gate)"
    assert str(parse("1 / (1 + gate)")) == "1 / (gate + 1)"
    for text in ("gate / 6", "3 * gate / 1.702", "0.1 * gate", "gate - 1 / 3", "gate / 3 / gate"):
        assert str(parse(text)) == text
        exact = evaluate(parse(text), {"gate": torch.tensor([5.0], dtype=torch.float64)})
        assert float(exact) == eval(text, {"gate": 5.0})


WRONG = {
    "gate +": "found 'gate \\+', want one of silu, .*: it is not written as one",
    "cosh(gate)": "found cosh\\(gate\\), want sums",
    "clamp(gate, 1)": "found clamp of 2, want 1 arguments and 2 numbers",
    "clamp(gate, gate, 1)": "found the parameter gate, want a number",
    "gate ** 2": "want sums",
    "gate.x": "want sums",
    "'gate'": "want sums",
    "x * gate": "want one of silu, .*, or an expression of gate and up$",
    "1": "or an expression of gate and up$",
    " + ".join(["sigmoid(gate)", *(f"sigmoid({i} * gate)" for i in range(2, 200))]): "want at most 256",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_expression_is_refused(text: str) -> None:
    q, k = torch.randn(1, 2, 1, 3), torch.randn(1, 1, 4, 3)
    with pytest.raises(ValueError, match=WRONG[text]):
        flash_mhf(q, k, k, k, activation=text)


def test_up_is_of_gated_calls() -> None:
    q, k = torch.randn(1, 2, 1, 3), torch.randn(1, 1, 4, 3)
    with pytest.raises(ValueError, match=r"or an expression of gate$"):
        flash_mhf(q, k, None, k, activation="gate * up")


# -- drawn expressions --------------------------------------------------------------------------------------

UNARY = [name for name, row in FUNCTIONS.items() if row.arguments == 1 and name != "sign"]
NUMBERS = st.sampled_from([-2.0, -1.0, -0.5, 0.1, 0.5, 1.0, 1.702, 3.0])


@st.composite
def drawn(draw: st.DrawFn, size: int = 8) -> Expression:
    """An expression of gate and up, of so many operations at most."""
    if size <= 1:
        return Variable(draw(st.sampled_from(["gate", "gate", "up"])))
    kind = draw(st.sampled_from(["function", "function", "add", "mul", "number"]))
    if kind == "function":
        name = draw(st.sampled_from(UNARY))
        given = draw(st.sampled_from(PARAMETERS.get(name, ("",))))
        inner = draw(drawn(size - 1))
        return call(name, inner, parameters=tuple(map(float, given.split(", "))) if given else ())
    if kind == "number":
        return draw(drawn(size - 1)) * draw(NUMBERS) + draw(NUMBERS)
    left = draw(st.integers(1, size - 1))
    return call(kind, draw(drawn(left)), draw(drawn(size - left)))


@settings(SUITE, max_examples=60)
@given(drawn())
def test_gradients_of_drawn_expressions_are_autograd_s(expression: Expression) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {
        name: torch.randn(64, dtype=torch.float64, generator=generator).requires_grad_()
        for name in ("gate", "up")
    }
    assert parse(str(expression)) == expression
    value = evaluate(expression, scores)
    incoming = torch.randn(64, dtype=torch.float64, generator=generator)
    expected = (
        torch.autograd.grad(value, [*scores.values()], incoming, allow_unused=True)
        if value.requires_grad
        else (None, None)
    )
    given = {**{name: score.detach() for name, score in scores.items()}, "gradient": incoming}
    for gradient, wanted in zip(gradients(expression, ("gate", "up")), expected, strict=True):
        found = evaluate(lowered(gradient), given)
        wanted = torch.zeros_like(found) if wanted is None else wanted
        usual = wanted.isfinite() & (wanted.abs() < 1e6)  # of larger numbers other roundings are larger
        assert torch.allclose(found[usual], wanted[usual], rtol=1e-8, atol=1e-8)


# -- kernels ------------------------------------------------------------------------------------------------


@triton.jit
def _kernel(scores, gradient, hidden, d_gate, ACTIVATION: tl.constexpr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    gate = tl.load(scores + i)
    activated = elementwise.activate(gate, None, ACTIVATION, False)
    tl.store(hidden + i, activated)
    pulled, _ = elementwise.pull_back(tl.load(gradient + i), gate, None, activated, ACTIVATION, False)
    tl.store(d_gate + i, pulled)


IN_THE_INTERPRETER = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="runs in Triton's interpreter"
)


@IN_THE_INTERPRETER
def test_a_kernel_computes_what_overflows_on_the_way() -> None:
    """As log(1 + exp(x)) does, which is infinite then, and its tanh 1."""
    text, scores = "gate * tanh(log1p(exp(gate)))", torch.tensor([100.0, 1.0, -100.0, 3e38])
    found, slope = torch.empty(4), torch.empty(4)
    _kernel[(1,)](scores, torch.ones(4), found, slope, compiled_in(text, False), 4)
    assert close(found, evaluate(parse(text), {"gate": scores}))


@IN_THE_INTERPRETER
@pytest.mark.parametrize("text", TEXTS)
def test_a_kernel_computes_a_function(text: str) -> None:
    """In float32, up to a few roundings of what is computed on the way; infinite and NaN where PyTorch is."""
    x = points(torch.float32)
    size = triton.next_power_of_2(len(x))
    scores, incoming = torch.ones(size), torch.ones(size)
    scores[: len(x)] = x
    found, slope = torch.empty(size), torch.empty(size)
    _kernel[(1,)](scores, incoming, found, slope, compiled_in(text, False), size)
    expression = parse(text)
    value = evaluate(expression, {"gate": scores.double()})
    (gradient,) = gradients(expression, ("gate",))
    exact = evaluate(gradient, {"gate": scores.double(), "gradient": incoming.double()})
    for got, want in ((found, value), (slope, exact)):
        seen = want.abs() < 1e30
        assert close(got[seen], want[seen].float(), units=256), text
        assert torch.equal(got.isfinite()[scores.isfinite()], want.float().isfinite()[scores.isfinite()])


TWENTY = (
    *("mish(gate)", "hardswish(gate)", "hardsigmoid(gate)", "hardtanh(gate, 0, 6)", "tanh(gate)"),
    *(
        "softplus(gate, 1, 20)",
        "leaky_relu(gate, 0.2)",
        "gate * gate",
        "0.8944 * relu(gate) * relu(gate) - 0.4472",
    ),
    *(
        "30 * tanh(gate / 30)",
        "elu(gate, 1, 1, 1)",
        "silu(clamp(gate, -inf, 7))",
        "gate * sigmoid(1.702 * gate)",
    ),
    "clamp(gate, -inf, 7) * sigmoid(1.702 * clamp(gate, -inf, 7)) * (clamp(up, -7, 7) + 1)",
    *(
        "silu(clamp(gate, -inf, 10)) * clamp(up, -10, 10)",
        "relu(gate) * relu(gate) * relu(gate)",
        "erf(gate)",
    ),
    *("relu(gate) + 0.1 * gelu(gate)", "gate / (abs(gate) + 1)", "exp(-(gate * gate))"),
)


def counts() -> Iterator[tuple[str, int, int]]:
    """Of each expression, the special functions of a score in the forward and in the backward."""
    for text in TWENTY:
        expression = hidden_of(text, True).expression
        assert expression is not None
        both = gradients(expression, ("gate", "up"))
        yield text, special((expression,)), special((expression, *both))


def test_special_functions_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    """A subexpression is computed once, and a gradient takes what is there already."""
    table = list(counts())
    with capsys.disabled():
        print()
        for text, forward, backward in table:
            print(f"{forward:3} {backward:3}  {text}")
    assert max(forward for _, forward, _ in table) <= 3
    assert max(backward for _, _, backward in table) <= 5


def test_the_gradient_is_named_apart_from_the_scores() -> None:
    assert GRADIENT.name not in ("gate", "up")
    assert expressions.variables(parse("gate * up")) == {"gate", "up"}
    assert gradients(parse("gate + 1"), ("up",)) == (Number(Fraction(0)),)
