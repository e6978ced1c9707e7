"""The oracle of the reader's tests finds what is wrong."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from mhf_compile.notation import Axis, Delta, Func, Index, Leaf, Term
from mhf_compile.notation.fold import Stacked
from mhf_compile.tape.recorder import record_function

from .evaluate import EPSILON, FUNCTIONS, Evaluation, Number, Unknown, check, program, replay


def product(x, w):
    return torch.nn.functional.silu(x @ w) * 2


def test_a_right_reading_passes_and_each_wrong_one_is_found():
    found = program(product, (2, 3), (3, 3))
    check(found)
    (term,) = found.terms
    (function,) = term.factors
    (score,) = function.terms
    transposed = [Leaf(leaf.value, leaf.index[::-1]) for leaf in score.factors[1:]]
    wrong = [
        replace(term, coefficient=Fraction(2) + Fraction(1, 2**40)),
        replace(term, factors=(Func("sigmoid", function.terms),)),
        replace(term, factors=(function, function)),
        replace(term, factors=(Func(function.name, ()),)),
        replace(term, factors=(Func(function.name, (score, score)),)),
        replace(
            term, factors=(Func(function.name, (replace(score, factors=(score.factors[0], *transposed)),)),)
        ),
    ]
    for one in wrong:
        with pytest.raises(AssertionError):
            check(found, [one])
    with pytest.raises(AssertionError, match="a diagonal"):
        check(found, index=(found.index[0], found.index[0]))
    with pytest.raises(KeyError):
        check(found, index=(found.index[0], Index()))


def test_an_entry_outside_of_a_tensor_is_found_unless_a_delta_excludes_it():
    found = program(lambda x: x * 1, (3,))
    (term,), (index,) = found.terms, found.index
    (axis,) = index.axes
    beyond = Leaf(found.inputs[0], (index.affine(1, 1),))
    evaluation = Evaluation(found.tensors)
    with pytest.raises(AssertionError, match="outside"):
        evaluation.sum([replace(term, factors=(beyond,))], {axis: 2})
    excluded = Term(factors=(Delta(axis, Index(0)), beyond))
    assert evaluation.sum([excluded], {axis: 2}).value == 0
    assert evaluation.sum([excluded], {axis: 0}).value == found.tensors[found.inputs[0]][1]


def test_stacked_tensors_are_entries_of_their_parts():
    found = program(lambda x, y: x + y, (3,), (3,))
    axis, (index,) = Axis(2), found.index
    check(
        found, [Term(factors=(Leaf(Stacked(tuple(found.inputs)), (Index.over(axis), index)),), bound=(axis,))]
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_pytorchs_and_its_slope_is_no_less_than_that_of_the_function(name):
    def function(x):
        if name in ("", "identity"):
            return x * 1
        if name == "gelu_tanh":
            return torch.nn.functional.gelu(x, approximate="tanh")
        short, _, given = name.removesuffix(")").partition("(")
        if short == "elu":
            return torch.ops.aten.elu(x, *map(float, given.split(", ")))
        function = getattr(torch, short, None) or getattr(torch.nn.functional, short)
        return function(x, *(float(text) for text in given.split(", ") if text))

    lowest = 0.01 if name in ("log", "log1p", "sqrt", "rsqrt") else -4
    x = torch.linspace(lowest, 4, 1002, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(function(x).sum(), x)
    for at, expected, slope in zip(x.tolist(), function(x).tolist(), slopes.tolist(), strict=True):
        value, bound = FUNCTIONS[name](at)
        assert abs(value - expected) <= 16 * EPSILON * (abs(value) + bound * abs(at))
        assert abs(slope) <= bound * (1 + 1e-9)


def test_the_scale_of_a_number_is_that_of_its_errors():
    a, b = Number(2.0, 3.0, 1), Number(-2.0, 5.0, 4)
    assert a + b == Number(0.0, 8.0, 5)
    assert a * b == Number(-4.0, 15.0, 6)


def test_replay_writes_to_nothing_and_says_what_it_does_not_know():
    def function(x):
        y = x.view(4)
        y.mul_(2)
        return x * 1

    tape, (x,), result = record_function(function, (2, 2))
    given = torch.ones(2, 2, dtype=torch.float64)
    assert replay(tape, {x: given})[result].eq(2).all() and given.eq(1).all()
    tape, (x,), _ = record_function(lambda x: x.expand(2, 2)[0].zero_(), (2,))
    with pytest.raises(Unknown):
        replay(tape, {x: given[0]})
