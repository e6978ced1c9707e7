"""Build the operands of an op from the leaves of a match, and the root from the op's result.

The same steps are taken on graph nodes, to rewrite, and on tensors, to prove: what is proved is what runs.
Operands are views of the leaves wherever strides allow.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, TypeVar

import torch

from mhf_compile import notation
from mhf_compile.matching.match import Match
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.matching.unify import Operand
from mhf_compile.notation import Axis, Index, Leaf, Size
from mhf_compile.notation.fold import Stacked, parts
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
        tensor: the tensor of a value.
        extent: the size of an axis, a number or what ``call`` takes for one.
        scaled: a tensor times a number.
    """

    call: Callable[..., T]
    tensor: Callable[[Value], T]
    extent: Callable[[Axis], Any]
    scaled: Callable[[T, Fraction], T]

    def operand(self, operand: Operand, match: Match) -> T:
        """An operand of the op, each of its dimensions running over its axes."""
        if not operand.entries:
            return self._broadcast(self._number(operand.addend, match), [], operand.dims, True)
        first, *others = (
            *(self.entry(leaf, operand.dims) for leaf in operand.leaves),
            *(self.call("reciprocal", self.entry(leaf, operand.dims)) for leaf in operand.divisors),
        )
        for other in others:
            first = self.call("mul", first, other)
        if operand.coefficient != 1:
            first = self.scaled(first, operand.coefficient)
        if operand.addend:
            number = self._number(operand.addend, match)
            first = self.call("add", first, self._broadcast(number, [], operand.dims, True))
        return first

    def _number(self, number: Fraction, match: Match) -> T:
        """A number as a tensor without dimensions, in float64: leaves may have less than the op's dtype."""
        value = next(value for leaf in match.leaves for value in parts(leaf.value))
        ones = self.call("double", self.call("new_ones", self.tensor(value), ()))
        return self.scaled(ones, number)

    def root(self, result: T, match: Match) -> T:
        """The value that a match replaces, from the op's result."""
        groups = match.unification.result
        for dim in reversed(range(len(groups))):
            if not groups[dim]:
                result = self.call("squeeze", result, dim)
            elif len(groups[dim]) > 1:
                result = self.call("unflatten", result, dim, self._sizes(groups[dim]))
        wanted = [index.axes for index in match.index]
        result = self._arranged(result, [axis for group in groups for axis in group], wanted)
        for term in match.addends:
            summed = (*wanted, term.bound) if term.bound else wanted
            addend, *others = (
                self.entry(leaf, summed, expand=False) for leaf in notation.leaves(term.factors)
            )
            for other in others:
                addend = self.call("mul", addend, other)
            addend = self.call("sum", addend, -1) if term.bound else addend
            addend = addend if term.coefficient == 1 else self.scaled(addend, term.coefficient)
            result = self.call("add", result, addend)
        return result

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
