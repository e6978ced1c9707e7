"""Equations in index notation, as ``repr`` of :mod:`mhf_compile.notation` prints them, set in MathML."""

from __future__ import annotations

import re
from html import escape
from typing import NoReturn

_TOKEN = re.compile(
    r"\s*(?:(?P<sum>sum_\{(?P<axes>[\w,]+)\})"
    r"|(?P<entry>(?P<name>stack\([^\[\]]*\)|[A-Za-z][\w.,-]*)\[(?P<index>[^\[\]]*)\])"
    r"|(?P<where>\[(?P<condition>[^\[\]]*)\])"
    r"|(?P<function>[A-Za-z]\w*)\("
    r"|(?P<number>-?\d+(?:/\d+)?)"
    r"|(?P<sign>[=+*()]))"
)


_THIN = '<mspace width="0.17em"/>'  # between factors
_BETWEEN = '<mo form="infix">'  # a sign between terms, also where it stands first in its piece


class NotAnEquation(ValueError):
    """A text that is not what ``notation`` prints."""


def mathml(equation: str) -> list[str]:
    """An equation as pieces of MathML, between which a line may break: browsers break none themselves.

    Raises:
        NotAnEquation: the text is not what ``notation`` prints.
    """
    return _Reader(equation).equation()


class _Reader:
    """Reads the grammar of ``notation``: an entry, "=", a sum of products, functions of such sums."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = 0
        self.next()

    def next(self) -> None:
        """Go to the next token; None at the end."""
        rest = self.text[self.end :]
        self.token = _TOKEN.match(self.text, self.end) if rest.strip() else None
        if self.token is None and rest.strip():
            self.fail()
        self.end = self.token.end() if self.token is not None else self.end

    def fail(self) -> NoReturn:
        raise NotAnEquation(f"{self.text!r} at {self.end}")

    def at(self, sign: str) -> bool:
        """Whether the next token is a sign, and if so go past it."""
        found = self.token is not None and self.token["sign"] == sign
        if found:
            self.next()
        return found

    def expect(self, sign: str) -> None:
        if not self.at(sign):
            self.fail()

    def equation(self) -> list[str]:
        left = self.factor()
        self.expect("=")
        pieces = self.sum()
        if self.token is not None:
            self.fail()
        return [f"{left}<mo>=</mo>", *pieces]

    def sum(self) -> list[str]:
        pieces = self.term()
        while self.at("+"):
            minus = self.token is not None and (self.token["number"] or "").startswith("-")
            first, *others = self.term()
            signed = first if minus else f"<mo>+</mo>{first}"
            pieces += [signed.replace("<mo>", _BETWEEN, 1), *others]
        return pieces

    def term(self) -> list[str]:
        """The factors; a sum's sign stands with the first of them."""
        sign = ""
        if self.token is not None and self.token["sum"]:
            sign = f"<munder><mo>∑</mo>{_row(_axes(self.token['axes']))}</munder>"
            self.next()
        factors = [self.factor()]
        while self.at("*"):
            factors.append(self.factor())
        return [sign + factors[0], *factors[1:]]

    def factor(self) -> str:
        token = self.token
        if token is None:
            self.fail()
        if self.at("("):
            return self.parentheses()
        self.next()
        if token["entry"]:
            return f"<msub>{_name(token['name'])}{_row(_index(token['index']))}</msub>"
        if token["where"]:
            return f"<mo>[</mo>{_index(token['condition'])}<mo>]</mo>"
        if token["function"]:
            return f"<mi>{escape(token['function'])}</mi>{self.parentheses()}"
        if token["number"]:
            return _number(token["number"])
        self.fail()

    def parentheses(self) -> str:
        inner = _THIN.join(self.sum()).replace(_THIN + _BETWEEN, _BETWEEN)
        self.expect(")")
        return f'<mrow><mo>(</mo><mstyle displaystyle="false">{inner}</mstyle><mo>)</mo></mrow>'


def _row(inner: str) -> str:
    return f"<mrow>{inner}</mrow>"


def _name(name: str) -> str:
    return f"<mi>{escape(name)}</mi>"  # one letter is italic, more are upright


def _number(number: str) -> str:
    top, slash, bottom = number.partition("/")
    minus = "<mo>&#x2212;</mo>" if top.startswith("-") else ""
    top = f"<mn>{top.removeprefix('-')}</mn>"
    return minus + (f"<mfrac>{top}<mn>{bottom}</mn></mfrac>" if slash else top)


def _axes(axes: str) -> str:
    return "<mo>,</mo>".join(map(_axis, axes.split(",")))


def _axis(axis: str) -> str:
    letter, number = axis[0], axis[1:]
    if number.isdecimal():
        return f"<msub><mi>{letter}</mi><mn>{number}</mn></msub>"
    return f"<mi>{escape(axis)}</mi>"


def _index(index: str) -> str:
    """Positions such as ``b,96*h+d``: axes, numbers and, between them, what the text has."""
    parts = []
    for part in re.findall(r"\w+|[^\w\s]", index):
        if part == "*":
            parts.append("<mo>&#x2062;</mo>")  # invisible times
        elif part.isdecimal():
            parts.append(f"<mn>{part}</mn>")
        else:
            parts.append(_axis(part) if part[0].isalpha() else f"<mo>{escape(part)}</mo>")
    return "".join(parts)
