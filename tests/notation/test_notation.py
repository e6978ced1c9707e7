"""The arithmetic of indices, by brute force over the values of their axes."""

import itertools
import math
from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from mhf_compile import notation
from mhf_compile.notation import Axis, Delta, Func, Index, Leaf, Term, Unreadable
from tests.evaluate import position

bounded = settings(max_examples=200, deadline=None, derandomize=True, database=None)
shapes = st.lists(st.integers(1, 6), max_size=4).map(tuple)
S = sympy.Symbol("s", integer=True, positive=True)
T = sympy.Symbol("t", integer=True, positive=True)


class Cuts:
    """Splits axes and remembers how."""

    def __init__(self) -> None:
        self.splits: dict[Axis, Index] = {}

    def __call__(self, axis: Axis, low: int) -> Index:
        high = notation.quotient(axis.size, low)
        self.splits[axis] = Index(0, ((low, Axis(high)), (1, Axis(low))))
        return self.splits[axis]

    def current(self, index: Index) -> Index:
        while any(axis in self.splits for axis in index.axes):
            index = index.substitute(self.splits)
        return index


def values(*indices: Index):
    """The positions of some indices for every value of all of their axes."""
    axes = list(dict.fromkeys(axis for index in indices for axis in index.axes))
    for point in itertools.product(*(range(axis.size) for axis in axes)):
        at = dict(zip(axes, point, strict=True))
        yield tuple(position(index, at) for index in indices)


def over(shape) -> tuple[Index, ...]:
    return tuple(Index.over(Axis(size)) for size in shape)


@st.composite
def indices(draw):
    """An index of a few digits, and a size that it stays below."""
    digits, stride = [], 1
    for size in draw(st.lists(st.integers(1, 4), max_size=3)):
        stride *= draw(st.integers(1, 3))
        digits.insert(0, (stride, Axis(size)))
        stride *= size
    index = Index(draw(st.integers(0, 5)), tuple(digits))
    return index, index.last + 1


@bounded
@given(shapes)
def test_flatten_is_the_row_major_position(shape):
    index = over(shape)
    flat = notation.flatten(index, shape)
    for number, (found, *_) in enumerate(values(flat, *index) if shape else [(position(flat, {}),)]):
        assert found == number
    assert flat.covers(math.prod(shape))


@bounded
@given(shapes)
def test_unflatten_is_the_inverse_of_flatten(shape):
    index = over(shape)
    found = notation.unflatten(notation.flatten(index, shape), shape, Cuts())
    for numbers in values(*index, *found):
        assert numbers[: len(shape)] == numbers[len(shape) :]


@bounded
@given(indices(), st.integers(1, 12))
def test_divide_gives_quotient_and_remainder_or_refuses(drawn, size):
    index, _ = drawn
    cuts = Cuts()
    try:
        high, low = notation.divide(index, size, cuts)
    except Unreadable:
        return
    for whole, quotient, remainder in values(*map(cuts.current, (index, high, low))):
        assert divmod(whole, size) == (quotient, remainder)


def test_divide_splits_an_axis_that_is_cut_and_refuses_one_that_is_torn():
    axis, cuts = Axis(6), Cuts()
    high, low = notation.divide(Index.over(axis), 2, cuts)
    assert [digit.size for digit in (*high.axes, *low.axes)] == [3, 2] and axis in cuts.splits
    with pytest.raises(Unreadable, match="is cut at 4"):
        notation.divide(Index.over(Axis(6)), 4, Cuts())
    with pytest.raises(Unreadable, match="runs past 4"):
        notation.divide(Index.over(Axis(4)).affine(1, 2), 4, Cuts())
    with pytest.raises(Unreadable):
        notation.divide(Index(2), 0, Cuts())


@bounded
@given(indices(), st.integers(1, 4), st.integers(0, 4))
def test_affine_and_last(drawn, stride, offset):
    index, _ = drawn
    moved = index.affine(stride, offset)
    found = [b for a, b in values(index, moved)]
    assert found == [offset + stride * a for (a,) in values(index)]
    assert moved.last == max(found)


@bounded
@given(indices())
def test_covers_says_whether_every_position_is_taken_once_in_order(drawn):
    index, size = drawn
    taken = [found for (found,) in values(index)]
    if index.covers(size):
        assert taken == list(range(size))
    elif all(axis.size > 1 for axis in index.axes):
        assert taken != list(range(size))


@bounded
@given(indices(), st.data())
def test_substitute_replaces_an_axis_by_its_digits(drawn, data):
    index, _ = drawn
    cuts = Cuts()
    for axis in index.axes:
        cuts(axis, data.draw(st.sampled_from([n for n in range(1, axis.size + 1) if axis.size % n == 0])))
    assert sorted(values(cuts.current(index))) == sorted(values(index))


@bounded
@given(indices(), st.integers(0, 60))
def test_deltas_are_one_where_an_index_equals_a_constant(drawn, constant):
    index, _ = drawn
    try:
        found = notation.deltas(index, constant)
    except (LookupError, Unreadable) as error:
        if isinstance(error, LookupError):
            assert all(number != constant for (number,) in values(index))
        return
    axes = list(index.axes)
    for point in itertools.product(*(range(axis.size) for axis in axes)):
        at = dict(zip(axes, point, strict=True))
        one = all(at[delta.axis] == position(delta.index, at) for delta in found)
        assert one == (position(index, at) == constant)


def test_deltas_of_digits_that_overlap_or_have_no_order_are_refused():
    with pytest.raises(Unreadable, match="mixed radix"):
        notation.deltas(Index(0, ((2, Axis(2)), (1, Axis(3)))), 2)
    with pytest.raises(Unreadable, match="symbolic"):
        notation.deltas(Index(S), 2)


# -- symbolic sizes ----------------------------------------------------------------------------------------


def test_symbolic_sizes_are_reshaped_without_asking_how_large_they_are():
    index, cuts = over((S, T, 6)), Cuts()
    flat = notation.flatten(index, (S, T, 6))
    assert flat.covers(6 * S * T)
    tokens, features = notation.unflatten(flat, (S * T, 6), cuts)
    assert features == index[2] and tokens == Index(0, ((T, index[0].axes[0]), (1, index[1].axes[0])))
    assert notation.unflatten(tokens, (S, T), cuts) == index[:2] and not cuts.splits


def test_a_symbolic_axis_is_cut_where_the_cut_divides_it():
    cuts = Cuts()
    high, low = notation.divide(Index.over(Axis(4 * S)), 4, cuts)
    assert [axis.size for axis in (*high.axes, *low.axes)] == [S, 4]
    with pytest.raises(Unreadable):
        notation.divide(Index.over(Axis(S)), 4, Cuts())


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (6, 3, 2),
        (6, 4, None),
        (6, 0, None),
        (6 * S, 3, 2 * S),
        (S * T, S, T),
        (S, 2, None),
        (6, S, None),
        (S * (S + 1), S + 1, S),
    ],
)
def test_quotient(a, b, expected):
    assert notation.quotient(a, b) == expected


def test_at_most_is_true_only_where_it_always_holds():
    assert notation.at_most(3, 3) and not notation.at_most(4, 3)
    assert notation.at_most(S, 2 * S) and notation.at_most(1, S)
    assert not notation.at_most(2, S) and not notation.at_most(S, T)


def test_size_of_gives_numbers_where_it_can():
    assert type(notation.size_of(sympy.Integer(3))) is int
    assert notation.size_of(S * 2 / 2) == S
    assert notation.product([2, S, 3]) == 6 * S and notation.product([]) == 1


# -- terms -------------------------------------------------------------------------------------------------


class Tensor:
    def __init__(self, name: str, *shape: int) -> None:
        self.name, self.shape = name, shape

    def __repr__(self) -> str:
        return self.name


def test_a_term_is_printed_as_its_equation():
    n, d, h = Axis(2, "n"), Axis(4, "d"), Axis(3, "h")
    q = Leaf(Tensor("Q", 2, 4), (Index.over(n), Index.over(d)))
    k = Leaf(Tensor("K", 13), (Index(1, ((4, h), (1, d))),))
    score = Term(Fraction(1, 2), (q, k), (d,))
    assert repr(score) == "sum_{d} 1/2 * Q[n, d] * K[4*h+d+1]"
    assert repr(Func("silu", (score,))) == f"silu({score})"
    assert repr(Func("identity", (score,))) == f"identity({score})"
    assert repr(Func("", (score,))) == f"({score})"  # no function, the sum itself
    assert repr(Term(factors=(Delta(h, Index(2)),))) == "[h=2]"
    assert repr(Term()) == "1" and notation.equation(()) == "0" and repr(Index()) == "0"
    assert notation.equation((score, Term(Fraction(-1)))) == f"{score} + -1"


def test_free_axes_are_those_not_summed():
    n, d, h = Axis(2), Axis(4), Axis(3)
    x = Leaf(Tensor("x", 2, 4), (Index.over(n), Index.over(d)))
    inner = Term(factors=(x,), bound=(d,))
    assert inner.free == (n,)
    assert Func("exp", (inner,)).axes == (n,)
    assert Term(factors=(Func("exp", (inner,)), Delta(h, Index(1)))).free == (n, h)
    assert list(notation.leaves((Func("exp", (inner,)), x))) == [x, x]


def test_substitute_replaces_axes_in_leaves_functions_deltas_and_bounds():
    n, d = Axis(4), Axis(6)
    high, low, upper, lower = Axis(2), Axis(2), Axis(3), Axis(2)
    x = Leaf(Tensor("x", 4, 6), (Index.over(n), Index.over(d)))
    term = Term(factors=(Func("exp", (Term(factors=(x,), bound=(d,)),)), Delta(n, Index(3))))
    found = notation.substitute(
        term, {n: Index(0, ((2, high), (1, low))), d: Index(0, ((2, upper), (1, lower)))}
    )
    function, *where = found.factors
    (inner,) = function.argument
    assert inner.bound == (upper, lower)
    assert [i.axes for i in inner.factors[0].index] == [(high, low), (upper, lower)]
    assert where == [Delta(high, Index(1)), Delta(low, Index(1))]


def test_substitute_follows_the_index_of_a_delta_and_refuses_to_cut_its_axis():
    h, a, high, low = Axis(4), Axis(4), Axis(2), Axis(2)
    term, cut = Term(factors=(Delta(h, Index.over(a)),), bound=(a,)), Index(0, ((2, high), (1, low)))
    found = notation.substitute(term, {a: cut})
    assert found.factors == (Delta(h, cut),) and found.bound == (high, low)
    with pytest.raises(Unreadable):
        notation.substitute(term, {h: cut})
