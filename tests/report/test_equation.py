"""Equations: data of names and numbers, as text and in MathML, which both lack nothing of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from fractions import Fraction
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

import mhf_compile
from mhf_compile.report.equation import Axis, Entry, Equation, Function, Position, Term
from mhf_compile.report.mathml import mathml
from tests.programs import SPELLINGS, Spelling


def at(*digits: object, offset: int | str = 0) -> Position:
    """A position, of axes and of pairs of stride and axis."""
    pairs = (digit if isinstance(digit, tuple) else (1, digit) for digit in digits)
    return Position(tuple((stride, axis(name)) for stride, name in pairs), offset)


def axis(name: str) -> Axis:
    return Axis(name[0], int(name[1:] or 0))


def entry(tensor: str, *positions: Position | str) -> Entry:
    return Entry(tensor, tuple(p if isinstance(p, Position) else at(p) for p in positions))


def entries(tensors: str, *positions: Position | str) -> tuple[Entry, ...]:
    return tuple(entry(tensor, *positions) for tensor in tensors)


RESULT = entry("y", "b")
EVERYTHING = Equation(
    RESULT,
    (
        Term(
            (
                Function("silu", ((Term((entry("q", "b", at((16, "h"), "d")),)),),)),
                Function(
                    "",
                    (
                        (
                            Term((entry("k", "h", at(offset=3)),), (), Fraction(1, 2)),
                            Term((entry("r", at("e1", offset="s0"), at(("2*s0", "d"))),), (), Fraction(-2)),
                        ),
                    ),
                ),
                Function("phi", ((Term(entries("q", "b")),), (Term(entries("u", "b")), Term(())))),
            ),
            (axis("f"), axis("e1")),
        ),
        Term((), (), Fraction(-3)),
        Term(entries("x", "b"), (axis("i1"),), Fraction(-1)),
    ),
    "clamp(gate, -inf, 7) * tanh(up)",
)


def test_text() -> None:
    assert str(EVERYTHING) == (
        "y[b] = sum_{f,e1} silu(q[b,16*h+d]) * (1/2 * k[h,3] + -2 * r[e1+s0,2*s0*d]) * phi(q[b], u[b] + 1)"
        " + -3 + sum_{i1} -1 * x[b] with phi(gate, up) = clamp(gate, -inf, 7) * tanh(up)"
    )
    assert str(Term(())) == "1"


def test_it_is_data() -> None:
    again = json.loads(json.dumps(asdict(EVERYTHING), default=str))
    assert again["terms"][0]["factors"][1]["arguments"][0][0]["coefficient"] == "1/2"
    assert again["terms"][0]["factors"][0]["name"] == "silu"
    assert hash(EVERYTHING) == hash(replace(EVERYTHING))


# -- MathML -------------------------------------------------------------------------------------------------


def parsed(equation: Equation) -> ElementTree.Element:
    return ElementTree.fromstring("<math>" + "".join(mathml(equation)) + "</math>")


def set_text(element: ElementTree.Element) -> str:
    """What stands in MathML, in order."""
    return "".join(element.itertext()).replace("\N{MINUS SIGN}", "-").replace("\N{INVISIBLE TIMES}", "*")


def written(part: object) -> str:
    """What is to stand there, said once more and plainly."""
    match part:
        case Equation(result, terms, phi):
            return f"{written(result)}={written(terms)}" + f"with {part.signature} = {phi}" * bool(phi)
        case tuple():
            return "+".join(map(written, part)).replace("+-", "-")
        case Term(factors, summed, coefficient):
            sign = "\N{N-ARY SUMMATION}" + ",".join(map(str, summed)) if summed else ""
            number = str(coefficient).replace("/", "") if coefficient != 1 or not factors else ""
            return sign + number + "".join(map(written, factors))
        case Function(name, arguments):
            return f"{name}({','.join(map(written, arguments))})"
        case Entry(tensor, index):
            return tensor + ",".join(map(str, index))
    raise AssertionError(part)


def test_everything_is_set() -> None:
    assert set_text(parsed(EVERYTHING)) == written(EVERYTHING)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_every_symbol_of_a_match_is_set(spelling: Spelling) -> None:
    torch._dynamo.reset()
    report = mhf_compile.explain(spelling.program, *spelling.tensors(), options=spelling.options)
    (rewrite,) = report.rewrites
    assert rewrite.notation is not None
    assert set_text(parsed(rewrite.notation)) == written(rewrite.notation)
    assert str(rewrite.notation) == rewrite.equation


def test_the_parts() -> None:
    math = parsed(EVERYTHING)

    def all_of(tag: str) -> list[list[str]]:
        return [[set_text(part) for part in element] for element in math.iter(tag)]

    assert all_of("munder") == [["\N{N-ARY SUMMATION}", "f,e1"], ["\N{N-ARY SUMMATION}", "i1"]]
    entries = [["y", "b"], ["q", "b,16*h+d"], ["k", "h,3"], ["r", "e1+s0,2*s0*d"], ["x", "b"]]
    entries += [["q", "b"], ["u", "b"]]
    numbered = [["e", "1"], ["e", "1"], ["i", "1"]]
    assert sorted(all_of("msub")) == sorted([*entries, *numbered])
    assert all_of("mfrac") == [["1", "2"]]
    between = [sign.text for sign in math.iter("mo") if sign.get("form") == "infix"]
    assert between == ["\N{MINUS SIGN}", "+", "\N{MINUS SIGN}", "+"]  # and no plus with a minus


def test_a_line_may_break_between_factors_and_nowhere_else() -> None:
    hidden = Function("silu", ((Term(entries("qk", "b")),),))
    equation = Equation(
        RESULT,
        (
            Term((hidden, entry("v", "f")), (axis("f"),)),
            Term(entries("w", "b")),
            Term(entries("xz", "b"), (), Fraction(-3)),
        ),
    )
    pieces = [set_text(ElementTree.fromstring(f"<math>{piece}</math>")) for piece in mathml(equation)]
    assert pieces == ["yb=", "\N{N-ARY SUMMATION}fsilu(qbkb)", "vf", "+wb", "-3", "xb", "zb"]


def test_a_name_is_no_markup() -> None:
    name = "x<b>&amp;\"'"
    hostile = Equation(RESULT, (Term((Function(name, ((Term((entry(name, "b"),)),),)),)),))
    assert set_text(parsed(hostile)) == f"yb={name}({name}b)"


# -- of a model ---------------------------------------------------------------------------------------------


class Lists(nn.Module):
    """Each head has modules of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.ModuleList(nn.Linear(*sizes, bias=False) for _ in range(3))
            for sizes in ((4, 6), (4, 6), (6, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = zip(x.chunk(3, -1), self.gate, self.up, self.down, strict=True)
        return torch.cat([down(silu(gate(q)) * up(q)) for q, gate, up, down in heads], -1)


def test_the_equation_of_a_model_has_the_names_of_its_modules() -> None:
    torch._dynamo.reset()
    (rewrite,) = mhf_compile.explain(Lists(), torch.randn(2, 5, 12)).rewrites
    assert rewrite.equation == (
        "cat[b,t,4*h+o] = sum_{f} silu(sum_{d} x[b,t,4*h+d] * gate.0-2.weight[h,f,d])"
        " * (sum_{d} x[b,t,4*h+d] * up.0-2.weight[h,f,d]) * down.0-2.weight[h,o,f]"
    )
    assert hash(rewrite)
    torch._dynamo.reset()
    (again,) = mhf_compile.explain(Lists(), torch.randn(2, 5, 12)).rewrites
    assert again == rewrite  # it holds nothing of the graph that it was read from


def test_what_is_added_has_axes_without_a_role() -> None:
    def program(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, bias: Tensor) -> Tensor:
        hidden = [silu(x @ gate[n]) * (x @ up[n]) for n in range(3)]
        parts = [torch.nn.functional.linear(h, down[n], bias[n]) for n, h in enumerate(hidden)]
        return parts[0] + parts[1] + parts[2]

    torch._dynamo.reset()
    tensors = (torch.randn(s) for s in ((2, 3, 4), (3, 4, 5), (3, 4, 5), (3, 6, 5), (3, 6)))
    report = mhf_compile.explain(program, *tensors, options={"flashmhf.dense": "always"})
    (rewrite,) = report.rewrites
    assert rewrite.equation.endswith(" + sum_{i1} bias[i1,o]"), rewrite.equation


def test_values_of_one_name_are_numbered() -> None:
    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (silu(q @ (k * k)) * (q @ (u * u))) @ v

    torch._dynamo.reset()
    shapes = ((2, 3, 4), (4, 5), (4, 5), (5, 6))
    report = mhf_compile.explain(program, *map(torch.randn, shapes), options={"flashmhf.dense": "always"})
    (rewrite,) = report.rewrites
    assert " q[b,t,d] * mul_1[d,f]" in rewrite.equation
    assert " q[b,t,d] * mul_2[d,f]" in rewrite.equation
