"""Find the activations of a tape: the values at which an elementwise function of a gate is complete.

``silu(x)``, ``x * sigmoid(x)`` and ``x / (1 + exp(-x))`` are one function; what they are made of may be
spread over several operations, with other factors between them. An activation is found where the last one
is multiplied in.
"""

from __future__ import annotations

from dataclasses import replace

from mhf_compile.notation import Factor, Func, Leaf, Term, Unreadable
from mhf_compile.read import Reader, entry_axes
from mhf_compile.rules import RULES
from mhf_compile.tape import Tape, Value

_EXPONENTIAL = ("sigmoid", "exp")
_ARITHMETIC = ("mul", "div", "neg", "add", "sub", "rsub", "reciprocal")


class Activations:
    """The activations of a tape, each with the name of its function.

    Attributes:
        anchors: the value that completes an activation -> the function.
    """

    def __init__(self, tape: Tape, names: frozenset[str]) -> None:
        self.names = names
        self.anchors: dict[Value, str] = {}
        self._partial: set[Value] = set()  # elementwise in a sigmoid or an exponential
        reader = Reader()
        for value in tape.values:
            rule = reader.rule(value)
            if rule is None or value.op is None:
                continue
            if value.op.name in names:
                self.anchors[value] = value.op.name
            elif value.op.name in _EXPONENTIAL:
                self._partial.add(value)
            elif rule.kind == "move" or value.op.name in _ARITHMETIC:
                if self._partial.isdisjoint(value.op.inputs):
                    continue
                name = self._completed(reader, value) if value.op.name in ("mul", "div") else None
                if name is None:
                    self._partial.add(value)
                else:
                    self.anchors[value] = name

    def _completed(self, reader: Reader, value: Value) -> str | None:
        """The activation that a product completes, if it does."""
        try:
            terms = self.read(reader, Leaf(value, entry_axes(value)))
        except Unreadable:
            return None
        if len(terms) != 1:
            return None
        return next((f.name for f in terms[0].factors if isinstance(f, Func) and f.name in self.names), None)

    def read(self, reader: Reader, anchor: Leaf) -> list[Term]:
        """An entry of an anchor as a product of leaves and named functions of leaves."""

        def step(leaf: Leaf, phase: str) -> Leaf | tuple[list[Term], str]:
            if phase == "start" or leaf.value in self._partial:
                terms = reader.apply(leaf)
                if terms is not None:
                    return terms, "inside"
            found = reader.operand(leaf)
            return ([], "inside") if found is None else found

        return [self._named(reader, term) for term in reader.expand(anchor, step)]

    def _named(self, reader: Reader, term: Term) -> Term:
        """Apply ``1 / (1 + exp(-x)) = sigmoid(x)``, then ``x * sigmoid(x) = silu(x)``."""
        factors: list[Factor] = [_function(reader, self._sigmoid(reader, factor)) for factor in term.factors]
        coefficient = term.coefficient
        for factor in tuple(factors):
            if isinstance(factor, Func) and factor.name == "sigmoid" and "silu" in self.names:
                assert isinstance(factor.argument, Leaf)
                for product in factors:
                    rest = _without(reader, product, factor.argument)
                    if rest is not None:
                        factors[factors.index(factor)] = Func("silu", factor.argument)
                        position = factors.index(product)
                        factors[position : position + 1] = rest.factors
                        coefficient *= rest.coefficient
                        break
        return replace(term, coefficient=coefficient, factors=tuple(factors))

    def _sigmoid(self, reader: Reader, factor: Factor) -> Factor:
        """``1 / (1 + exp(-x))`` as the sigmoid it is, other factors as they are."""
        if not isinstance(factor, Func) or factor.name != "reciprocal":
            return factor

        def step(leaf: Leaf, phase: str) -> Leaf | tuple[list[Term], str]:
            terms = reader.apply(leaf) if leaf.value in self._partial else None
            return leaf if terms is None else (terms, "inside")

        assert isinstance(factor.argument, Leaf)
        terms = sorted(reader.expand(factor.argument, step), key=lambda term: len(term.factors))
        match terms:
            case [Term(1, (), ()), Term(1, (Func("exp", Leaf() as exponent),), ())]:
                while True:
                    match reader.apply(exponent):
                        case [Term(1, (Leaf() as moved,), ())]:
                            reader.visit(exponent)
                            exponent = moved
                        case [Term(-1, (Leaf() as argument,), ())]:
                            reader.visit(exponent)
                            return Func("sigmoid", argument)
                        case _:
                            return factor
        return factor


def _without(reader: Reader, product: Factor, divisor: Leaf, depth: int = 8) -> Term | None:
    """What remains of a product when an entry is taken out of it; None where it is no factor."""
    if not isinstance(product, Leaf):
        return None
    if same_entry(reader, product, divisor):
        return Term()
    if not isinstance(product.value, Value) or product.value.op is None:
        return None
    rule = reader.rule(product.value)
    if depth == 0 or rule is None or not (rule.kind == "move" or product.value.op.name == "mul"):
        return None
    match reader.apply(product):
        case [Term(coefficient, factors, ())]:
            for position, factor in enumerate(factors):
                rest = _without(reader, factor, divisor, depth - 1)
                if rest is not None:
                    reader.visit(product)
                    others = (*factors[:position], *rest.factors, *factors[position + 1 :])
                    return Term(coefficient * rest.coefficient, others)
    return None


def _function(reader: Reader, factor: Factor) -> Factor:
    """A function with its argument read through rearrangements."""
    if isinstance(factor, Func) and isinstance(factor.argument, Leaf):
        return Func(factor.name, reader.operand(factor.argument) or factor.argument)
    return factor


def same_entry(reader: Reader, a: Leaf, b: Leaf) -> bool:
    """Whether two leaves are the same entry of values that are computed alike."""
    if isinstance(a.value, Value) and isinstance(b.value, Value) and not same_value(a.value, b.value):
        return False
    return [reader.current(i) for i in a.index] == [reader.current(i) for i in b.index]


def same_value(a: Value, b: Value, depth: int = 6) -> bool:
    """Whether two values are computed alike from the same values, and followed alike by autograd."""
    if a is b:
        return True
    if a.op is None or b.op is None or depth == 0 or a.op.name not in RULES:
        return False
    if a.op.random or (a.op.name, a.output) != (b.op.name, b.output):
        return False
    if (a.shape, a.dtype, a.requires_grad) != (b.shape, b.dtype, b.requires_grad):
        return False
    return _same_arguments((a.op.args, a.op.kwargs), (b.op.args, b.op.kwargs), depth - 1)


def _same_arguments(a: object, b: object, depth: int) -> bool:
    if isinstance(a, Value) and isinstance(b, Value):
        return same_value(a, b, depth)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same_arguments(x, y, depth) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same_arguments(a[key], b[key], depth) for key in a)
    return type(a) is type(b) and a == b
