"""What a proof of a match proves, said without names: equal regions that are read alike are proved once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mhf_compile import notation
from mhf_compile.matching.match import Match
from mhf_compile.notation import Axis, Factor, Index, Leaf, Term
from mhf_compile.notation.fold import Stacked
from mhf_compile.rewriting.region import Region, joined
from mhf_compile.rewriting.replay import computed_alike
from mhf_compile.rewriting.rest import Rest
from mhf_compile.tape.values import Op, Value, convert


def claim(match: Match, region: Region) -> object:
    """The operations of a region with all their arguments, and all that a rewrite takes from its reading.

    Two matches of equal claims are rewritten alike, in place of alike computations: a proof of one is a proof
    of the other.
    """
    return _Claim(match, region).whole()


class _Claim:
    def __init__(self, match: Match, region: Region) -> None:
        self.match = match
        self.region = region
        self.leaves = region.leaves
        inside = {*region.values, *joined(region.leaves)}
        self.values = sorted(inside, key=lambda value: value.time)
        self.known = [*inside, *region.leaves]
        self.names: dict[Value, int] = {}
        self.axes: dict[Axis, int] = {}

    def whole(self) -> object:
        match, unification = self.match, self.match.unification
        operations = tuple(
            (
                value.op.func,
                value.op.name,
                value.output,
                value.op.state.grad_enabled,
                self.arguments(value.op),
                self.name(value),
            )
            for value in self.values
            if value.op is not None
        )
        operands = tuple(
            (
                name,
                tuple(map(self.term, operand.terms)),
                tuple(map(self.leaf, operand.twins)),
                tuple(map(self.group, operand.dims)),
            )
            for name, operand in unification.operands.items()
        )
        return (
            match.pattern,
            operations,
            self.name(match.root),
            tuple(map(self.index, match.index)),
            operands,
            tuple(map(self.group, unification.result)),
            tuple((role, self.group(axes)) for role, axes in unification.roles.items()),
            unification.activation,
            tuple(unification.scalars.items()),
            tuple(map(self.factor, unification.behind)),
            tuple(map(self.term, match.addends)),
            tuple(map(self.rest, self.region.rests)),
        )

    def rest(self, rest: Rest) -> object:
        """What stays of a product, and how it is read."""
        steps = tuple(
            (op.func, value.output, self.arguments(op), self.name(value), tuple(map(self.index, index)))
            for value, index in rest.between.items()
            if (op := value.op) is not None
        )
        wanted = tuple(
            (self.name(value), tuple(map(self.index, index)), tuple(map(self.index, leaf.index)))
            for value, (index, leaf) in rest.wanted.items()
        )
        return self.name(rest.columns.whole), tuple(map(self.term, rest.terms)), steps, wanted

    def arguments(self, op: Op) -> object:
        return convert((op.args, tuple(op.kwargs.items())), self.argument)

    def argument(self, item: Any) -> object:
        if isinstance(item, Value):
            return self.name(item)
        if isinstance(item, Op):  # the view that is written through
            return item.func, item.name, convert(item.args[1:], self.argument)
        return type(item), item

    def name(self, value: Value) -> object:
        """A value by a number, one outside of the region by that of the value inside that it equals."""
        if value not in self.names:
            twin = None
            if value not in self.known:
                twin = next((known for known in self.known if computed_alike(known, value)), None)
            if twin is not None:
                return "equals", self.name(twin)
            self.names[value] = len(self.names)
        return self.names[value], value.shape, value.dtype, value.requires_grad, value in self.leaves

    def index(self, index: Index) -> object:
        numbers = (
            (stride, self.axes.setdefault(axis, len(self.axes)), axis.size, axis in self.match.pieced)
            for stride, axis in index.digits
        )
        return index.offset, tuple(numbers)

    def group(self, axes: Iterable[Axis]) -> object:
        return tuple(self.axes.setdefault(axis, len(self.axes)) for axis in axes)

    def tensor(self, value: Any) -> object:
        return tuple(map(self.tensor, value.parts)) if isinstance(value, Stacked) else self.name(value)

    def leaf(self, leaf: Leaf) -> object:
        return self.tensor(leaf.value), tuple(map(self.index, leaf.index))

    def factor(self, factor: Factor) -> object:
        """A leaf, or the reciprocal of one."""
        (leaf,) = notation.leaves((factor,))
        return type(factor), self.leaf(leaf)

    def term(self, term: Term) -> object:
        """A product of leaves and reciprocals of leaves."""
        return term.coefficient, tuple(map(self.factor, term.factors)), self.group(term.bound)
