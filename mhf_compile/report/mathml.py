"""Equations in MathML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from html import escape

from mhf_compile.report.equation import Axis, Entry, Equation, Function, Position, Term

_THIN = '<mspace width="0.17em"/>'  # between factors
_PLUS, _MINUS = '<mo form="infix">+</mo>', '<mo form="infix">&#x2212;</mo>'  # also first in their piece


def mathml(equation: Equation) -> list[str]:
    """An equation as pieces of MathML, between which a line may break: browsers break none themselves."""
    terms = [piece for term in _sum(equation.terms) for piece in term]
    phi = [f"<mtext>with {equation.signature} = {escape(equation.phi)}</mtext>"] if equation.phi else []
    return [f"{_entry(equation.result)}<mo>=</mo>", *terms, *phi]


def _sum(terms: Sequence[Term]) -> list[list[str]]:
    """The factors of each term; with the first of them stands the sign between terms."""
    signed = [_term(terms[0], "")]
    for term in terms[1:]:
        if term.coefficient < 0 and not term.summed:
            signed.append(_term(replace(term, coefficient=-term.coefficient), _MINUS))
        else:
            signed.append(_term(term, _PLUS))
    return signed


def _term(term: Term, sign: str) -> list[str]:
    numbers = [_number(term.coefficient)] * (term.coefficient != 1 or not term.factors)
    first, *others = [*numbers, *map(_factor, term.factors)]
    summed = f"<munder><mo>∑</mo>{_row(_axes(term.summed))}</munder>" if term.summed else ""
    return [sign + summed + first, *others]


def _factor(factor: Entry | Function) -> str:
    if isinstance(factor, Entry):
        return _entry(factor)
    name = _name(factor.name) if factor.name else ""
    sums = ("".join(_THIN.join(pieces) for pieces in _sum(terms)) for terms in factor.arguments)
    inner = "<mo>,</mo>".join(sums)
    return f'{name}<mrow><mo>(</mo><mstyle displaystyle="false">{inner}</mstyle><mo>)</mo></mrow>'


def _entry(entry: Entry) -> str:
    return f"<msub>{_name(entry.tensor)}{_row('<mo>,</mo>'.join(map(_position, entry.index)))}</msub>"


def _position(position: Position) -> str:
    times = "<mo>&#x2062;</mo>"  # invisible
    parts = [
        _axis(axis) if stride == 1 else f"{_size(stride)}{times}{_axis(axis)}"
        for stride, axis in position.digits
    ]
    return "<mo>+</mo>".join(parts + [_size(position.offset)] * (position.offset != 0 or not parts))


def _axes(axes: Sequence[Axis]) -> str:
    return "<mo>,</mo>".join(map(_axis, axes))


def _axis(axis: Axis) -> str:
    return f"<msub>{_name(axis.role)}<mn>{axis.number}</mn></msub>" if axis.number else _name(axis.role)


def _row(inner: str) -> str:
    return f"<mrow>{inner}</mrow>"


def _name(name: str) -> str:
    return f"<mi>{escape(name)}</mi>"  # one letter is italic, more are upright


def _size(size: int | str) -> str:
    return _number(Fraction(size)) if isinstance(size, int) else _name(size)


def _number(number: Fraction) -> str:
    minus = "<mo>&#x2212;</mo>" if number < 0 else ""
    top, bottom = (f"<mn>{part}</mn>" for part in (abs(number.numerator), number.denominator))
    return minus + (f"<mfrac>{top}{bottom}</mfrac>" if number.denominator != 1 else top)
