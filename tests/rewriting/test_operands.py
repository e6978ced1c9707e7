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

from mhf_compile.matching.reasons import NoMatch
from mhf_compile.matching.unify import Operand
from mhf_compile.notation import Axis, Index, Leaf, Term
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


@DRAWN
@given(st.data())
def test_an_operand_is_a_product_of_its_leaves_over_its_divisors_and_a_number(data: st.DataObject) -> None:
    token, head, network = axes = [Axis(n) for n in (2, 3, 4)]
    dims = data.draw(grouped(axes))

    def entry() -> Leaf:
        own = data.draw(st.permutations(axes))[: data.draw(st.integers(1, 3))]
        return Leaf(Named([axis.size for axis in own]), tuple(map(Index.over, own)))

    factors = [entry() for _ in range(data.draw(st.integers(0, 2)))]
    divisors = [entry() for _ in range(data.draw(st.integers(0, 1)))] if factors else []
    coefficient = data.draw(st.sampled_from([Fraction(1), Fraction(-3, 4)]))
    addend = data.draw(st.sampled_from([Fraction(0), Fraction(5, 2)]))
    operand = Operand(tuple(factors), tuple(dims), coefficient, divisors=tuple(divisors), addend=addend)
    built = BUILDER.operand(operand, SimpleNamespace(leaves=[entry()]))
    assert built.shape == shape(dims)
    for at in everywhere((token, head, network)):
        wanted = float(coefficient) * math.prod(by_hand(leaf, at) for leaf in factors) if factors else 0.0
        wanted = wanted / math.prod(by_hand(leaf, at) for leaf in divisors) + float(addend)
        assert float(built[place(dims, at)]) == pytest.approx(wanted, rel=1e-14)


@DRAWN
@given(st.data())
def test_the_root_is_the_result_rearranged_plus_what_is_added(data: st.DataObject) -> None:
    axes = [Axis(n) for n in data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))]
    groups, wanted = data.draw(grouped(axes)), data.draw(grouped(axes))
    result = Named(shape(groups))
    index = tuple(
        Index(0, tuple((math.prod(a.size for a in group[n + 1 :]), axis) for n, axis in enumerate(group)))
        for group in wanted
    )
    bound = tuple(Axis(n) for n in data.draw(st.lists(st.integers(2, 3), max_size=1)))

    def entry(must: Sequence[Axis]) -> Leaf:
        own = [*must, *data.draw(st.permutations(axes))[: data.draw(st.integers(0, len(axes)))]]
        own = data.draw(st.permutations(own))
        return Leaf(Named([axis.size for axis in own]), tuple(map(Index.over, own)))

    addends = [
        Term(data.draw(st.sampled_from([Fraction(1), Fraction(-2)])), (entry(bound), entry(())), bound)
        for _ in range(data.draw(st.integers(0, 2)))
    ]
    match: Any = SimpleNamespace(
        unification=SimpleNamespace(result=tuple(groups)), index=index, addends=tuple(addends)
    )
    built = BUILDER.root(result.tensor, match)
    assert built.shape == shape(wanted)
    for at in everywhere(axes):
        expected = float(result.tensor[place(groups, at)])
        for term in addends:
            for inner in everywhere(term.bound):
                product = math.prod(by_hand(leaf, {**at, **inner}) for leaf in term.factors)  # type: ignore
                expected += float(term.coefficient) * product
        assert float(built[tuple(position(i, at) for i in index)]) == expected
