"""Operands and the root as they are built: each entry is what indexing by hand reads of the leaves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mhf_compile import notation
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.matching.unification import Operand
from mhf_compile.notation import Axis, Factor, Func, Index, Leaf, Term
from mhf_compile.notation.fold import Stacked
from mhf_compile.rewriting.operands import Builder

DRAWN = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
At = Mapping[Axis, int]


class Named:
    """A value with a tensor; all entries of all values differ."""

    def __init__(self, shape: Sequence[int], first: int = 1) -> None:
        self.shape = tuple(shape)
        self.tensor = torch.arange(first, first + math.prod(shape), dtype=torch.float64).reshape(self.shape)


def call(function: str | Callable[..., Tensor], *args: Any) -> Tensor:
    return getattr(args[0], function)(*args[1:]) if isinstance(function, str) else function(*args)


BUILDER = Builder[Tensor](
    call,
    torch.matmul,
    lambda value: value.tensor,  # type: ignore[attr-defined]
    lambda axis: axis.size,
    lambda tensor, factor: tensor * float(factor),
)


def whole(value: Any) -> Tensor:
    return torch.stack([whole(part) for part in value.parts]) if isinstance(value, Stacked) else value.tensor


def position(index: Index, at: At) -> int:
    return index.offset + sum(stride * at[axis] for stride, axis in index.digits)


def by_hand(leaf: Leaf, at: At) -> float:
    return float(whole(leaf.value)[tuple(position(index, at) for index in leaf.index)])


def everywhere(axes: Iterable[Axis]) -> Iterable[At]:
    axes = list(axes)
    for numbers in itertools.product(*(range(axis.size) for axis in axes)):
        yield dict(zip(axes, numbers, strict=True))


def place(groups: Sequence[Sequence[Axis]], at: At) -> tuple[int, ...]:
    """Where an entry is in a tensor with a dimension for each group of axes."""
    found = []
    for group in groups:
        number = 0
        for axis in group:
            number = number * axis.size + at[axis]
        found.append(number)
    return tuple(found)


def shape(groups: Sequence[Sequence[Axis]]) -> tuple[int, ...]:
    return tuple(math.prod(axis.size for axis in group) for group in groups)


@st.composite
def indices(draw: st.DrawFn) -> tuple[Index, int]:
    """An index, its digits with gaps between them or none, and the size of the dimension."""
    digits: list[tuple[int, Axis]] = []
    extent = 1
    for _ in range(draw(st.integers(0, 3))):
        stride = extent + draw(st.sampled_from([0, 0, 0, 1, 2]))
        axis = Axis(draw(st.integers(1, 3)))
        digits.insert(0, (stride, axis))
        extent = stride * axis.size
    offset, spare = draw(st.sampled_from([0, 0, 1, 3])), draw(st.sampled_from([0, 0, 1, 4]))
    index = Index(offset, tuple(digits))
    return index, index.last + 1 + spare


@st.composite
def leaves(draw: st.DrawFn) -> Leaf:
    drawn = draw(st.lists(indices(), min_size=1, max_size=3))
    index, sizes = zip(*drawn, strict=True)
    if draw(st.booleans()):
        return Leaf(Named(sizes), index)
    count = draw(st.integers(1, 3))
    parts = tuple(Named(sizes, 1 + n * math.prod(sizes)) for n in range(count))
    return Leaf(Stacked(parts), (Index.over(Axis(count)), *index))


@st.composite
def grouped(draw: st.DrawFn, axes: Sequence[Axis]) -> list[tuple[Axis, ...]]:
    """Axes in any order, as the digits of some dimensions."""
    order = draw(st.permutations(axes))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=3)))
    return [tuple(order[a:b]) for a, b in itertools.pairwise([0, *cuts, len(order)])]


def is_a_view(leaf: Leaf) -> bool:
    """Whether every index runs over a whole dimension or has one digit: what any tensor can be cut into."""
    return all(
        len(index.digits) < 2 or index.covers(size)
        for index, size in zip(leaf.index, leaf.value.shape, strict=True)
    )


@DRAWN
@given(st.data())
def test_an_entry_is_what_is_read_of_it(data: st.DataObject) -> None:
    """Axes that the leaf lacks are broadcast; with few of them left out, a group has those that are there."""
    leaf = data.draw(leaves())
    lacking = [Axis(size) for size in data.draw(st.lists(st.integers(1, 3), max_size=2))]
    groups = data.draw(grouped([*leaf.axes, *lacking]))
    expand = data.draw(st.booleans())
    try:
        built = BUILDER.entry(leaf, groups, expand)
    except NoMatch as error:
        assert "is no strided view" in str(error) and not is_a_view(leaf)
        return
    if not expand:  # a dimension of nothing that the leaf has stays 1
        groups = [g if any(axis in leaf.axes for axis in g) else () for g in groups]
    assert built.shape == shape(groups)
    for at in everywhere([*leaf.axes, *lacking]):
        assert float(built[place(groups, at)]) == by_hand(leaf, at)


def test_most_entries_are_strided_views() -> None:
    """What is drawn above is mostly built, also where digits leave gaps."""
    built, gaps = 0, 0

    @DRAWN
    @given(leaves())
    def count(leaf: Leaf) -> None:
        nonlocal built, gaps
        try:
            BUILDER.entry(leaf, [leaf.axes])
        except NoMatch:
            return
        built += 1
        gaps += not is_a_view(leaf)

    count()
    assert built > 200 and gaps > 20


@pytest.mark.parametrize(
    ("offset", "digits", "size"),
    [
        (0, ((6, 3), (1, 4)), 18),  # each step holds two that are not read
        (2, ((6, 3), (1, 4)), 18),  # those come first
        (1, ((6, 3), (1, 4)), 18),  # on both sides
        (2, ((6, 3), (1, 4)), 20),  # the last step ends before the end
        (3, ((6, 2), (2, 3)), 15),  # and the inner step is 2
    ],
)
def test_steps_that_hold_more_than_is_read(offset: int, digits: Any, size: int) -> None:
    axes = [Axis(count) for _, count in digits]
    index = Index(offset, tuple((stride, axis) for (stride, _), axis in zip(digits, axes, strict=True)))
    leaf = Leaf(Named([size]), (index,))
    built = BUILDER.entry(leaf, [(axis,) for axis in axes])
    assert built.data_ptr() - leaf.value.tensor.data_ptr() == 8 * offset  # type: ignore[attr-defined]
    assert built.stride() == tuple(stride for stride, _ in digits)
    for at in everywhere(axes):
        assert float(built[tuple(at.values())]) == by_hand(leaf, at)


def test_steps_that_run_past_both_ends_are_no_view() -> None:
    outer, inner = Axis(3), Axis(4)
    leaf = Leaf(Named([16]), (Index(0, ((6, outer), (1, inner))),))
    with pytest.raises(NoMatch, match="no strided view"):
        BUILDER.entry(leaf, [(outer,), (inner,)])


def test_a_view_copies_nothing() -> None:
    outer, inner, dim = Axis(3), Axis(4), Axis(5)
    leaf = Leaf(Named([12, 5]), (Index(0, ((4, outer), (1, inner))), Index.over(dim)))
    built = BUILDER.entry(leaf, [(dim,), (outer,), (Axis(7),), (inner,)])
    assert built.shape == (5, 3, 7, 4) and built.stride() == (1, 20, 0, 5)
    assert built.data_ptr() == leaf.value.tensor.data_ptr()  # type: ignore[attr-defined]


@st.composite
def products(draw: st.DrawFn, axes: Sequence[Axis]) -> Term:
    """A number times a product of entries of some of the axes and one summed, and of reciprocals of such."""
    bound = [Axis(n) for n in draw(st.lists(st.integers(2, 3), max_size=1))]
    factors: list[Factor] = []
    for number in range(draw(st.integers(0, 3))):
        own = draw(st.permutations(axes))[: draw(st.integers(0, len(axes)))]
        own = draw(st.permutations([*own, *(bound if number == 0 or draw(st.booleans()) else [])]))
        leaf = Leaf(Named([axis.size for axis in own]), tuple(map(Index.over, own)))
        factors.append(Func("reciprocal", leaf) if draw(st.booleans()) else leaf)
    return Term(
        draw(st.sampled_from([Fraction(1), Fraction(-3, 4)])), tuple(factors), (*bound,) if factors else ()
    )


def sum_by_hand(terms: Iterable[Term], at: At) -> float:
    """What an entry of a sum of products is."""
    total = 0.0
    for term in terms:
        for inner in everywhere(term.bound):
            entries = [(f, next(notation.leaves((f,)))) for f in term.factors]
            values = [by_hand(leaf, {**at, **inner}) for _, leaf in entries]
            inverted = (
                1 / v if isinstance(f, Func) else v for (f, _), v in zip(entries, values, strict=True)
            )
            total += float(term.coefficient) * math.prod(inverted)
    return total


@DRAWN
@given(st.data())
def test_an_operand_is_a_sum_of_products(data: st.DataObject) -> None:
    token, head, network = axes = [Axis(n) for n in (2, 3, 4)]
    dims = data.draw(grouped(axes))
    terms = data.draw(st.lists(products(axes), min_size=1, max_size=3))
    operand = Operand(tuple(terms), tuple(dims))
    assert operand.entries == tuple(leaf for term in terms for leaf in notation.leaves(term.factors))
    assert set(operand.axes) == {axis for leaf in operand.entries for axis in leaf.axes if axis in axes}
    match: Any = SimpleNamespace(leaves=[Leaf(Named(()), ())])
    built = BUILDER.operand(operand, match)
    assert built.shape == shape(dims)
    for at in everywhere((token, head, network)):
        assert float(built[place(dims, at)]) == pytest.approx(sum_by_hand(terms, at), rel=1e-12)


@DRAWN
@given(st.data())
def test_the_root_is_the_result_rearranged_times_what_is_behind_plus_what_is_added(
    data: st.DataObject,
) -> None:
    axes = [Axis(n) for n in data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))]
    heads = [Axis(n) for n in data.draw(st.lists(st.integers(2, 3), max_size=1))]  # their results add up
    groups, wanted = data.draw(grouped([*axes, *heads])), data.draw(grouped(axes))
    result = Named(shape(groups))
    index = tuple(
        Index(0, tuple((math.prod(a.size for a in group[n + 1 :]), axis) for n, axis in enumerate(group)))
        for group in wanted
    )
    behind = tuple(f for term in data.draw(st.lists(products(axes), max_size=1)) for f in term.factors)
    behind = tuple(f for f in behind if set(f.axes) <= set(axes))
    addends = tuple(data.draw(st.lists(products(axes), max_size=2)))
    unification = SimpleNamespace(result=tuple(groups), behind=behind)
    match: Any = SimpleNamespace(
        unification=unification, index=index, addends=addends, leaves=[Leaf(Named(()), ())]
    )
    built = BUILDER.root(result.tensor, match)
    assert built.shape == shape(wanted)
    for at in everywhere(axes):
        entries = (float(result.tensor[place(groups, {**at, **inner})]) for inner in everywhere(heads))
        expected = sum(entries) * sum_by_hand([Term(factors=behind)], at) + sum_by_hand(addends, at)
        assert float(built[tuple(position(i, at) for i in index)]) == pytest.approx(expected, rel=1e-12)
