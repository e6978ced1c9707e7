"""The position along one dimension: a constant plus digits of a mixed-radix number.

Views, permutations, slices, chunks and expansions only rearrange digits.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mhf_compile.notation.sizes import Size, size_of, times


class Unreadable(Exception):
    """An operation whose meaning has no index notation here; its result is a leaf."""


_serial = itertools.count()


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """An axis of iteration, 0 <= axis < size. Axes are equal only to themselves."""

    size: Size
    name: str = field(default_factory=lambda: f"a{next(_serial)}")

    def __repr__(self) -> str:
        return self.name


Digit = tuple[Size, Axis]
"""(stride, axis): the axis counts in steps of stride."""


@dataclass(frozen=True, slots=True)
class Index:
    """The position ``offset + sum(stride * axis)`` along one dimension; digits most significant first."""

    offset: Size = 0
    digits: tuple[Digit, ...] = ()

    @staticmethod
    def over(axis: Axis) -> Index:
        """The index that runs along a whole dimension."""
        return Index(0, ((1, axis),))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes it runs over."""
        return tuple(axis for _, axis in self.digits)

    @property
    def last(self) -> Size:
        """The largest position the index takes."""
        span: Size = self.offset
        for stride, axis in self.digits:
            span = span + times(stride, axis.size) - stride
        return size_of(span)

    def affine(self, stride: Size = 1, offset: Size = 0) -> Index:
        """``offset + stride * self``."""
        if stride == 1 and offset == 0:
            return self
        digits = tuple((times(stride, s), axis) for s, axis in self.digits)
        return Index(size_of(offset + times(stride, self.offset)), digits)

    def covers(self, size: Size) -> bool:
        """Whether the index takes every position of a dimension exactly once, in order."""
        count: Size = 1
        for stride, axis in reversed(self.digits):
            if stride != count:
                return False
            count = times(count, axis.size)
        return self.offset == 0 and count == size

    def substitute(self, axes: Mapping[Axis, Index]) -> Index:
        """The index with some axes replaced by indices."""
        if not any(axis in axes for _, axis in self.digits):
            return self
        offset, digits = self.offset, list[Digit]()
        for stride, axis in self.digits:
            inner = axes[axis].affine(stride) if axis in axes else Index(0, ((stride, axis),))
            offset = size_of(offset + inner.offset)
            digits.extend(inner.digits)
        return Index(offset, by_stride(digits))

    def __repr__(self) -> str:
        parts = [f"{axis}" if stride == 1 else f"{stride}*{axis}" for stride, axis in self.digits]
        return "+".join(parts + [str(self.offset)] * (self.offset != 0 or not parts))


def by_stride(digits: Sequence[Digit]) -> tuple[Digit, ...]:
    """Digits most significant first; symbolic strides, which have no order, stay where they are."""
    if all(isinstance(stride, int) for stride, _ in digits):
        return tuple(sorted(digits, key=lambda digit: -digit[0]))
    return tuple(digits)


def flatten(indices: Sequence[Index], shape: Sequence[Size]) -> Index:
    """The row-major position of several indices in a shape."""
    offset: Size = 0
    digits: list[Digit] = []
    stride: Size = 1
    for index, size in zip(reversed(indices), reversed(shape), strict=True):
        scaled = index.affine(stride)
        offset = offset + scaled.offset
        digits = [*scaled.digits, *digits]
        stride = times(stride, size)
    return Index(size_of(offset), tuple(digits))
