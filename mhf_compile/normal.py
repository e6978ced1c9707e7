"""The normal form of a candidate: folded terms of leaves, of functions of gate scores, and of up scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mhf_compile import notation
from mhf_compile.activation import Activations
from mhf_compile.fold import fold
from mhf_compile.notation import Factor, Func, Index, Leaf, Term
from mhf_compile.read import Reader, entry_axes
from mhf_compile.tape import Value
from mhf_compile.unify import NoMatch


def normal_form(
    root: Value, activations: Activations, carried: Mapping[Value, object], reader: Reader
) -> tuple[tuple[Index, ...], list[Term]]:
    """A candidate as folded terms of leaves, of functions of a gate score, and of up scores.

    Returns:
        The index of the root's entry, and the terms. Scores are sums of products of operands, the
        up score inside a function named ``identity``.
    """
    start = Leaf(root, entry_axes(root))

    def step(leaf: Leaf, phase: str) -> Leaf | tuple[list[Term], str]:
        if leaf.value in activations.anchors:
            return activations.read(reader, leaf), "factor"
        if phase != "factor" and leaf.value in carried:
            terms = reader.apply(leaf)
            if terms is None:
                raise NoMatch("the result is not read", leaf.value if isinstance(leaf.value, Value) else None)
            return terms, "region"
        found = leaf if phase == "factor" else reader.operand(leaf)
        return ([], "factor") if found is None else found

    terms = [
        _with_scores(reader.resolve(term), reader, activations.names) for term in reader.expand(start, step)
    ]
    folded = fold([reader.resolve(term) for term in terms], reader.splits)
    index = tuple(reader.current(i) for i in start.index)
    return index, [_hoisted(_counted(reader.resolve(term))) for term in folded]


def _with_scores(term: Term, reader: Reader, names: frozenset[str]) -> Term:
    """A term with the argument of its activation, and the factors of the same axes, read as scores."""
    gates = [f for f in term.factors if isinstance(f, Func) and f.name in names]
    if not gates:
        return term
    wide = set(gates[0].axes)
    factors: list[Factor] = []
    for factor in term.factors:
        if isinstance(factor, Func) and isinstance(factor.argument, Leaf):
            factors.append(Func(factor.name, tuple(_score(factor.argument, reader))))
        elif isinstance(factor, Leaf) and set(factor.axes) == wide:
            factors.append(Func("identity", tuple(_score(factor, reader))))
        else:
            factors.append(factor)
    return replace(term, factors=tuple(factors))


_LINEAR = ("add", "sub", "rsub", "neg", "mul", "div", "addcmul")


def _score(leaf: Leaf, reader: Reader) -> list[Term]:
    """An entry of a score, read through one contraction: a sum of products of operands."""

    def step(leaf: Leaf, phase: str) -> Leaf | tuple[list[Term], str]:
        value = leaf.value
        rule = reader.rule(value) if isinstance(value, Value) else None
        if rule is not None and phase != "operand" and isinstance(value, Value) and value.op is not None:
            further = None
            if rule.kind in ("move", "join"):
                further = phase
            elif value.op.name in ("sum", "mean"):
                further = "summed" if phase != "summed" else None
            elif rule.kind == "contract":
                further = "operand" if phase != "summed" else None
            elif value.op.name in _LINEAR:
                further = "operand" if phase == "summed" and value.op.name == "mul" else phase
            elif rule.kind == "constant":
                further = phase
            terms = reader.apply(leaf) if further is not None else None
            if terms is not None and further is not None:
                return terms, further
        found = reader.operand(leaf)
        return ([], "operand") if found is None else found

    terms = [reader.resolve(term) for term in reader.expand(leaf, step)]
    for operand in (leaf for term in terms for leaf in notation.leaves(term.factors)):
        if isinstance(operand.value, Value) and operand.value.op is not None and operand.value.op.random:
            raise NoMatch(f"dropout or other randomness is inside ({operand.value.op.name})", operand.value)
    return [reader.resolve(term) for term in fold(terms, reader.splits)]


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
    """A term with what is constant in an ``identity`` function moved out of it."""
    coefficient, factors = term.coefficient, list[Factor]()
    for factor in term.factors:
        if not (
            isinstance(factor, Func) and factor.name == "identity" and isinstance(factor.argument, tuple)
        ):
            factors.append(factor)
            continue
        scores = sorted(factor.argument, key=lambda t: -len(t.bound))
        scale = scores[0].coefficient if scores and scores[0].coefficient else notation.ONE
        scores = [replace(t, coefficient=t.coefficient / scale) for t in scores]
        coefficient *= scale
        if len(scores) == 1:
            inside = tuple(f for f in scores[0].factors if set(f.axes) & set(scores[0].bound))
            factors += [f for f in scores[0].factors if f not in inside]
            scores = [replace(scores[0], factors=inside)]
        factors.append(Func("identity", tuple(scores)))
    return replace(term, coefficient=coefficient, factors=tuple(factors))
