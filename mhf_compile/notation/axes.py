"""The axes of a reading, as they are cut by now: a cut holds everywhere, in what was read before it too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from mhf_compile.notation.index import Axis, Digit, Index, Unreadable, flatten
from mhf_compile.notation.sizes import Size, at_most, quotient, size_of, times
from mhf_compile.notation.terms import Term, reindexed


class Axes:
    """What is known of the axes of one reading; the reader and its rules share it.

    A view that goes through an axis cuts it in two. What was read in terms of the whole axis stays true:
    ``current`` and ``resolve`` say it in terms of the digits.

    Attributes:
        cuts: an axis -> the index that it is, of its digits.
        pieced: the axes that are put together from pieces, or read in pieces, whose sizes are numbers in the
            program.
    """

    def __init__(self) -> None:
        self.cuts: dict[Axis, Index] = {}
        self.pieced: set[Axis] = set()

    def cut(self, axis: Axis, low: Size) -> Index:
        """Cut an axis into two digits, the lower one of size ``low``, which divides the axis' own."""
        high = quotient(axis.size, low)
        assert high is not None
        upper, lower = Axis(high), Axis(low)
        if axis in self.pieced:
            self.pieced |= {upper, lower}
        self.cuts[axis] = Index(0, ((low, upper), (1, lower)))
        return self.cuts[axis]

    def adopt(self, other: Axes) -> None:
        """Take over what became of these axes elsewhere, such as in ``fold``."""
        self.cuts |= other.cuts
        self.pieced |= other.pieced

    def current(self, index: Index) -> Index:
        """An index in terms of the axes as they are cut by now."""
        while any(axis in self.cuts for _, axis in index.digits):
            index = index.substitute(self.cuts)
        return index

    def resolve(self, term: Term) -> Term:
        """A term in terms of the axes as they are cut by now."""
        return reindexed(term, self.current) if self.cuts else term

    def divide(self, index: Index, size: Size) -> tuple[Index, Index]:
        """(high, low) with ``index = high * size + low`` and ``0 <= low < size`` for all axes.

        Cuts an axis that goes across. Raises Unreadable where the digits do not fall apart at ``size``.
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
                (_, upper), (_, lower) = self.cut(axis, radix).digits
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

    def unflatten(self, index: Index, shape: Sequence[Size]) -> tuple[Index, ...]:
        """The indices in a shape of a row-major position. Raises Unreadable."""
        indices: list[Index] = []
        for size in reversed(shape[1:]):
            index, low = self.divide(index, size)
            indices.append(low)
        return (index, *reversed(indices)) if shape else ()

    def reshape(
        self, index: tuple[Index, ...], shape: Sequence[Size], target: Sequence[Size]
    ) -> tuple[Index, ...]:
        """The same row-major position in another shape, by runs of dimensions that have as many entries.

        Raises Unreadable.
        """
        kept = [position for position, size in zip(index, shape, strict=True) if size != 1]
        shape = [size for size in shape if size != 1]
        goal = [size for size in target if size != 1]
        ends = {count: j for j, count in enumerate(accumulate(goal, times), 1) if count != 0}
        runs = [(i, ends[n]) for i, n in enumerate(accumulate(shape, times), 1) if n in ends]
        whole = len(shape), len(goal)
        moved: list[Index] = []
        for (i, j), (last, end) in pairwise([(0, 0), *(run for run in runs if run != whole), whole]):
            if last == i + 1 and end == j + 1:
                moved.append(kept[i])
            elif end > j:
                moved += self.unflatten(flatten(kept[i:last], shape[i:last]), goal[j:end])
        remaining = iter(moved)
        return tuple(Index() if size == 1 else next(remaining) for size in target)
