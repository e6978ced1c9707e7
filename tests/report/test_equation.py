"""Equations set in MathML: nothing of what was read is lost."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch

import mhf_compile
from mhf_compile.report.equation import NotAnEquation, mathml
from mhf_compile.report.names import readable_equation
from tests.programs import SPELLINGS, Spelling


def parsed(equation: str) -> ElementTree.Element:
    return ElementTree.fromstring("<math>" + "".join(mathml(equation)) + "</math>")


def text(equation: str) -> str:
    """What stands in the MathML of an equation, in order."""
    return "".join(parsed(equation).itertext())


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_every_symbol_of_an_equation_is_set(spelling: Spelling) -> None:
    torch._dynamo.reset()
    report = mhf_compile.explain(spelling.program, *spelling.tensors(), options=spelling.options)
    (rewrite,) = report.rewrites
    for equation in (rewrite.equation, readable_equation(rewrite.equation)):
        plain = re.sub(r"sum_\{|\]|\[|\}|\*|/| ", "", equation).replace("+-", "-")
        found = text(equation).replace("\N{N-ARY SUMMATION}", "").replace("\N{INVISIBLE TIMES}", "")
        assert found.replace("\N{MINUS SIGN}", "-") == plain


def test_the_parts() -> None:
    math = parsed("y[b] = sum_{f,e1} silu(q[b, 16*h+d]) * (1/2 * k[h, 3] + -2 * r[0]) * [e=1]")
    sums = [["".join(part.itertext()) for part in sum] for sum in math.iter("munder")]
    assert sums == [["\N{N-ARY SUMMATION}", "f,e1"]]
    entries = [["".join(part.itertext()) for part in entry] for entry in math.iter("msub")]
    assert entries == [
        ["y", "b"],
        ["e", "1"],
        ["q", "b,16\N{INVISIBLE TIMES}h+d"],
        ["k", "h,3"],
        ["r", "0"],
    ]
    assert [["".join(part.itertext()) for part in fraction] for fraction in math.iter("mfrac")] == [
        ["1", "2"]
    ]
    between = [sign.text for sign in math.iter("mo") if sign.get("form") == "infix"]
    assert between == ["\N{MINUS SIGN}"]  # and no plus with it
    assert text("y[b] = 1 * [e=1]").endswith("[e=1]")


def test_a_line_may_break_between_factors_and_nowhere_else() -> None:
    pieces = mathml("y[b] = sum_{f} silu(q[b] * k[f]) * v[f] + w[b] + -3 * x[b]")
    assert ["".join(ElementTree.fromstring(f"<math>{piece}</math>").itertext()) for piece in pieces] == [
        "yb=",
        "\N{N-ARY SUMMATION}fsilu(qbkf)",
        "vf",
        "+wb",
        "\N{MINUS SIGN}3",
        "xb",
    ]


@pytest.mark.parametrize("name", ["<b>", "a&b"])
def test_a_name_is_no_markup(name: str) -> None:
    with pytest.raises(NotAnEquation):
        mathml(f"y[b] = {name}[b]")
    assert text("y[b] = x[a&b<c]") == "yb=xa&b<c"


@pytest.mark.parametrize(
    "other",
    ["", "o[n, h] = ...", "y[b]", "y[b] = ", "y[b] = (x[b]", "y[b] = x[b])", "y[b] = x[b] y[b]", "y = x"],
)
def test_other_text_is_no_equation(other: str) -> None:
    with pytest.raises(NotAnEquation):
        mathml(other)
