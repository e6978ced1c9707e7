"""The position along one dimension: a constant plus digits of a mixed-radix number.

Views, permutations, slices, chunks and expansions only rearrange digits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mhf_compile.notation.sizes import Size, at_most, quotient, size_of, times


class Unreadable(Exception):
    """An operation whose meaning has no index notation here; its result is a leaf."""


_serial = itertools.count()


class Axis:
    """An axis of iteration, 0 <= axis < size. Axes are equal only to themselves.

    ``pieced`` is one that was put together from pieces, or read in pieces, whose sizes are numbers in the
    program.
    """

    __slots__ = ("name", "pieced", "size")

    def __init__(self, size: Size, name: str = "", pieced: bool = False) -> None:
        self.size = size
        self.pieced = pieced
        self.name = name or f"a{next(_serial)}"

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


Split = Callable[[Axis, Size], Index]
"""split(axis, low): cut an axis into two digits, the lower of size low, everywhere."""


def divide(index: Index, size: Size, split: Split) -> tuple[Index, Index]:
    """(high, low) with ``index = high * size + low`` and ``0 <= low < size`` for all axes.

    Raises Unreadable where the digits do not fall apart at ``size``.
    """
    if size == 0:
        raise Unreadable("a dimension of size 0")
    high: list[Digit] = []
    low: list[Digit] = []
    for stride, axis in index.digits:
        step = quotient(stride, size)
        if step is not None:
            high.append((step, axis))
        elif at_most(times(stride, axis.size), size):
            low.append((stride, axis))
        else:
            radix = quotient(size, stride)
            if radix is None or quotient(axis.size, radix) is None:
                raise Unreadable(f"{axis} of size {axis.size} is cut at {size}")
            (_, upper), (_, lower) = split(axis, radix).digits
            high.append((1, upper))
            low.append((stride, lower))
    if index.offset == 0:
        carry, rest = 0, 0
    elif isinstance(index.offset, int) and isinstance(size, int):
        carry, rest = divmod(index.offset, size)
    else:
        raise Unreadable("a symbolic offset")
    remainder = Index(rest, tuple(low))
    if not at_most(remainder.last, size_of(size - 1)):
        raise Unreadable(f"{remainder} runs past {size}")
    return Index(carry, tuple(high)), remainder


def unflatten(index: Index, shape: Sequence[Size], split: Split) -> tuple[Index, ...]:
    """The indices in a shape of a row-major position. Raises Unreadable."""
    indices: list[Index] = []
    for size in reversed(shape[1:]):
        index, low = divide(index, size, split)
        indices.append(low)
    return (index, *reversed(indices)) if shape else ()
