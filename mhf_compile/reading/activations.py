"""Find the activations of a tape: the values at which an elementwise function of scores is complete.

An activation may be one operation or be spelled out over many, ``x / (1 + exp(-x))``, with other factors
between them. What is read of it is an expression in ``x``, and which function that is, is known by what it
computes. One that is none of those with a name has its text as its name, ``gate * tanh(gate)``. So has a
function of two scores that is no product of an activation of the one and the other, such as that of gpt-oss,
``(clamp(up, -7, 7) + 1) * ...``.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import torch

from mhf_compile.kernels.activations import ACTIVATIONS, GATE
from mhf_compile.kernels.expressions import Expression, Number
from mhf_compile.notation import ONE, Axis, Delta, Factor, Func, Leaf, Term, Unreadable
from mhf_compile.reading.elementwise import SCORES, Elementwise, has_no_gradient
from mhf_compile.reading.expression import (
    Known,
    curvature,
    functions,
    identify,
    is_joint,
    is_linear,
    varies,
)
from mhf_compile.reading.numbering import ValueNumbering
from mhf_compile.reading.reader import FLOATS, Reader, entry_axes
from mhf_compile.reading.rules import ALGEBRA, PARTS, RULES, Kind, Rule
from mhf_compile.reading.scores import Scores
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Op, Value

UNTAGGED = frozenset(["_prelu_kernel", "log_sigmoid_forward", "aten::rrelu_with_noise"])
"""Elementwise functions that PyTorch does not tag as such."""

FINAL = frozenset(["silu", "gelu", "gelu_tanh", "relu_squared"])
"""Activations that are no part of a product with something else: only a function of them alone may be one."""

UNIT = Number(ONE)
"""The product of nothing."""

DEPTH = 12
"""Operations that a product is followed down, whose factors are expressions."""

STOPPED = "a gradient is stopped inside the activation, by detach or no_grad"
"""Why an activation is not the same as it was where gradients were not asked for."""


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
        return bool(self.path) and (self.count > 1 or not self.rest) and not is_linear(self.inside)


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


@dataclass(frozen=True)
class _Joint:
    """A function of several scores, by its text."""

    scores: list[Leaf]
    name: str
    path: list[Leaf]
    """What was read through."""


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
        self._arguments: dict[Value, Value] = {}  # the score that an activation without a rule is of
        self._joint: set[Value] = set()  # activations of several scores
        self.numbering = ValueNumbering(tape)
        self._scores = Scores(tape, self.numbering)
        self._used = tape.used
        reader = Reader()
        elements = Elementwise(reader, self.numbering)
        for value in tape.values:
            rule = reader.rule(value)
            if value.op is None:
                continue
            if rule is None or (
                rule.kind is Kind.FUNCTION and reader.definition(Leaf(value, entry_axes(value))) is None
            ):
                self._foreign(value, value.op)
                continue
            self._scores.visit(value, value.op, rule)
            if rule.kind is Kind.FUNCTION or not self._curved.isdisjoint(value.op.inputs):
                self._follow(elements, value, rule)
            elif rule.kind in (Kind.MULTIPLY, Kind.POLYNOMIAL) and all(
                v in self._scores for v in value.op.inputs
            ):
                if self._may_complete(value.op, rule):  # a power
                    self._follow(elements, value, rule)
                if rule.kind is Kind.MULTIPLY and all(v in self._scores for v in value.op.args):
                    self.anchors.setdefault(value, "identity")
                    self._curved.add(value)

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

    def _may_complete(self, op: Op, rule: Rule) -> bool:
        """Whether an operation has one tensor, a quotient's function in it, or two with a common source."""
        sources = [self._scores.sources(value) for value in op.inputs]
        pairs = itertools.combinations(sources, 2)
        return len(sources) == 1 or rule.kind is Kind.DIVIDE or not all(a.isdisjoint(b) for a, b in pairs)

    def _follow(self, elements: Elementwise, value: Value, rule: Rule) -> None:
        """Note whether a value that is elementwise in a function completes an activation."""
        assert value.op is not None
        is_final = not self._final.isdisjoint(value.op.inputs)
        if rule.kind is Kind.MOVE or value.dtype is torch.bool:
            self._curved.add(value)
            self._final |= {value} if is_final else set()
        if rule.kind not in ALGEBRA | {Kind.FUNCTION} or value.dtype is torch.bool:
            return
        completed, joint = None, None
        if rule.kind is Kind.FUNCTION or self._may_complete(value.op, rule):
            completed = self._complete(elements, Leaf(value, entry_axes(value)))
        if completed is None or completed.product.rest or not completed.is_score:
            joint = self._of_several(elements, Leaf(value, entry_axes(value)))
        if joint is not None:
            self._joint.add(value)
            self._note(value, joint.name, frozenset(), joint.path)
        elif is_final and (completed is None or completed.product.rest):
            completed = None
            self._final.add(value)
        elif completed is not None:
            self._note(value, completed.known.name, completed.names, completed.product.path)
        elif rule.kind is Kind.FUNCTION:
            self._foreign(value, value.op)
        is_sum = rule.products is not None and sum(map(bool, rule.products(value.op))) > 1
        if completed is not None or joint is not None or not is_sum:
            self._curved.add(value)

    def _note(self, value: Value, name: str, names: frozenset[str], path: Collection[Leaf]) -> None:
        """Note an activation, and that what is nothing but a part of it is none."""
        inside = {leaf.value for leaf in path if isinstance(leaf.value, Value)}
        self.names[value] = names
        for part in inside & self.anchors.keys():
            if self._is_part_only(part, value, inside):
                self.names[value] |= self.names.get(part, frozenset())
                del self.anchors[part]
        self.anchors[value] = name
        if not self.names[value].isdisjoint(FINAL):
            self._final.add(value)

    def _is_part_only(self, part: Value, whole: Value, inside: set[Value]) -> bool:
        """Whether a value, and what is made of it inside of another one, is used for that one only."""
        pending, seen = [part], {part, whole}
        while pending:
            used = {output for user in pending.pop().users for output in user.outputs} & self._used
            if not used <= inside:
                return False
            pending += used - seen
            seen |= used
        return True

    def read(self, reader: Reader, anchor: Leaf) -> list[Term]:
        """An entry of an anchor as a product of one named function, of an entry or several, and others."""
        assert isinstance(anchor.value, Value)
        if anchor.value in self._arguments:
            argument = Leaf(self._arguments[anchor.value], anchor.index)
            reader.visit(anchor)
            return [Term(factors=(Func(self.anchors[anchor.value], (Term(factors=(argument,)),)),))]
        elements = Elementwise(reader, self.numbering)
        if anchor.value in self._joint:
            joint = self._of_several(elements, anchor)
            if joint is None:
                raise Unreadable(STOPPED)
            reader.visit(*joint.path)
            return [Term(factors=(Func(joint.name, *((Term(factors=(score,)),) for score in joint.scores)),))]
        completed = self._complete(elements, anchor, self.anchors[anchor.value])
        if completed is None:  # the product of two scores
            if self.anchors[anchor.value] != "identity":
                raise Unreadable(STOPPED)
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

    def _of_several(self, elements: Elementwise, leaf: Leaf) -> _Joint | None:
        """A function of scores that is complete at an entry, and no product of a function and a score."""

        def axes(leaf: Leaf) -> set[Axis]:
            current = elements.reader.axes.current
            return {axis for index in leaf.index for axis in current(index).axes if axis.size != 1}

        scores = elements.scores(leaf, self._scores, apart=True)
        if scores is not None and len(scores) > 2:  # products of low rank, say, that are added up
            scores = min(scores, elements.scores(leaf, self._scores, apart=False) or scores, key=len)
        if scores is None or not 2 <= len(scores) <= len(SCORES):
            return None
        if not frozenset.intersection(*(self._scores.contracted[score.value] for score in scores)):
            return None  # of different inputs
        if any(axes(score) != axes(leaf) for score in scores):
            return None
        for order in (scores, scores[::-1]):
            path: list[Leaf] = []
            expression = elements.expression(leaf, order, path)
            if expression is None or not is_joint(expression) or has_no_gradient(expression, order):
                return None
            if curvature(expression, GATE) >= curvature(expression, SCORES[len(scores) - 1]):
                return _Joint(order, str(expression), path)
        return None

    def _complete(self, elements: Elementwise, leaf: Leaf, wanted: str | None = None) -> _Complete | None:
        """What is complete at an entry: of a score if it can be, by a name if it has one."""
        best: _Complete | None = None
        names: set[str] = set()
        for x in self._variables(elements, leaf):
            product = _Product(x)
            self._cut(elements, leaf, product, DEPTH)
            if not product.is_new:
                continue
            if has_no_gradient(product.inside, [x]):
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

    def _variables(self, elements: Elementwise, leaf: Leaf) -> Iterator[Leaf]:
        """The entries that a product may depend on by a function, the nearest first."""
        seen: list[Leaf] = []
        pending = deque([(leaf, False, DEPTH)])
        while pending:
            entry, inside, depth = pending.popleft()
            assert isinstance(entry.value, Value)
            if inside:
                entry = elements.canonical(entry)
                if entry in seen:
                    continue
                seen.append(entry)
                if not _is_condition(entry):
                    yield entry
            for factor in (f for term in elements.step(entry, depth) or [] for f in term.factors):
                if isinstance(factor, Func):
                    pending += [(argument, True, depth - 1) for argument in factor.entries]
                elif isinstance(factor, Leaf) and factor.value in self._scores:
                    pending.append((factor, True, depth - 1))
                elif isinstance(factor, Leaf) and (inside or factor.value in self._curved):
                    pending.append((factor, inside, depth - 1))

    def _cut(self, elements: Elementwise, leaf: Leaf, product: _Product, depth: int) -> None:
        """Multiply an entry in: what depends on ``product.x`` only goes inside, the rest beside it."""
        path: list[Leaf] = []
        expression = elements.expression(leaf, (product.x,), path)
        if expression is not None:
            return product.take(expression, path)
        parts = _Product(product.x, path=[leaf])
        match elements.step(leaf, depth):
            case [Term(coefficient, factors, ())] if not any(isinstance(f, Delta) for f in factors):
                for factor in factors:
                    path = []
                    if isinstance(factor, Leaf):
                        self._cut(elements, factor, parts, depth - 1)
                    elif (call := elements.expression(factor, (product.x,), path)) is not None:
                        parts.take(call, path, count=2)
                    else:
                        parts.rest.append(factor)
                if parts.count:
                    product.take(Number(coefficient) * parts.inside, parts.path, parts.count)
                    product.rest += parts.rest
                    return None
        product.rest.append(leaf)
        return None


def _is_condition(leaf: Leaf) -> bool:
    """Whether an entry is a condition, not a number."""
    return isinstance(leaf.value, Value) and leaf.value.dtype is torch.bool


def _operand(reader: Reader, factor: Factor) -> Factor | None:
    """A factor read through rearrangements; None of a zero."""
    if isinstance(factor, Func):
        return Func(factor.name, *(reader.operand(entry) or entry for entry in factor.entries))
    return reader.operand(factor) if isinstance(factor, Leaf) else factor
