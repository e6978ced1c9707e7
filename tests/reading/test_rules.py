"""The table of rules agrees with PyTorch: what autograd keeps, and which operations are views."""

import math
from fractions import Fraction

import pytest
import torch

from mhf_compile.reading.entries import scalar
from mhf_compile.reading.numbering import ValueNumbering
from mhf_compile.reading.rules import ELEMENTWISE, RULES, Kind
from mhf_compile.tape.operations import CREATIONS, ONE_TO_ONE
from mhf_compile.tape.recorder import record_function
from tests.reading.operations import READ


def kept(function, tensors):
    """The tensors that autograd keeps of a function, by their place: results are -1."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()), lambda t: t):
        result = function(*tensors)
    places = {tensor.data_ptr(): number for number, tensor in enumerate(tensors)} | {result.data_ptr(): -1}
    return {places[pointer] for pointer in kept if pointer and pointer in places}


SINGLE = [
    (name, function, shapes)
    for name, function, shapes in READ
    if RULES[name].kind in (ELEMENTWISE | {Kind.CONTRACT, Kind.SUM}) - {Kind.MOVE, Kind.CONSTANT}
]


@pytest.mark.parametrize(
    ("name", "function", "shapes"), SINGLE, ids=[f"{i}-{case[0]}" for i, case in enumerate(SINGLE)]
)
def test_what_autograd_keeps_is_what_the_row_says(name, function, shapes):
    tape, inputs, result = record_function(function, *shapes)
    (op, *others) = [value.op for value in tape.values if value.op is not None]
    if others:
        pytest.skip("several operations")
    tensors = [(torch.rand(shape, dtype=torch.float64) + 0.1).requires_grad_() for shape in shapes]
    places = {value: number for number, value in enumerate(inputs)} | {result: -1}
    said = {places[value] for value in RULES[name].kept(op) if 0 not in value.shape}
    assert kept(function, tensors) == said


def test_what_is_written_through_shows_each_element_once():
    """The tape gives a meaning to no other write through a view."""
    written = {name for name, rule in RULES.items() if rule.write is not None}
    assert written <= ONE_TO_ONE | {"_unsafe_view"}
    assert ONE_TO_ONE - written == {"_reshape_alias", "lift_fresh", "diagonal"}  # which no rule reads


def test_constants_are_created_or_written_over():
    constants = {name for name, rule in RULES.items() if rule.kind is Kind.CONSTANT}
    assert constants - CREATIONS == {"zero", "fill"}


@pytest.mark.parametrize(("exponent", "factors"), [(2, 2), (3, 3), (0.5, 2)])
def test_a_small_whole_power_is_a_product_and_another_one_no_factor_alone(exponent, factors):
    _, (x,), result = record_function(lambda x: x**exponent, (3,))
    assert RULES["pow"].products(result.op) == [[x] * factors]


def test_values_that_are_computed_alike_are_the_same():
    def function(x, y):
        return torch.stack([x.sin() * 2, x.sin() * 2, y.sin() * 2, x.sin() * 3])

    tape, _, result = record_function(function, (3,), (3,))
    one, again, *others = result.op.args[0]
    numbering = ValueNumbering(tape)
    assert one is not again and numbering.same(one, again)
    assert not any(numbering.same(one, other) for other in others)


def test_what_is_nearly_a_number_of_gelu_is_that_number():
    for number in (math.sqrt(0.5), math.sqrt(2 / math.pi)):
        for near in (number, math.nextafter(number, 1)):
            assert scalar(near) == Fraction(number)
            assert scalar(1 / near) == 1 / Fraction(number)
            assert scalar(2 / near) == Fraction(2 / near)
