"""The distributive law: a sum of products that have factors in common is one product with a sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mhf_compile import notation
from mhf_compile.notation import Axis, Factor, Func, Index, Leaf, Term


def factored(terms: Sequence[Term]) -> list[Term]:
    """The same sum, with products that have factors in common as one: ``p * a + p * b = p * (a + b)``.

    ``a + b`` is a function without a name. What is no sum over an axis, as a bias, stays by itself.
    """
    products = [term for term in terms if term.bound]
    if len(products) < 2:
        return list(terms)
    first, *rest = products
    pairings = [_pairing(first, term) for term in rest]
    common = [f for f in first.factors if all(any(f is own for own, _ in p.pairs) for p in pairings)]
    shared = {axis for factor in common for axis in factor.axes}
    if not common or not shared.intersection(first.bound):
        return list(terms)
    others = [*_without(first, common, shared)]
    for term, pairing in zip(rest, pairings, strict=True):
        theirs = [other for own, other in pairing.pairs if any(own is f for f in common)]
        rest_of_it = tuple(f for f in term.factors if not any(f is t for t in theirs))
        names = {axis: Index.over(pairing.names.get(axis) or Axis(axis.size)) for axis in term.bound}
        moved = notation.substitute(Term(term.coefficient, rest_of_it, term.bound), names)
        others += _without(moved, (), shared)
    if not all(_is_plain(factor) for term in others for factor in term.factors):
        return list(terms)  # two functions of scores, say
    bound = tuple(axis for axis in first.bound if axis in shared)
    joined = Term(factors=(*common, Func("", tuple(others))), bound=bound)
    return [joined, *(term for term in terms if not term.bound)]


def _without(term: Term, factors: Sequence[Factor], shared: set[Axis]) -> tuple[Term, ...]:
    """A term without some factors, and not summed over axes that are; what is left of it may be a sum."""
    kept = tuple(f for f in term.factors if not any(f is other for other in factors))
    bound = tuple(axis for axis in term.bound if axis not in shared)
    match kept:
        case (Func("") as inner,) if not bound:
            return tuple(replace(t, coefficient=term.coefficient * t.coefficient) for t in inner.terms)
    return (Term(term.coefficient, kept, bound),)


def _is_plain(factor: Factor) -> bool:
    """Whether a factor is a leaf or the reciprocal of one, as those of operands are."""
    return isinstance(factor, Leaf) or (isinstance(factor, Func) and factor.name == "reciprocal")


@dataclass
class _Pairing:
    """The factors of one term that another has too, and the axes of the one for those of the other."""

    pairs: list[tuple[Factor, Factor]] = field(default_factory=list)
    names: dict[Axis, Axis] = field(default_factory=dict)


def _pairing(first: Term, other: Term) -> _Pairing:
    """What two terms have in common; functions come first, as they have most axes."""
    pairing, left = _Pairing(), list(other.factors)
    for factor in sorted(first.factors, key=lambda f: isinstance(f, Leaf)):
        for candidate in left:
            names = _same(factor, candidate, pairing.names, {*first.bound}, {*other.bound})
            if names is not None:
                pairing.names = names
                pairing.pairs.append((factor, candidate))
                left = [f for f in left if f is not candidate]
                break
    return pairing


def _form(function: Func) -> object:
    """A function without its arguments: what those are is compared further."""
    return function.name, [None if isinstance(one, Leaf) else len(one) for one in function.arguments]


def _same(
    a: Factor, b: Factor, names: Mapping[Axis, Axis], bound: set[Axis], other: set[Axis]
) -> dict[Axis, Axis] | None:
    """The axes of one factor for those of another that is the same but for summed axes; None if it is not.

    ``names`` are those that are known already, ``bound`` and ``other`` what the first and the second may sum.
    """
    result: dict[Axis, Axis] | None = dict(names)
    match a, b:
        case Leaf(), Leaf() if a.value == b.value and len(a.index) == len(b.index):
            for i, j in zip(a.index, b.index, strict=True):
                if i.offset != j.offset or len(i.digits) != len(j.digits):
                    return None
                for (stride, mine), (other_stride, theirs) in zip(i.digits, j.digits, strict=True):
                    if (
                        stride != other_stride
                        or mine.size != theirs.size
                        or (mine in bound) != (theirs in other)
                    ):
                        return None
                    if mine not in bound and mine is not theirs:
                        return None
                    assert result is not None
                    if mine in bound and result.setdefault(theirs, mine) is not mine:
                        return None
                    if mine in bound and list(result.values()).count(mine) > 1:
                        return None
            return result
        case Func(), Func() if _form(a) == _form(b):
            for entry, other_entry in zip(a.entries, b.entries, strict=True):
                result = _same(entry, other_entry, result, bound, other) if result is not None else None
            for one, two in zip(a.terms, b.terms, strict=True):
                if one.coefficient != two.coefficient or len(one.factors) != len(two.factors):
                    return None
                inner, others = bound | {*one.bound}, other | {*two.bound}
                for first, second in zip(one.factors, two.factors, strict=True):
                    result = _same(first, second, result, inner, others) if result is not None else None
            return result
    return None
