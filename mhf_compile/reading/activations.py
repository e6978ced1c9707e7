"""Find the activations of a tape: the values at which an elementwise function of one entry is complete.

An activation may be one operation or be spelled out over many, ``x / (1 + exp(-x))``, with other factors
between them. What is read of it is an expression in ``x``, and which function that is, is known by what it
computes. One that the op does not know keeps its text as its name, ``x*tanh(x)``, and is never rewritten.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch

from mhf_compile.kernels.activations import ACTIVATIONS
from mhf_compile.kernels.expressions import Expression, Number, walk
from mhf_compile.notation import ONE, Delta, Factor, Func, Leaf, Term, Unreadable
from mhf_compile.reading.expression import Known, X, functions, identify, of_function, varies
from mhf_compile.reading.numbering import ValueNumbering
from mhf_compile.reading.reader import FLOATS, Reader, entry_axes
from mhf_compile.reading.rules import ALGEBRA, ELEMENTWISE, PARTS, RULES, Kind, Rule, kind_of
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Op, Value

UNTAGGED = frozenset(["_prelu_kernel", "log_sigmoid_forward", "aten::rrelu_with_noise"])
"""Elementwise functions that PyTorch does not tag as such."""

FINAL = frozenset(["silu", "gelu", "gelu_tanh", "relu_squared"])
"""Activations that are no part of a product with something else: only a function of them alone may be one."""

DEPTH = 12
"""Operations that an expression is followed down."""

UNIT = Number(ONE)
"""The product of nothing."""

LARGEST = 64
"""Operations of the largest expression."""


@dataclass
class _Product:
    """A product of what depends on one entry only, and the rest."""

    x: Leaf
    inside: Expression = UNIT
    count: int = 0
    """Tensors inside; two for a function that is no tensor of its own."""
    rest: list[Factor] = field(default_factory=list)
    path: list[Leaf] = field(default_factory=list)
    """What was read through."""

    def take(self, expression: Expression, path: list[Leaf], count: int = 1) -> None:
        """Multiply something in that depends on the entry only; a number counts for nothing."""
        self.inside = self.inside * expression
        self.count += count * varies(expression)
        self.path += path

    @property
    def is_new(self) -> bool:
        """Whether it is a function, and more than a tensor that was complete before, times others."""
        return bool(self.path) and (self.count > 1 or not self.rest) and bool(functions(self.inside))


@dataclass(frozen=True)
class _Complete:
    """An activation that is complete at a value.

    Attributes:
        product: what it depends on, and what else it is multiplied with.
        known: its function.
        is_score: whether what it depends on is a score.
        names: its name, and those that it has as a function of something between.
    """

    product: _Product
    known: Known
    is_score: bool = True
    names: frozenset[str] = frozenset()

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """How good it is: that of a score comes before that of something between."""
        return self.is_score, self.known.name in ACTIVATIONS, -len(self.product.rest)


class Activations:
    """The activations of a tape.

    Attributes:
        anchors: the value that completes an activation -> the function's name, or its text where the op
            does not know it by a name.
        names: those of an activation and of what it is made of.
    """

    def __init__(self, tape: Tape) -> None:
        self.anchors: dict[Value, str] = {}
        self.names: dict[Value, frozenset[str]] = {}
        self._final: set[Value] = set()
        self._curved: set[Value] = set()  # elementwise in a function, which may go on
        self._scores: set[Value] = set()  # linear in a product
        self._arguments: dict[Value, Value] = {}  # the score that an activation without a rule is of
        self._sources: dict[Value, frozenset[Value]] = {}  # what a value is made of, element by element
        self.numbering = ValueNumbering(tape)
        self._used = tape.used
        reader = Reader()
        for value in tape.values:
            rule = reader.rule(value)
            if value.op is None:
                continue
            if rule is None or (
                rule.kind is Kind.FUNCTION and reader.definition(Leaf(value, entry_axes(value))) is None
            ):
                self._foreign(value, value.op)
                continue
            if self._is_score(value.op):
                self._scores.add(value)
            if rule.kind in ELEMENTWISE | {Kind.JOIN}:
                inputs = map(self._sources_of, value.op.inputs)
                self._sources[value] = frozenset[Value]().union(*inputs)
            if rule.kind is Kind.FUNCTION or not self._curved.isdisjoint(value.op.inputs):
                self._follow(reader, value, rule)
            elif rule.kind is Kind.MULTIPLY and self._scores.issuperset(value.op.args):
                self.anchors[value] = "identity"

    def _is_score(self, op: Op) -> bool:
        """Whether an operation gives a product of tensors summed over an axis, or something linear in one."""
        kind, inputs = RULES[op.name].kind, op.inputs
        if kind is Kind.SUM:
            return any(kind_of(value.op) is Kind.MULTIPLY for value in inputs)
        if kind in ALGEBRA - {Kind.ADD} and len(inputs) != 1:
            return False
        every = all if kind is Kind.JOIN else any
        linear = kind in ALGEBRA | {Kind.MOVE, Kind.JOIN} and every(v in self._scores for v in inputs)
        return kind is Kind.CONTRACT or linear

    def _foreign(self, value: Value, op: Op) -> None:
        """Note an elementwise operation that no rule reads: on a score, or an activation of a subclass."""
        known = RULES.get(op.name)
        if known is not None and known.kind is Kind.FUNCTION and not (known.is_part or value.plain):
            self.anchors[value] = op.name
            self.names[value] = frozenset([op.name])
            return
        tagged = op.func is not None and torch.Tag.pointwise in op.func.tags
        pointwise = tagged or op.name in UNTAGGED
        scores = [v for v in op.inputs if v in self._scores and v.shape == value.shape]
        if pointwise and scores and value.dtype in FLOATS and value.output == 0:
            self.anchors[value] = op.title
            self._arguments[value] = scores[0]

    def _sources_of(self, value: Value) -> frozenset[Value]:
        return self._sources.get(value) or frozenset([self.numbering.first[value]])

    def _may_complete(self, op: Op, rule: Rule) -> bool:
        """Whether an operation has one tensor, a quotient's function in it, or two with a common source."""
        sources = [self._sources_of(value) for value in op.inputs]
        pairs = itertools.combinations(sources, 2)
        return len(sources) == 1 or rule.kind is Kind.DIVIDE or not all(a.isdisjoint(b) for a, b in pairs)

    def _follow(self, reader: Reader, value: Value, rule: Rule) -> None:
        """Note whether a value that is elementwise in a function completes an activation."""
        assert value.op is not None
        if rule.kind is Kind.MOVE:
            self._curved.add(value)
            if not self._final.isdisjoint(value.op.inputs):
                self._final.add(value)
        if rule.kind not in ALGEBRA | {Kind.FUNCTION}:
            return
        completed = None
        if rule.kind is Kind.FUNCTION or self._may_complete(value.op, rule):
            completed = self._complete(reader, Leaf(value, entry_axes(value)))
        if (completed is None or completed.product.rest) and not self._final.isdisjoint(value.op.inputs):
            return
        if completed is not None:
            inside = {leaf.value for leaf in completed.product.path}
            self.names[value] = completed.names
            for part in inside & self.anchors.keys():
                assert isinstance(part, Value)
                self.names[value] |= self.names.get(part, frozenset())
                outside = {output for user in part.users for output in user.outputs} - inside
                if self._used.isdisjoint(outside):
                    del self.anchors[part]
            self.anchors[value] = completed.known.name
            if not self.names[value].isdisjoint(FINAL):
                self._final.add(value)
        is_sum = rule.products is not None and sum(map(bool, rule.products(value.op))) > 1
        if completed is not None or not is_sum:
            self._curved.add(value)

    def read(self, reader: Reader, anchor: Leaf) -> list[Term]:
        """An entry of an anchor as a product of one named function of an entry, and others."""
        assert isinstance(anchor.value, Value)
        if anchor.value in self._arguments:
            argument = Leaf(self._arguments[anchor.value], anchor.index)
            reader.visit(anchor)
            return [Term(factors=(Func(self.anchors[anchor.value], (Term(factors=(argument,)),)),))]
        completed = self._complete(reader, anchor, self.anchors[anchor.value])
        if completed is None:  # the product of two scores
            if self.anchors[anchor.value] != "identity":
                raise Unreadable("a gradient is stopped inside the activation, by detach or no_grad")
            (term,) = reader.definition(anchor) or []
            gate, *rest = term.factors
            assert isinstance(gate, Leaf)
            product = _Product(gate, rest=rest, path=[anchor])
            completed = _Complete(product, Known("identity", term.coefficient))
        product, known = completed.product, completed.known
        reader.visit(*product.path)
        factors: list[Factor] = [Func(known.name, (Term(known.scale, (product.x,)),))]
        for other in product.rest:
            operand = _operand(reader, other)
            if operand is None:
                return []
            factors.append(operand)
        return [Term(known.factor, tuple(factors))]

    def _complete(self, reader: Reader, leaf: Leaf, wanted: str | None = None) -> _Complete | None:
        """What is complete at an entry: of a score if it can be, by a name if it has one."""
        best: _Complete | None = None
        names: set[str] = set()
        for x in self._variables(reader, leaf):
            product = _Product(x)
            self._cut(reader, leaf, product, DEPTH)
            if not product.is_new:
                continue
            known = identify(product.inside) or Known(str(product.inside))
            is_score = x.value in self._scores
            if known.name in ACTIVATIONS:
                names.add(known.name)
            elif not is_score and functions(product.inside) <= PARTS:
                continue
            if wanted is not None and known.name != wanted:
                continue
            found = _Complete(product, known, is_score)
            if best is None or found.rank > best.rank:
                best = found
            if best.rank == (True, True, 0):
                break
        return replace(best, names=frozenset([best.known.name, *names])) if best is not None else None

    def _variables(self, reader: Reader, leaf: Leaf) -> Iterator[Leaf]:
        """The entries that a product may depend on by a function, the nearest first."""
        seen: list[Leaf] = []
        pending = deque([(leaf, False, DEPTH)])
        while pending:
            entry, inside, depth = pending.popleft()
            assert isinstance(entry.value, Value)
            if inside:
                entry = _canonical(reader, entry)
                if entry in seen:
                    continue
                seen.append(entry)
                yield entry
            for factor in (f for term in _step(reader, entry, depth) or [] for f in term.factors):
                if isinstance(factor, Func) and isinstance(factor.argument, Leaf):
                    pending.append((factor.argument, True, depth - 1))
                elif isinstance(factor, Leaf) and (inside or factor.value in self._curved):
                    pending.append((factor, inside, depth - 1))

    def _cut(self, reader: Reader, leaf: Leaf, product: _Product, depth: int) -> None:
        """Multiply an entry in: what depends on ``product.x`` only goes inside, the rest beside it."""
        path: list[Leaf] = []
        expression = _expression(reader, self.numbering, leaf, product.x, path, DEPTH)
        if expression is not None:
            return product.take(expression, path)
        parts = _Product(product.x, path=[leaf])
        match _step(reader, leaf, depth):
            case [Term(coefficient, factors, ())] if not any(isinstance(f, Delta) for f in factors):
                for factor in factors:
                    path = []
                    if isinstance(factor, Leaf):
                        self._cut(reader, factor, parts, depth - 1)
                    elif (
                        call := _expression(reader, self.numbering, factor, product.x, path, DEPTH)
                    ) is not None:
                        parts.take(call, path, count=2)
                    else:
                        parts.rest.append(factor)
                if parts.count:
                    product.take(Number(coefficient) * parts.inside, parts.path, parts.count)
                    product.rest += parts.rest
                    return None
        product.rest.append(leaf)
        return None


def _step(reader: Reader, leaf: Leaf, depth: int) -> list[Term] | None:
    """What an entry is made of by an elementwise operation or a rearrangement, else None."""
    rule = reader.rule(leaf.value) if isinstance(leaf.value, Value) else None
    if rule is None or not depth or rule.kind not in ELEMENTWISE | {Kind.JOIN}:
        return None
    terms = reader.definition(leaf)
    return None if terms is not None and rule.kind is Kind.JOIN and len(terms) > 1 else terms


def _same_entry(reader: Reader, numbering: ValueNumbering, a: Leaf, b: Leaf) -> bool:
    """Whether two leaves are the same entry of values that are computed alike."""
    assert isinstance(a.value, Value) and isinstance(b.value, Value)
    current = reader.axes.current
    return numbering.same(a.value, b.value) and [*map(current, a.index)] == [*map(current, b.index)]


def _expression(
    reader: Reader, numbering: ValueNumbering, factor: Factor, x: Leaf, path: list[Leaf], depth: int
) -> Expression | None:
    """A factor as an expression in an entry, if it is one; what was read through is added to the path."""
    if isinstance(factor, Func):
        assert isinstance(factor.argument, Leaf)
        argument = _expression(reader, numbering, factor.argument, x, path, depth)
        return None if argument is None else of_function(factor.name, argument)
    if not isinstance(factor, Leaf):
        return None
    if _same_entry(reader, numbering, factor, x):
        return X
    terms = _step(reader, factor, depth)
    if terms is None:
        return None
    total: Expression = Number(Fraction(0))
    inside = [factor]
    for term in terms:
        product: Expression = Number(term.coefficient)
        for inner in term.factors:
            expression = _expression(reader, numbering, inner, x, inside, depth - 1)
            if expression is None:
                return None
            product = product * expression
        total = total + product
    if sum(1 for _ in walk(total)) > LARGEST:
        return None
    path += inside
    return total


def _canonical(reader: Reader, leaf: Leaf) -> Leaf:
    """The entry that an entry is, below all rearrangements."""
    while (
        isinstance(leaf.value, Value)
        and (rule := reader.rule(leaf.value))
        and rule.kind in (Kind.MOVE, Kind.JOIN)
    ):
        match reader.definition(leaf):
            case [Term(1, (Leaf() as below,), ())]:
                leaf = below
            case _:
                break
    return Leaf(leaf.value, tuple(reader.axes.current(i) for i in leaf.index))


def _operand(reader: Reader, factor: Factor) -> Factor | None:
    """A factor read through rearrangements; None of a zero."""
    if isinstance(factor, Func) and isinstance(factor.argument, Leaf):
        return replace(factor, argument=reader.operand(factor.argument) or factor.argument)
    return reader.operand(factor) if isinstance(factor, Leaf) else factor
