"""Functions of the scores, drawn: continuous, so that a rounding of a score changes little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

OF_ONE = [
    "torch.tanh({a})",
    "silu({a})",
    "relu({a})",
    "gelu({a})",
    "torch.sigmoid({a})",
    "nn.functional.softplus({a})",
    "nn.functional.hardswish({a})",
    "nn.functional.mish({a})",
    "nn.functional.elu({a})",
    "nn.functional.leaky_relu({a}, 0.2)",
    "({a}).clamp(-0.5, 0.75)",
    "({a}).clamp(max=0.5)",
    "({a}).abs()",
    "({a}).square()",
    "torch.sin({a})",
    "torch.exp(-({a}).square())",
    "({a}) / (1 + ({a}).abs())",
    "torch.where(({a}) > 0, {a}, 0.25 * ({a}))",
    "({a}).masked_fill(({a}) < 0, 0.0)",
]
"""Functions that are not linear: what they are of is in a score's place."""

OF_TWO = [
    "({a}) + ({b})",
    "({a}) * ({b})",
    "({a}) - 0.5 * ({b})",
    "torch.maximum({a}, {b})",
    "torch.minimum({a}, {b})",
    "({a}) * torch.sigmoid({b})",
    "({a}) / (1 + ({b}).abs())",
    "torch.where(({a}) >= ({b}), {a}, {b})",
]

JOINT = ["torch.maximum({a}, {b})", "torch.minimum({a}, {b})", "torch.where(({a}) < ({b}), {a}, {b})"]
"""Functions of two that are no product and no sum of functions of one."""

NODES = 8
"""Functions in an expression, at most."""


@st.composite
def expressions(draw: Draw, scores: tuple[str, ...], nodes: int) -> str:
    """An expression of some scores, or of one of them, of so many functions at most."""
    kind = draw(st.sampled_from(["score", "number", "one", "two"])) if nodes > 0 else "score"
    if kind == "score":
        return str(draw(st.sampled_from(scores)))
    if kind == "number":
        return f"({draw(expressions(scores, nodes - 1))}) * {draw(st.sampled_from([0.5, -1.5]))} + 0.25"
    if kind == "one":
        return str(draw(st.sampled_from(OF_ONE))).format(a=draw(expressions(scores, nodes - 1)))
    share = draw(st.integers(0, nodes - 1))
    a, b = draw(expressions(scores, share)), draw(expressions(scores, nodes - 1 - share))
    return str(draw(st.sampled_from(OF_TWO))).format(a=a, b=b)


@st.composite
def of_gate(draw: Draw) -> str:
    """A function of {gate} that is not linear."""
    return str(draw(st.sampled_from(OF_ONE))).format(a=draw(expressions(("{gate}",), NODES - 1)))


@st.composite
def of_both(draw: Draw) -> str:
    """A function of {gate} and {up} that is neither a product nor a sum of functions of one.

    Both are in it by themselves at first, as what is drawn may be of one of them only.
    """
    half = NODES // 2 - 1
    one, other = draw(expressions(("{gate}",), half)), draw(expressions(("{up}",), half))
    match draw(st.sampled_from(["product", "of product", "of sum", "joint"])):
        case "product":
            return " * ".join(f"({draw(st.sampled_from(OF_ONE)).format(a=x)})" for x in (one, other))
        case "of product":
            return str(draw(st.sampled_from(OF_ONE))).format(a=f"({one}) * ({other})")
        case "of sum":
            return str(draw(st.sampled_from(OF_ONE))).format(a=f"({one}) + torch.tanh({other})")
        case _:
            return str(draw(st.sampled_from(JOINT))).format(a=one, b=other)
