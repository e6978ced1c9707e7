"""Which values of a tape are scores: products that are summed over an axis, or linear in one."""

from __future__ import annotations

from mhf_compile import notation
from mhf_compile.reading.numbering import ValueNumbering
from mhf_compile.reading.rules import ELEMENTWISE, RULES, Kind, Rule, kind_of
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Op, Value


class Scores:
    """The scores among the values that were visited, in the order of the tape.

    Attributes:
        contracted: of each score what is multiplied in it.
    """

    def __init__(self, tape: Tape, numbering: ValueNumbering) -> None:
        self.contracted: dict[object, frozenset[Value]] = {}
        self._sources: dict[Value, frozenset[Value]] = {}
        self._numbering = numbering
        self._hints = tape.hints

    def __contains__(self, value: object) -> bool:
        return value in self.contracted

    def visit(self, value: Value, op: Op, rule: Rule) -> None:
        """Note what a value is."""
        if self._is_score(op):
            is_product = rule.kind in (Kind.CONTRACT, Kind.SUM)
            made = (self.sources(v) if is_product else self.contracted.get(v, frozenset()) for v in op.inputs)
            self.contracted[value] = frozenset[Value]().union(*made)
        if rule.kind in ELEMENTWISE | {Kind.JOIN}:
            inputs = op.inputs if rule.kind is not Kind.CONSTANT else ()
            self._sources[value] = frozenset[Value]().union(*map(self.sources, inputs))

    def sources(self, value: Value) -> frozenset[Value]:
        """What a value is made of, element by element."""
        return self._sources.get(value, frozenset([self._numbering.first[value]]))

    def _is_score(self, op: Op) -> bool:
        kind, inputs = RULES[op.name].kind, op.inputs
        match kind:
            case Kind.CONTRACT:
                return True
            case Kind.SUM:
                return any(kind_of(value.op) is Kind.MULTIPLY for value in inputs)
            case Kind.MULTIPLY | Kind.DIVIDE if len(inputs) > 1:
                first, second = inputs
                pairs = [(first, second), (second, first)] if kind is Kind.MULTIPLY else [(first, second)]
                return any(score in self and self._is_factor(other, score) for score, other in pairs)
            case Kind.ADD:
                return any(v in self for v in inputs) and not any(map(self._is_function, inputs))
            case Kind.MOVE | Kind.MULTIPLY | Kind.DIVIDE:
                return any(v in self for v in inputs)
        return kind is Kind.JOIN and all(v in self for v in inputs)

    def _is_factor(self, value: Value, score: Value) -> bool:
        """Whether a value is made of weights alone, fewer than there are scores, or of numbers."""
        sources = self.sources(value)
        fewer = self._entries(value) < self._entries(score)
        return not sources or (fewer and all(source.op is None for source in sources))

    def _is_function(self, value: Value) -> bool:
        """Whether a value is a function of scores that is none itself, and so no bias of another one."""
        return value not in self and any(source in self for source in self.sources(value))

    def _entries(self, value: Value) -> int:
        return notation.known(notation.product(value.shape), self._hints)
