"""The distributive law keeps what a sum is, and finds what its products have in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhf_compile.matching.factoring import factored
from mhf_compile.notation import Axis, Factor, Func, Index, Leaf, Term, known

At = Mapping[Axis, int]
SIZES = {"n": 3, "d": 2, "f": 4, "r": 2}
N, D, F, R = (Axis(size, name) for name, size in SIZES.items())


class Named:
    """A tensor; entries of all differ."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.tensor: Tensor = torch.randn(shape, dtype=torch.float64)


def entry(value: Named, *axes: Axis) -> Leaf:
    return Leaf(value, tuple(map(Index.over, axes)))


def everywhere(axes: Sequence[Axis]) -> Iterator[dict[Axis, int]]:
    for numbers in itertools.product(*(range(known(axis.size, {})) for axis in axes)):
        yield dict(zip(axes, numbers, strict=True))


def value(factor: Factor, at: At) -> float:
    if isinstance(factor, Leaf):
        assert isinstance(factor.value, Named)
        return float(factor.value.tensor[tuple(at[axis] for axis in factor.axes)])
    assert isinstance(factor, Func)
    if factor.entries:
        return 1 / value(*factor.entries, at)
    inner = total(factor.terms, at)
    return math.tanh(inner) if factor.name else inner


def total(terms: Sequence[Term], at: At) -> float:
    return sum(
        float(term.coefficient) * math.prod(value(f, {**at, **inner}) for f in term.factors)
        for term in terms
        for inner in everywhere(term.bound)
    )


X, W, A, B, BIAS = Named(3, 2), Named(2, 4), Named(2, 2), Named(2, 4), Named(4)


def test_a_weight_and_an_update_of_low_rank_are_one_weight() -> None:
    d = Axis(2)
    full = Term(factors=(entry(X, N, D), entry(W, D, F)), bound=(D,))
    update = Term(Fraction(1, 2), (entry(B, R, F), entry(A, d, R), entry(X, N, d)), (R, d))
    bias = Term(factors=(entry(BIAS, F),))
    product, rest = factored([full, bias, update])
    assert rest == bias
    assert product.bound == (D,) and product.factors[0] == entry(X, N, D)
    (weight,) = (f for f in product.factors if isinstance(f, Func))
    assert weight.name == "" and set(weight.axes) == {D, F}
    assert [len(term.bound) for term in weight.terms] == [0, 1]
    for at in everywhere((N, F)):
        assert total([product, rest], at) == pytest.approx(total([full, bias, update], at), rel=1e-12)


def test_an_axis_of_one_term_is_not_taken_for_one_of_another() -> None:
    """A mean over the width, and a sum over the same axis."""
    hidden, values, other = Named(3, 4), Named(4), Axis(4)
    first = Term(factors=(entry(hidden, N, F), entry(values, F)), bound=(F,))
    mean = Term(Fraction(-1, 4), (entry(hidden, N, other), entry(values, F)), (F, other))
    (product,) = factored([first, mean])
    for at in everywhere((N,)):
        assert total([product], at) == pytest.approx(total([first, mean], at), rel=1e-12)


@st.composite
def products(draw: st.DrawFn, tensors: Sequence[Named]) -> Term:
    """A product of leaves and functions of free axes, and of axes of its own that it sums over."""
    bound = [Axis(SIZES[name]) for name in "dfr"]
    axes = {3: [N], 2: [*bound[::2], bound[0]], 4: [bound[1], F]}
    factors: list[Factor] = []
    for _ in range(draw(st.integers(2, 4))):
        tensor = draw(st.sampled_from(tensors))
        leaf = entry(tensor, *(draw(st.sampled_from(axes[size])) for size in tensor.shape))
        if len(set(leaf.axes)) < len(leaf.axes):
            continue
        kind = draw(st.sampled_from(["leaf", "leaf", "reciprocal", "tanh"]))
        inside = (Term(factors=(leaf,)),)
        factors.append({"leaf": leaf, "reciprocal": Func(kind, leaf), "tanh": Func(kind, inside)}[kind])
    used = {axis for factor in factors for axis in factor.axes}
    coefficient = draw(st.sampled_from([Fraction(1), Fraction(-3, 2)]))
    return Term(coefficient, tuple(factors), tuple(axis for axis in bound if axis in used))


@given(st.data())
def test_no_sum_changes(data: st.DataObject) -> None:
    tensors = [X, W, A, B, BIAS][: data.draw(st.integers(2, 5))]
    terms = data.draw(st.lists(products(tensors), min_size=1, max_size=3))
    found = factored(terms)
    assert len(found) <= len(terms)
    for at in everywhere((N, F)):
        assert total(found, at) == pytest.approx(total(terms, at), rel=1e-9, abs=1e-12)


def test_functions_are_not_added_up() -> None:
    """Two activations are two, whatever they are multiplied with."""
    gate = Term(factors=(entry(X, N, D), entry(W, D, F)), bound=(D,))
    up = entry(Named(3, 4), N, F)
    terms = [Term(factors=(Func(name, (gate,)), up), bound=(F,)) for name in ("silu", "gelu")]
    assert factored(terms) == terms
