"""The normal form of a candidate: folded terms of leaves, of functions of gate scores, and of up scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from mhf_compile import notation
from mhf_compile.kernels.activations import UP
from mhf_compile.matching.factoring import factored
from mhf_compile.matching.reasons import NO_ZEROS, OBSTACLE, NoMatch, randomness
from mhf_compile.notation import Factor, Func, Index, Leaf, Tensor, Term
from mhf_compile.notation.fold import fold
from mhf_compile.reading.activations import Activations
from mhf_compile.reading.entries import multiply
from mhf_compile.reading.expression import scaled
from mhf_compile.reading.reader import Reader, entry_axes
from mhf_compile.reading.rules import ALGEBRA, Kind
from mhf_compile.tape.values import Value


def normal_form(
    root: Value,
    activations: Activations,
    carried: Mapping[Value, frozenset[Value]],
    reader: Reader,
) -> tuple[tuple[Index, ...], list[Term]]:
    """A candidate as folded terms of leaves, of functions of a gate score, and of up scores.

    Args:
        root: the candidate.
        activations: those of its tape.
        carried: the activations that values are linear in.
        reader: what reads it.

    Returns:
        The index of the root's entry, and the terms. Scores are sums of products of operands, the
        up score inside a function without a name.
    """
    start = Leaf(root, entry_axes(root))
    anchors = carried[root]

    def step(leaf: Leaf, phase: str) -> Leaf | tuple[list[Term], str]:
        assert isinstance(leaf.value, Value)
        if phase != "factor" and not anchors.isdisjoint(carried.get(leaf.value, ())):
            if leaf.value in anchors:
                return activations.read(reader, leaf), "factor"
            terms = _terms(reader, leaf)
            if terms is None:
                name = leaf.value.op.title if leaf.value.op is not None else "something"
                raise NoMatch(f"{name} is applied to it in a way that is not read", leaf.value)
            return terms, "region"
        operand = leaf if phase == "factor" else _operand(leaf, reader)
        if phase != "factor" and isinstance(operand, Leaf) and (scaled := _scaled(operand, reader)):
            operand = scaled
        return operand if isinstance(operand, Leaf) else (operand, "factor")

    def same(value: Tensor) -> Tensor:
        """The first value that is computed alike, where that is preferred as an operand as much."""
        if not isinstance(value, Value):
            return value
        first = activations.numbering.first[value]
        return first if reader.preference(first) >= reader.preference(value) else value

    read = [notation.pinned(reader.axes.resolve(term)) for term in reader.expand(start, step)]
    scored = [_with_scores(reader.axes.resolve(term), reader) for term in read]
    opened = [term for one in scored for term in _opened(reader.axes.resolve(one), reader)]
    terms, cuts = fold([notation.renamed(reader.axes.resolve(term), same) for term in opened])
    reader.axes.adopt(cuts)
    index = tuple(reader.axes.current(i) for i in start.index)
    terms = [_hoisted(_counted(reader.axes.resolve(term))) for term in terms]
    gated = [term for term in terms if any(isinstance(f, Func) and f.terms for f in term.factors)]
    return index, [*factored(gated), *(term for term in terms if term not in gated)]


def _operand(leaf: Leaf, reader: Reader) -> Leaf | list[Term]:
    """The tensor that an entry comes from by rearrangement, or the number that it is filled with."""
    operand = reader.operand(leaf)
    if operand is None:
        return []
    number = reader.number(operand)
    return operand if number is None else number


def _terms(reader: Reader, leaf: Leaf) -> list[Term] | None:
    """What an entry is made of. Raises NoMatch where a tensor in it is multiplied by the number 0.

    Its gradient is 0 then, where a region without it gives none.
    """
    terms = reader.definition(leaf)
    if any(not term.coefficient and term.factors for term in terms or ()):
        value = leaf.value if isinstance(leaf.value, Value) else None
        raise NoMatch("a tensor in it is multiplied by 0", value, OBSTACLE, NO_ZEROS)
    return terms


def _with_scores(term: Term, reader: Reader) -> Term:
    """A term with the argument of its activation, and the factors of the same axes, read as scores."""
    gates = [f for f in term.factors if isinstance(f, Func) and f.sums]
    if not gates:
        return term
    wide = set(gates[0].axes)
    factors: list[Factor] = []
    for factor in term.factors:
        if isinstance(factor, Func) and factor.sums:
            scores = []
            for ((scale, (leaf,)),) in ([(t.coefficient, t.factors) for t in s] for s in factor.sums):
                assert isinstance(leaf, Leaf)
                summands = score(leaf, reader)
                scores.append(tuple(replace(t, coefficient=scale * t.coefficient) for t in summands))
            factors.append(Func(factor.name, *scores))
        elif isinstance(factor, Leaf) and set(factor.axes) == wide:
            factors.append(Func("", tuple(score(factor, reader))))
        else:
            factors.append(factor)
    return replace(term, factors=tuple(factors))


def _opened(term: Term, reader: Reader) -> list[Term]:
    """A term without entries of what was read through for a score: such a factor is read like one as well.

    So a product of which some columns are the gate may have others that are added to the result.
    """
    read = [f for f in term.factors if isinstance(f, Leaf) and f.value in reader.visited]
    if not read:
        return [term]
    sums = [Func("", tuple(score(leaf, reader))) for leaf in read]
    others = replace(term, factors=tuple(f for f in term.factors if not any(f is leaf for leaf in read)))
    if any(isinstance(factor, Func) and factor.terms for factor in others.factors):
        return [replace(others, factors=(*others.factors, *sums))]
    terms = [others]
    for one in sums:
        terms = [multiply(term, summand) for term in terms for summand in one.terms]
    return terms


def score(leaf: Leaf, reader: Reader) -> list[Term]:
    """An entry of a score, read through one contraction: a sum of products of operands.

    Of what is multiplied with something that has all of its axes, what has fewer is an operand.
    """
    narrow: set[Leaf] = set()

    def step(leaf: Leaf, phase: str) -> Leaf | tuple[list[Term], str | list[str]]:
        value = leaf.value
        rule = reader.rule(value) if isinstance(value, Value) and leaf not in narrow else None
        if rule is not None and phase != "operand" and isinstance(value, Value) and value.op is not None:
            further = None
            if rule.kind is Kind.SUM:
                further = "summed" if phase != "summed" else None
            elif rule.kind is Kind.CONTRACT:
                further = "operand" if phase != "summed" else None
            elif rule.kind is Kind.MULTIPLY and phase == "summed":
                further = "operand"
            elif rule.kind is not Kind.FUNCTION:
                further = phase
            terms = _terms(reader, leaf) if further is not None else None
            if terms is not None and further is not None:
                for term in terms:
                    entries = [f for f in term.factors if isinstance(f, Leaf)]
                    axes = [{a for i in f.index for a in reader.axes.current(i).axes} for f in entries]
                    widest = set().union(*axes)
                    if rule.kind in ALGEBRA and widest in axes:
                        narrow.update(f for f, own in zip(entries, axes, strict=True) if own != widest)
                summed = rule.kind is Kind.CONTRACT
                return terms, [phase if summed and not term.bound else further for term in terms]
        operand = _operand(leaf, reader)
        if isinstance(operand, Leaf) and (scaled := _scaled(operand, reader)) is not None:
            operand = scaled
        return operand if isinstance(operand, Leaf) else (operand, "operand")

    terms = [reader.axes.resolve(term) for term in reader.expand(leaf, step)]
    for operand in (leaf for term in terms for leaf in notation.leaves(term.factors)):
        if any(not set(term.bound).isdisjoint(operand.axes) for term in terms):
            continue  # randomness in an operand of the product is outside
        if isinstance(operand.value, Value) and operand.value.op is not None and operand.value.op.random:
            raise randomness(operand.value.op, operand.value)
    terms, cuts = fold(_of_one_input(_collected(terms), reader))
    reader.axes.adopt(cuts)
    return factored([reader.axes.resolve(term) for term in terms])


def _collected(terms: Sequence[Term]) -> list[Term]:
    """The same sum, with terms that differ in nothing but their numbers as one."""
    like: dict[Term, list[Term]] = {}
    for term in terms:
        like.setdefault(notation.numbered(replace(term, coefficient=notation.ONE)), []).append(term)
    sums = ((same[0], sum((term.coefficient for term in same), notation.ZERO)) for same in like.values())
    return [replace(term, coefficient=coefficient) for term, coefficient in sums]


def _of_one_input(terms: list[Term], reader: Reader) -> list[Term]:
    """The same sum, in which an input that is a product of another term's input is read as that product.

    So ``x @ w + (x @ a) @ b`` is a sum of two products of x.
    """
    products = [term for term in terms if term.bound]
    inputs = {leaf.value for term in products for leaf in notation.leaves(term.factors)}
    if len(products) < 2:
        return terms
    result = [term for term in terms if not term.bound]
    for term in products:
        for leaf in notation.leaves(term.factors):
            *_, made = (reader.rule(value) for value in reader.sources(leaf.value))
            if made is None or made.kind not in (Kind.CONTRACT, Kind.SUM):
                continue
            before = dict(reader.visited)
            inner = score(leaf, reader)
            found = {one.value for deeper in inner for one in notation.leaves(deeper.factors)}
            if len(inner) == 1 and inner[0].bound and not found.isdisjoint(inputs):
                others = tuple(factor for factor in term.factors if factor is not leaf)
                term = reader.axes.resolve(multiply(replace(term, factors=others), inner[0]))
            else:
                reader.visited = before
        result.append(term)
    return [reader.axes.resolve(term) for term in result]


def _scaled(leaf: Leaf, reader: Reader) -> list[Term] | None:
    """An operand that is another one times a number, where that one is preferred as an operand as much.

    A sealed value, which may be the root of another match, stays whole.
    """
    value = leaf.value
    rule = reader.rule(value) if isinstance(value, Value) else None
    if not isinstance(value, Value) or value.op is None or reader.sealed(value):
        return None
    if rule is None or rule.kind not in ALGEBRA or len(value.op.inputs) != 1:
        return None
    preference = reader.preference
    match _terms(reader, leaf):
        case [Term(_, (Leaf(Value() as inner),), ())] as terms if preference(inner) >= preference(value):
            reader.visit(leaf)
            return terms
    return None


def _counted(term: Term) -> Term:
    """A term without sums over axes that no factor has: such a sum is a multiplication."""
    factors = tuple(
        Func(f.name, *(tuple(map(_counted, terms)) for terms in f.sums))
        if isinstance(f, Func) and f.sums
        else f
        for f in term.factors
    )
    inside = {axis for factor in factors for axis in factor.axes}
    idle = notation.product([axis.size for axis in term.bound if axis not in inside])
    if not isinstance(idle, int):
        raise NoMatch(f"a value is added up {idle} times, a symbolic number")
    bound = tuple(axis for axis in term.bound if axis in inside)
    return Term(term.coefficient * idle, factors, bound)


def _of_one(terms: Sequence[Term]) -> tuple[Fraction, list[Term]]:
    """A number and the sum of which it is a multiple, whose first product has no number."""
    terms = sorted(terms, key=lambda t: -len(t.bound))
    scale = terms[0].coefficient if terms and terms[0].coefficient else notation.ONE
    return scale, [replace(t, coefficient=t.coefficient / scale) for t in terms]


def _hoisted(term: Term) -> Term:
    """A term with what is constant in an up score moved out of it, a number also out of a function of it."""
    coefficient, factors = term.coefficient, list[Factor]()
    for factor in term.factors:
        if not isinstance(factor, Func):
            factors.append(factor)
            continue
        if factor.name:
            if len(factor.sums) == 2:
                gate, up = factor.sums
                scale, scores = _of_one(up)
                factor = Func(scaled(factor.name, UP, scale), gate, tuple(scores))
            factors.append(factor)
            continue
        scale, scores = _of_one(factor.terms)
        coefficient *= scale
        if scores and scores[0].bound:
            outside = [f for f in scores[0].factors if set(f.axes).isdisjoint(scores[0].bound)]
            counts = {f: {s.factors.count(f) for s in scores} for f in outside}
            outside = [f for f in outside if len(counts[f]) == 1]
            scores = [replace(t, factors=tuple(f for f in t.factors if f not in outside)) for t in scores]
            factors += outside
        factors.append(Func("", tuple(scores)))
    return replace(term, coefficient=coefficient, factors=tuple(factors))
