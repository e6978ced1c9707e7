"""The arithmetic of indices, by brute force over the values of their axes."""

import itertools
import math
from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from mhf_compile import notation
from mhf_compile.notation import Axes, Axis, Delta, Func, Index, Leaf, Term, Unreadable
from tests.evaluate import position

bounded = settings(max_examples=200, deadline=None, derandomize=True, database=None)
shapes = st.lists(st.integers(1, 6), max_size=4).map(tuple)
S = sympy.Symbol("s", integer=True, positive=True)
T = sympy.Symbol("t", integer=True, positive=True)


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
    found = Axes().unflatten(notation.flatten(index, shape), shape)
    for numbers in values(*index, *found):
        assert numbers[: len(shape)] == numbers[len(shape) :]


@bounded
@given(indices(), st.integers(1, 12))
def test_divide_gives_quotient_and_remainder_or_refuses(drawn, size):
    index, _ = drawn
    known = Axes()
    try:
        high, low = known.divide(index, size)
    except Unreadable:
        return
    for whole, quotient, remainder in values(*map(known.current, (index, high, low))):
        assert divmod(whole, size) == (quotient, remainder)


def test_divide_splits_an_axis_that_is_cut_and_refuses_one_that_is_torn():
    axis, known = Axis(6), Axes()
    high, low = known.divide(Index.over(axis), 2)
    assert [digit.size for digit in (*high.axes, *low.axes)] == [3, 2] and axis in known.cuts
    with pytest.raises(Unreadable, match="is cut at 4"):
        Axes().divide(Index.over(Axis(6)), 4)
    with pytest.raises(Unreadable, match="runs past 4"):
        Axes().divide(Index.over(Axis(4)).affine(1, 2), 4)
    with pytest.raises(Unreadable):
        Axes().divide(Index(2), 0)


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


@pytest.mark.parametrize(
    ("outer", "inner", "covers"), [(3, 1, True), (1, 2, False), (4, 1, False), (3, 2, False)]
)
def test_covers_looks_at_strides(outer, inner, covers):
    index = Index(0, ((outer, Axis(2)), (inner, Axis(3))))
    assert index.covers(6) == covers


@bounded
@given(indices(), st.data())
def test_substitute_replaces_an_axis_by_its_digits(drawn, data):
    index, _ = drawn
    known = Axes()
    for axis in index.axes:
        known.cut(
            axis, data.draw(st.sampled_from([n for n in range(1, axis.size + 1) if axis.size % n == 0]))
        )
    assert sorted(values(known.current(index))) == sorted(values(index))


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
    index, known = over((S, T, 6)), Axes()
    flat = notation.flatten(index, (S, T, 6))
    assert flat.covers(6 * S * T)
    tokens, features = known.unflatten(flat, (S * T, 6))
    assert features == index[2] and tokens == Index(0, ((T, index[0].axes[0]), (1, index[1].axes[0])))
    assert known.unflatten(tokens, (S, T)) == index[:2] and not known.cuts


def test_a_symbolic_axis_is_cut_where_the_cut_divides_it():
    known = Axes()
    high, low = known.divide(Index.over(Axis(4 * S)), 4)
    assert [axis.size for axis in (*high.axes, *low.axes)] == [S, 4]
    with pytest.raises(Unreadable):
        Axes().divide(Index.over(Axis(S)), 4)


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
    (inner,) = function.terms
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


def test_a_delta_follows_its_axis_where_that_is_renamed():
    h, a, other = Axis(4), Axis(4), Axis(4)
    term = Term(factors=(Delta(h, Index.over(a)),), bound=(a,))
    assert notation.substitute(term, {h: Index.over(other)}).factors == (Delta(other, Index.over(a)),)


def test_walk_visits_a_function_before_what_is_inside_it():
    n = Axis(2)
    x, y = (Leaf(Tensor(name, 2), (Index.over(n),)) for name in "xy")
    delta = Delta(n, Index(1))
    inner = Func("exp", x)
    outer = Func("silu", (Term(factors=(inner, y)),))
    assert list(notation.walk((outer, delta))) == [outer, inner, x, y, delta]


def test_mapped_replaces_leaves_deltas_and_bound_axes_in_the_order_of_walk():
    n, d, e = Axis(2), Axis(3), Axis(3)
    x, y = Leaf(Tensor("x", 2), (Index.over(n),)), Leaf(Tensor("y", 3), (Index.over(d),))
    delta = Delta(n, Index(1))
    term = Term(Fraction(3), (Func("exp", (Term(factors=(y,), bound=(d,)),)), delta, Func("abs", x)))
    visited = []

    def swapped(leaf: Leaf) -> Leaf:
        visited.append(leaf)
        return x if leaf is y else y

    found = notation.mapped(term, swapped, lambda delta: (delta, delta), lambda axis: (axis, e))
    assert visited == [y, x]
    inner = Func("exp", (Term(factors=(x,), bound=(d, e)),))
    assert found == Term(Fraction(3), (inner, delta, delta, Func("abs", y)))
    assert notation.mapped(term) == term


def test_numbered_terms_are_equal_if_they_differ_in_their_bound_axes_only():
    x = Tensor("x", 2, 3)
    n, m = Axis(2), Axis(2)

    def total(outer: Axis, inner: Axis, size: int = 3) -> Term:
        entry = Leaf(x, (Index.over(outer), Index.over(inner)))
        return Term(factors=(Func("exp", (Term(factors=(entry,), bound=(inner,)),)),), bound=(outer,))

    assert notation.numbered(total(n, Axis(3))) == notation.numbered(total(m, Axis(3)))
    assert notation.numbered(total(n, Axis(3))) != notation.numbered(total(n, Axis(4)))
    free = [Term(factors=(Leaf(x, (Index.over(axis), Index())),)) for axis in (n, m)]
    assert notation.numbered(free[0]) == free[0] != free[1]


def test_digits_of_an_axis_in_pieces_are_pieced_and_what_is_adopted_holds():
    whole, pieced, axes = Axis(6), Axis(6), Axes()
    axes.pieced.add(pieced)
    for axis in (whole, pieced):
        axes.divide(Index.over(axis), 2)
    assert axes.pieced == {pieced, *axes.current(Index.over(pieced)).axes}
    term = Term(factors=(Leaf(Tensor("x", 6), (Index.over(whole),)),), bound=(whole,))
    other = Axes()
    assert other.resolve(term) is term
    other.adopt(axes)
    assert other.resolve(term).bound == axes.cuts[whole].axes and other.pieced == axes.pieced


def test_reshape_leaves_dimensions_alone_that_nothing_goes_across():
    index, axes = over((2, 6, 4)), Axes()
    found = axes.reshape(index, (2, 6, 4), (2, 1, 3, 8))
    assert found[0] == index[0] and found[1] == Index() and list(axes.cuts) == [index[1].axes[0]]
    for a, b, c, d, _, e, f in values(*map(axes.current, (*index, *found))):
        assert (a * 6 + b) * 4 + c == (d * 3 + e) * 8 + f
