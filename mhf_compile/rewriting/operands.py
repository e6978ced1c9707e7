"""Build the operands of an op from the leaves of a match, and the root from the op's result.

The same steps are taken on graph nodes, to rewrite, and on tensors, to prove: what is proved is what runs.
Operands are views of the leaves wherever strides allow.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Generic, TypeVar

import torch

from mhf_compile.matching.match import Match
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.matching.unification import Operand
from mhf_compile.notation import Axis, Factor, Func, Index, Leaf, Size, Term
from mhf_compile.notation.fold import Stacked, parts
from mhf_compile.rewriting.rest import Rest
from mhf_compile.tape.values import Value

T = TypeVar("T")

Groups = Sequence[tuple[Axis, ...]]


def check_places(index: Index, size: Size) -> None:
    """Raise NoMatch where a part of a dimension is read, and which one is known only as symbols."""
    numbers = (size, index.offset, *(n for step, over in index.digits for n in (step, over.size)))
    if index.digits and not index.covers(size) and not all(isinstance(number, int) for number in numbers):
        raise NoMatch(f"an operand is read at symbolic positions ({index} of {size})")


@dataclass(frozen=True)
class Builder(Generic[T]):
    """Takes the steps of a rewrite on some kind of tensor.

    Attributes:
        call: call a function, or a method by its name, on tensors of the kind.
        matmul: the product of two matrices, or of batches of them.
        tensor: the tensor of a value, or of the columns of one.
        extent: the size of an axis, a number or what ``call`` takes for one.
        scaled: a tensor times a number.
    """

    call: Callable[..., T]
    matmul: Callable[[T, T], T]
    tensor: Callable[[Any], T]
    extent: Callable[[Axis], Any]
    scaled: Callable[[T, Fraction], T]

    def operand(self, operand: Operand, match: Match) -> T:
        """An operand of the op, each of its dimensions running over its axes."""
        return self._sum(operand.terms, operand.dims, match)

    def columns(self, rest: Rest, match: Match) -> T:
        """What stays of a product of which a match stands for a part."""
        return self._sum(rest.terms, [index.axes for index in rest.index], match)

    def wanted(self, rest: Rest, columns: T) -> dict[Value, T]:
        """The values that the program reads of what stays of a product."""
        within = replace(self, tensor=lambda value: columns if value is rest.columns else self.tensor(value))
        return {
            value: within.entry(leaf, [i.axes for i in index]) for value, (index, leaf) in rest.wanted.items()
        }

    def _sum(self, terms: Sequence[Term], groups: Groups, match: Match) -> T:
        """A sum of products with one dimension for each group of axes."""
        first, *others = (self.term(term, groups, match) for term in terms)
        for other in others:
            first = self.call("add", first, other)
        return first

    def root(self, result: T, match: Match) -> T:
        """The value that a match replaces, from the op's result."""
        groups = match.unification.result
        axes = [axis for group in groups for axis in group]
        for dim in reversed(range(len(groups))):
            result = self._ungrouped(result, dim, groups[dim])
        wanted = [index.axes for index in match.index]
        for dim in reversed(range(len(axes))):
            if not any(axes[dim] in group for group in wanted):  # results of heads that are added up
                result = self.call("sum", result, dim)
                del axes[dim]
        result = self._arranged(result, axes, wanted)
        for factor in match.unification.behind:
            result = self.call("mul", result, self.term(Term(factors=(factor,)), wanted, match, expand=False))
        for addend in match.addends:
            result = self.call("add", result, self.term(addend, wanted, match, expand=False))
        return result

    def term(self, term: Term, groups: Groups, match: Match, expand: bool = True) -> T:
        """A product, summed over what it binds, with one dimension for each group of axes.

        Axes that it lacks are broadcast; they are of size 1 where not expanded.
        """
        if not term.factors:
            return self._broadcast(self._number(term.coefficient, match), [], groups, expand)
        bound = set(term.bound)
        first, *others = term.factors
        if not others and not bound:
            tensor = self.factor(first, groups, expand)
        else:
            tensor, axes = self._flat(first)
            for position, factor in enumerate(others, start=1):
                later = {axis for after in others[position:] for axis in after.axes}
                tensor, axes = self._multiplied((tensor, axes), self._flat(factor), bound - later)
            for dim in reversed([dim for dim, axis in enumerate(axes) if axis in bound]):
                tensor = self.call("sum", tensor, dim)
                del axes[dim]
            tensor = self._broadcast(tensor, axes, groups, expand)
        return tensor if term.coefficient == 1 else self.scaled(tensor, term.coefficient)

    def factor(self, factor: Factor, groups: Groups, expand: bool = True) -> T:
        """A leaf, or the reciprocal of one, with one dimension for each group of axes."""
        match factor:
            case Leaf():
                return self.entry(factor, groups, expand)
            case Func("reciprocal", (Leaf() as leaf,)):
                return self.call("reciprocal", self.entry(leaf, groups, expand))
        raise AssertionError(f"{factor} in an operand")

    def _flat(self, factor: Factor) -> tuple[T, list[Axis]]:
        """A factor with one dimension for each of its axes, and these."""
        axes = list(factor.axes)
        return self.factor(factor, [(axis,) for axis in axes]), axes

    def _multiplied(
        self, a: tuple[T, list[Axis]], b: tuple[T, list[Axis]], summed: Collection[Axis]
    ) -> tuple[T, list[Axis]]:
        """The product of two tensors of some axes, summed over those of them that both have."""
        inner = tuple(axis for axis in a[1] if axis in b[1] and axis in summed)
        shared = tuple(axis for axis in a[1] if axis in b[1] and axis not in inner)
        left = tuple(axis for axis in a[1] if axis not in b[1])
        right = tuple(axis for axis in b[1] if axis not in a[1])
        if not inner:
            axes = [*a[1], *right]
            both = (self._broadcast(*one, [(axis,) for axis in axes], False) for one in (a, b))
            return self.call("mul", *both), axes
        result = self.matmul(
            self._broadcast(*a, [shared, left, inner], False),
            self._broadcast(*b, [shared, inner, right], False),
        )
        for dim, group in reversed(list(enumerate([shared, left, right]))):
            result = self._ungrouped(result, dim, group)
        return result, [*shared, *left, *right]

    def _number(self, number: Fraction, match: Match) -> T:
        """A number as a tensor without dimensions, in float64: leaves may have less than the op's dtype."""
        value = next(value for leaf in match.leaves for value in parts(leaf.value))
        ones = self.call("double", self.call("new_ones", self.tensor(value), ()))
        return self.scaled(ones, number)

    def _ungrouped(self, tensor: T, dim: int, group: tuple[Axis, ...]) -> T:
        """A tensor with a dimension for each axis of a group that is one of its dimensions."""
        if not group:
            return self.call("squeeze", tensor, dim)
        return tensor if len(group) == 1 else self.call("unflatten", tensor, dim, self._sizes(group))

    def entry(self, leaf: Leaf, groups: Groups, expand: bool = True) -> T:
        """A leaf with one dimension for each group of axes; axes it lacks are broadcast."""
        tensor = self._whole(leaf.value)
        axes: list[Axis] = []
        for dim in reversed(range(len(leaf.index))):
            tensor, own = self._spread(tensor, dim, leaf.index[dim], leaf.value.shape[dim])
            axes = [*own, *axes]
        return self._broadcast(tensor, axes, groups, expand)

    def _broadcast(self, tensor: T, axes: list[Axis], groups: Groups, expand: bool) -> T:
        """A tensor of some axes with one dimension for each group of them; the others are broadcast."""
        for group in groups:
            for axis in group:
                if axis not in axes and (expand or any(other in axes for other in group)):
                    tensor = self.call("unsqueeze", tensor, 0)
                    tensor = self.call("expand", tensor, self.extent(axis), *[-1] * len(axes))
                    axes = [axis, *axes]
        return self._arranged(tensor, axes, [tuple(a for a in group if a in axes) for group in groups])

    def _whole(self, value: Any) -> T:
        if isinstance(value, Stacked):
            return self.call(torch.stack, [self._whole(part) for part in value.parts])
        return self.tensor(value)

    def _spread(self, tensor: T, dim: int, index: Index, size: Size) -> tuple[T, list[Axis]]:
        """A tensor with one dimension for each axis of an index in place of a dimension."""
        if not index.digits:
            if isinstance(size, int) and size == 1:  # its gradient is a view, that of a selection a copy
                return self.call("squeeze", tensor, dim), []
            return self.call("select", tensor, dim, index.offset), []
        if index.covers(size):
            sizes = self._sizes(index.axes)
            return (tensor if len(sizes) == 1 else self.call("unflatten", tensor, dim, sizes)), list(
                index.axes
            )
        check_places(index, size)
        (stride, axis), *rest = index.digits
        stride, offset, count = int(stride), int(index.offset), int(axis.size)
        before = (slice(None),) * dim
        if not rest:
            kept = slice(offset, offset + (count - 1) * stride + 1, stride)
            return self.call(operator.getitem, tensor, (*before, kept)), [axis]
        # Where steps may start that hold what is read and do not run past either end: if aligned, there.
        spare = stride - 1 - int(Index(0, tuple(rest)).last)
        first, last = max(offset - spare, 0), min(offset, int(size) - count * stride)
        if first > last:
            raise NoMatch(f"an operand is no strided view ({index} of {size})")
        aligned = offset // stride * stride
        start = aligned if first <= aligned <= last else last
        tensor = self.call(operator.getitem, tensor, (*before, slice(start, start + count * stride)))
        tensor = self.call("unflatten", tensor, dim, (count, stride))
        tensor, inner = self._spread(tensor, dim + 1, Index(offset - start, tuple(rest)), stride)
        return tensor, [axis, *inner]

    def _arranged(self, tensor: T, axes: Sequence[Axis], groups: Groups) -> T:
        """A tensor of some axes with one dimension for each group of them."""
        order = [axes.index(axis) for group in groups for axis in group]
        if order != sorted(order):
            tensor = self.call("permute", tensor, *order)
        for dim, group in enumerate(groups):
            if not group:
                tensor = self.call("unsqueeze", tensor, dim)
            elif len(group) > 1:
                tensor = self.call("flatten", tensor, dim, dim + len(group) - 1)
        return tensor

    def _sizes(self, axes: Sequence[Axis]) -> tuple[Any, ...]:
        """Sizes to cut a dimension into; the first symbolic one is left for PyTorch to find."""
        sizes: list[Any] = []
        for axis in axes:
            known = isinstance(axis.size, int) or -1 in sizes
            sizes.append(self.extent(axis) if known else -1)
        return tuple(sizes)
