"""The normal form of a candidate: folded terms of leaves, of functions of gate scores, and of up scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mhf_compile import notation
from mhf_compile.activation import Activations
from mhf_compile.fold import fold
from mhf_compile.notation import Factor, Func, Index, Leaf, Tensor, Term
from mhf_compile.read import Reader, entry_axes
from mhf_compile.reasons import NoMatch, randomness
from mhf_compile.tape import Value


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
            terms = reader.apply(leaf)
            if terms is None:
                name = leaf.value.op.title if leaf.value.op is not None else "something"
                raise NoMatch(f"{name} is applied to it in a way that is not read", leaf.value)
            return terms, "region"
        found = leaf if phase == "factor" else reader.operand(leaf)
        return ([], "factor") if found is None else found

    def same(value: Tensor) -> Tensor:
        """The first value that is computed alike, where that is as fit to be an operand."""
        if not isinstance(value, Value):
            return value
        first = activations.alike.first[value]
        return first if reader.fitness(first) >= reader.fitness(value) else value

    read = [notation.pinned(reader.resolve(term)) for term in reader.expand(start, step)]
    scored = [_with_scores(reader.resolve(term), reader) for term in read]
    terms = [notation.renamed(reader.resolve(term), same) for term in scored]
    folded = fold(terms, reader.splits)
    index = tuple(reader.current(i) for i in start.index)
    return index, [_hoisted(_counted(reader.resolve(term))) for term in folded]


def _with_scores(term: Term, reader: Reader) -> Term:
    """A term with the argument of its activation, and the factors of the same axes, read as scores."""
    gates = [f for f in term.factors if isinstance(f, Func) and isinstance(f.argument, tuple)]
    if not gates:
        return term
    wide = set(gates[0].axes)
    factors: list[Factor] = []
    for factor in term.factors:
        if isinstance(factor, Func) and isinstance(factor.argument, tuple):
            ((scale, (leaf,)),) = ((t.coefficient, t.factors) for t in factor.argument)
            assert isinstance(leaf, Leaf)
            scores = (replace(t, coefficient=scale * t.coefficient) for t in _score(leaf, reader))
            factors.append(Func(factor.name, tuple(scores)))
        elif isinstance(factor, Leaf) and set(factor.axes) == wide:
            factors.append(Func("", tuple(_score(factor, reader))))
        else:
            factors.append(factor)
    return replace(term, factors=tuple(factors))


def _score(leaf: Leaf, reader: Reader) -> list[Term]:
    """An entry of a score, read through one contraction: a sum of products of operands."""

    def step(leaf: Leaf, phase: str) -> Leaf | tuple[list[Term], str]:
        value = leaf.value
        rule = reader.rule(value) if isinstance(value, Value) else None
        if rule is not None and phase != "operand" and isinstance(value, Value) and value.op is not None:
            further = None
            if rule.kind in ("move", "join"):
                further = phase
            elif rule.kind == "sum":
                further = "summed" if phase != "summed" else None
            elif rule.kind == "product":
                further = "operand" if phase != "summed" else None
            elif rule.kind == "linear":
                further = "operand" if phase == "summed" and value.op.name == "mul" else phase
            elif rule.kind == "constant":
                further = phase
            terms = reader.apply(leaf) if further is not None else None
            if terms is not None and further is not None:
                return terms, further
        found = reader.operand(leaf)
        if found is None:
            return [], "operand"
        return found if (scaled := _scaled(found, reader)) is None else (scaled, "operand")

    terms = [reader.resolve(term) for term in reader.expand(leaf, step)]
    for operand in (leaf for term in terms for leaf in notation.leaves(term.factors)):
        if any(not set(term.bound).isdisjoint(operand.axes) for term in terms):
            continue  # randomness in an operand of the product is outside
        if isinstance(operand.value, Value) and operand.value.op is not None and operand.value.op.random:
            raise randomness(operand.value.op, operand.value)
    return [reader.resolve(term) for term in fold(terms, reader.splits)]


def _scaled(leaf: Leaf, reader: Reader) -> list[Term] | None:
    """An operand that is another one times a number, where that one is as fit to be an operand."""
    value = leaf.value
    if not isinstance(value, Value) or value.op is None or value.op.name not in ("mul", "div", "neg"):
        return None
    match reader.apply(leaf) if reader.rule(value) else None:
        case [Term(_, (Leaf(Value() as inner, _),), ())] as terms if reader.fitness(inner) >= reader.fitness(
            value
        ):
            reader.visit(leaf)
            return terms
    return None


def _counted(term: Term) -> Term:
    """A term without sums over axes that no factor has: such a sum is a multiplication."""
    factors = tuple(
        Func(f.name, tuple(map(_counted, f.argument)))
        if isinstance(f, Func) and isinstance(f.argument, tuple)
        else f
        for f in term.factors
    )
    inside = {axis for factor in factors for axis in factor.axes}
    idle = notation.product([axis.size for axis in term.bound if axis not in inside])
    if not isinstance(idle, int):
        raise NoMatch(f"a value is added up {idle} times, a symbolic number")
    bound = tuple(axis for axis in term.bound if axis in inside)
    return Term(term.coefficient * idle, factors, bound)


def _hoisted(term: Term) -> Term:
    """A term with what is constant in an up score moved out of it."""
    coefficient, factors = term.coefficient, list[Factor]()
    for factor in term.factors:
        if not (isinstance(factor, Func) and not factor.name and isinstance(factor.argument, tuple)):
            factors.append(factor)
            continue
        scores = sorted(factor.argument, key=lambda t: -len(t.bound))
        scale = scores[0].coefficient if scores and scores[0].coefficient else notation.ONE
        scores = [replace(t, coefficient=t.coefficient / scale) for t in scores]
        coefficient *= scale
        if len(scores) == 1 and scores[0].bound:
            inside = tuple(f for f in scores[0].factors if set(f.axes) & set(scores[0].bound))
            factors += [f for f in scores[0].factors if f not in inside]
            scores = [replace(scores[0], factors=inside)]
        factors.append(Func("", tuple(scores)))
    return replace(term, coefficient=coefficient, factors=tuple(factors))
