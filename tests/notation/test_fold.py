"""Loops, lists of modules and concatenations folded into axes."""

from itertools import permutations
from math import prod

import numpy as np
import pytest
import sympy
import torch
from torch.nn import functional as F

from mhf_compile.notation import Axis, Delta, Index, Leaf, Term, leaves
from mhf_compile.notation.fold import Stacked, fold
from tests.evaluate import Program, check, program


def folded(function, *shapes) -> tuple[Program, list[Term], tuple[Index, ...]]:
    """A program with its terms folded, checked to be what it computes."""
    found = program(function, *shapes)
    terms, cuts = fold(found.terms)
    found.reader.axes.adopt(cuts)
    terms = [found.reader.axes.resolve(term) for term in terms]
    index = tuple(found.reader.axes.current(i) for i in found.index)
    check(found, terms, index)
    return found, terms, index


def deltas(term: Term) -> list[Delta]:
    return [factor for factor in term.factors if isinstance(factor, Delta)]


def sizes(term: Term) -> list[int]:
    return sorted(axis.size for axis in term.bound)


def test_a_loop_over_slices_is_a_sum_over_an_axis():
    _, (term,), _ = folded(lambda x, w: sum(x[i] * w[i] for i in range(4)), (4, 2), (4, 2))
    assert sizes(term) == [4]
    assert {leaf.index[0].axes for leaf in leaves(term.factors)} == {term.bound}


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [2, 3, 0, 1], [3, 2, 1, 0]])
def test_the_order_of_a_loop_does_not_matter(order):
    _, (term,), _ = folded(lambda x, w: sum(x[i] * w[i] for i in order), (4, 2), (4, 2))
    assert sizes(term) == [4]


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_tensors_may_have_the_axes_of_loops_in_different_orders(order):
    def function(x, w):
        w = w.view(2, 3, 2, 5).permute(*order, 3)
        x = x.view(*w.shape)
        return sum(x[i, j, k] * w[i, j, k] for k, j, i in np.ndindex(*w.shape[2::-1]))

    _, (term,), _ = folded(function, (60,), (60,))
    assert prod(sizes(term)) == 12


def test_a_loop_that_accumulates_in_place_is_one():
    def function(x, w):
        out = torch.zeros(2, 2, dtype=x.dtype)
        for i in range(3):
            out += F.silu(x @ w[i])
        return out

    _, (term,), _ = folded(function, (2, 2), (3, 2, 2))
    assert sizes(term) == [3]


def test_a_loop_over_wider_slices_has_a_step():
    _, (term,), _ = folded(lambda x: sum(x[2 * i : 2 * i + 2] for i in range(3)), (6,))
    assert sizes(term) == [3]
    (leaf,) = leaves(term.factors)
    assert [stride for stride, _ in leaf.index[0].digits] == [2, 1]


def test_a_list_of_modules_is_one_stacked_tensor():
    found, (term,), _ = folded(lambda x, a, b, c: x @ a + x @ b + x @ c, (2, 3), *[(3, 2)] * 3)
    stacked = next(leaf.value for leaf in leaves(term.factors) if isinstance(leaf.value, Stacked))
    assert stacked.parts == tuple(found.inputs[1:]) and stacked.shape == (3, 3, 2)
    assert repr(stacked).startswith("stack(")
    assert sizes(term) == [3, 3]


def test_a_list_of_modules_reads_its_own_part_of_an_input():
    def function(x, *weights):
        return sum(chunk @ weight for chunk, weight in zip(x.chunk(2, -1), weights, strict=True))

    _, (term,), _ = folded(function, (2, 6), (3, 2), (3, 2))
    assert sizes(term) == [2, 3]


def test_divisors_are_part_of_a_progression():
    def function(x, *divisors):
        return sum(x[i] / (y * y + 1) for i, y in enumerate(divisors))

    _, (term,), _ = folded(lambda x, y: sum(x[i] / y[i] for i in range(3)), (3, 2), (3, 2))
    assert sizes(term) == [3]
    _, (term,), _ = folded(function, (3, 2), *[(2,)] * 3)
    assert sizes(term) == [3]


@pytest.mark.parametrize("join", [torch.cat, torch.stack])
def test_heads_that_are_joined_are_an_axis_of_the_result(join):
    def function(x, w):
        return join([x[:, i] @ w[i] for i in range(3)], dim=1)

    _, (term,), index = folded(function, (2, 3, 2), (3, 2, 2))
    assert deltas(term) == [] and sizes(term) == [2]
    assert [axis.size for i in index for axis in i.axes] == [2, 3, 2]


def test_heads_written_into_a_buffer_are_an_axis_of_the_result():
    def function(x, w):
        out = torch.zeros_like(x)
        for i in range(3):
            out[:, i] += x[:, i] @ w[i]
        return out

    _, (term,), _ = folded(function, (2, 3, 2), (3, 2, 2))
    assert deltas(term) == [] and sizes(term) == [2]


def test_heads_of_separate_modules_are_stacked():
    def function(x, a, b):
        return torch.cat([x @ a, x @ b], -1)

    _, (term,), index = folded(function, (2, 3), (3, 2), (3, 2))
    assert deltas(term) == [] and any(isinstance(leaf.value, Stacked) for leaf in leaves(term.factors))
    assert [stride for stride, _ in index[1].digits] == [2, 1]


@pytest.mark.parametrize("heads_outside", [True, False])
def test_two_loops_fold_in_either_order(heads_outside):
    def function(x, w):
        pairs = [(i, j) for i in range(2) for j in range(3)]
        pairs = pairs if heads_outside else sorted(pairs, key=lambda pair: pair[::-1])
        return sum(x[i] * w[i, j] for i, j in pairs)

    _, (term,), _ = folded(function, (2, 2), (2, 3, 2))
    assert sizes(term) == [2, 3]


def test_a_loop_over_subnetworks_in_each_of_several_heads():
    def function(x, w):
        return torch.stack([sum(x[:, h] @ w[h, e] for e in range(3)) for h in range(2)], 1)

    _, (term,), _ = folded(function, (2, 2, 2), (2, 3, 2, 2))
    assert deltas(term) == [] and sizes(term) == [2, 3]


def test_heads_that_share_weights_in_groups():
    def function(x, w):
        return torch.stack([x[:, h] @ w[h // 2] for h in range(4)], 1)

    _, terms, _ = folded(function, (2, 4, 2), (2, 2, 2))
    assert len(terms) == 1 and deltas(terms[0]) == []


def test_equal_terms_are_counted():
    _, (term,), _ = folded(lambda x: x + x + x, (2,))
    assert term.coefficient == 3 and term.bound == ()
    _, (term,), _ = folded(lambda x: x[0] + x[0] + x[1] + x[1], (2,))
    assert term.coefficient == 2 and sizes(term) == [2]


# Terms that are no progression: what must not be folded, and how many terms remain.
UNFOLDED = {
    "divisors that are no progression": (lambda x, y: x[0] / y[1] + x[1] / y[0], ((2,), (2,)), 2),
    "a divisor and a factor": (lambda x, y: x[0] / y[0] + x[1] * y[1], ((2,), (2,)), 2),
    "squares": (lambda x: x[0] + x[1] + x[4] + x[9], ((10,),), 4),
    "one twice": (lambda x: x[0] + x[0] + x[1], ((2,),), None),
    "other coefficients": (lambda x: x[0] + 2 * x[1], ((2,),), 2),
    "other functions": (lambda x: F.silu(x[0]) + torch.sigmoid(x[1]), ((2,),), 2),
    "other shapes": (lambda x, y: x.sum() + y.sum(), ((2,), (3,)), 2),
    "steps that differ": (lambda x, y: x[0] * y[0] + x[1] * y[2] + x[2] * y[3], ((3,), (4,)), 3),
    "steps in opposite directions": (lambda x, y: x[0] * y[1] + x[1] * y[0], ((2,), (2,)), 2),
    "heads that share unevenly": (lambda x: torch.stack([x[0], x[0], x[0], x[1]]), ((2,),), None),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_what_is_no_progression_is_left_as_it_is(name):
    function, shapes, count = UNFOLDED[name]
    _, terms, _ = folded(function, *shapes)
    assert len(terms) == count if count is not None else len(terms) > 1


PIECES = [(0, 2), (2, 5), (5, 6)]


@pytest.mark.parametrize(
    "pieces", [*permutations(PIECES), *permutations(PIECES[:2]), *permutations(PIECES[1:])]
)
def test_uneven_pieces_next_to_each_other_are_one_axis(pieces):
    def function(x, w):
        return sum(x[:, a:b] @ w[a:b] for a, b in pieces)

    _, (term,), _ = folded(function, (2, 6), (6, 3))
    assert sizes(term) == [sum(b - a for a, b in pieces)]


@pytest.mark.parametrize("pieces", [[(0, 2), (3, 6)], [(0, 3), (2, 4)], [(0, 1), (2, 5)], [(1, 4), (1, 2)]])
def test_uneven_pieces_that_are_apart_or_overlap_are_none(pieces):
    def function(x, w):
        return sum(x[:, a:b] @ w[a:b] for a, b in pieces)

    _, terms, _ = folded(function, (2, 6), (6, 3))
    assert len(terms) == 2


def test_uneven_pieces_of_other_tensors_are_none():
    _, terms, _ = folded(lambda x, w, y: x[:, :2] @ w[:2] + y[:, 2:5] @ w[2:5], (2, 6), (6, 3), (2, 6))
    assert len(terms) == 2


def test_a_diagonal_is_not_taken_for_the_whole():
    def function(x):
        out = torch.zeros(3, 3, dtype=x.dtype)
        for i in range(3):
            out[i, i] = x[i]
        return out

    _, terms, index = folded(function, (3,))
    assert len({axis for i in index for axis in i.axes}) == 2
    assert all(deltas(term) for term in terms)


def test_part_of_an_axis_is_not_taken_for_the_whole():
    def function(x):
        out = torch.zeros(4, dtype=x.dtype)
        for i in range(3):
            out[i] = x[i]
        return out

    _, terms, _ = folded(function, (3,))
    assert all(deltas(term) for term in terms)


def test_symbolic_positions_are_not_taken_for_tensors():
    size, axis = sympy.Symbol("s", integer=True, positive=True), Axis(2)
    tensor = Stacked((type("Part", (), {"shape": (4 * size,)})(),) * 2)
    terms = [Term(factors=(Leaf(tensor, (Index(0), Index(n * size, ((1, axis),)))),)) for n in (1, 2)]
    assert fold(terms)[0] == terms


def test_a_sum_inside_a_function_is_part_of_the_form():
    def function(x, w):
        return sum(F.silu((x * w[i]).sum() + w[i, 0]) for i in range(3))

    _, (term,), _ = folded(function, (2,), (3, 2))
    assert sizes(term) == [3]
