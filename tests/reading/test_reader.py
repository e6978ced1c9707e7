"""Index notation read of a program is what the program computes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mhf_compile.notation import Unreadable, leaves
from mhf_compile.reading.reader import FACTOR_LIMIT, TERM_LIMIT, read
from mhf_compile.reading.rules import RULES
from mhf_compile.tape.recorder import record_function
from tests.evaluate import check, program
from tests.reading.operations import READ, Function, written


@pytest.mark.parametrize(
    ("rule", "function", "shapes"), READ, ids=[f"{i}-{r[0]}" for i, r in enumerate(READ)]
)
def test_an_operation_is_read_as_what_it_computes(rule, function, shapes):
    found = program(function, *shapes)
    assert rule in found.operations
    assert found.leaves <= set(found.inputs), "something was not read"
    check(found)


def test_every_rule_is_tested():
    assert {rule for rule, _, _ in READ} == set(RULES)


# Programs whose result, or the value below it, has no index notation: rightly a leaf.
LEAVES: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "integers": (lambda x: x.to(torch.int64).to(torch.float64) * 2, ((3,),)),
    "booleans": (lambda x: x * (x > 0), ((3,),)),
    "index_select": (lambda x: x.index_select(0, torch.arange(1, -1, -1)), ((3, 2),)),
    "indexing by a list": (lambda x: x[torch.arange(1, -1, -1)], ((3, 2),)),
    "gather": (lambda x: x.gather(0, torch.zeros(1, 2, dtype=torch.int64)), ((3, 2),)),
    "clamp by a tensor": (lambda x, y: x.clamp(min=y), ((3,), (3,))),
    "maximum of two, by a comparison of integers": (
        lambda x, y: torch.where(x.long() > y.long(), x, y),
        ((3,), (3,)),
    ),
    "a choice by a mask": (lambda x: torch.where(torch.arange(3) > 1, x, 0.0), ((3,),)),
    "layer norm": (lambda x: F.layer_norm(x, (3,)), ((2, 3),)),
    "softmax": (lambda x: x.softmax(-1), ((2, 3),)),
    "cumsum": (lambda x: x.cumsum(0), ((3,),)),
    "a root": (lambda x: x**0.5, ((3,),)),
    "no power": (lambda x: x**0, ((3,),)),
    "a large power": (lambda x: x**5, ((3,),)),
    "a negative power": (lambda x: x**-1, ((3,),)),
    "a power of a tensor": (lambda x, y: (x * x) ** y, ((3,), (3,))),
    "a power of a number": (lambda x: 2.0**x, ((3,),)),
    "a wide convolution": (lambda x, w: F.conv1d(x, w), ((2, 3, 4), (5, 3, 2))),
    "a wide convolution of one row": (lambda x, w: F.conv2d(x, w), ((2, 3, 2, 4), (5, 3, 1, 2))),
    "a padded convolution": (lambda x, w: F.conv1d(x, w, padding=1), ((2, 3, 4), (5, 3, 1))),
    "a convolution with steps": (lambda x, w: F.conv1d(x, w, stride=2), ((2, 3, 4), (5, 3, 1))),
    "a transposed convolution": (lambda x, w: F.conv_transpose1d(x, w), ((2, 3, 4), (3, 5, 1))),
    "maximum": (lambda x: x.amax(0), ((3, 2),)),
    "division that rounds": (lambda x: torch.div(x, 2, rounding_mode="floor"), ((3,),)),
    "division by zero": (lambda x: x / 0.0, ((3,),)),
    "infinity": (lambda x: x + float("inf"), ((3,),)),
    "mean of nothing": (lambda x: x.mean(0), ((0, 2),)),
    "diagonal": (lambda x: x.diagonal(), ((3, 3),)),
    "overlapping windows": (lambda x: x.unfold(0, 2, 1), ((4,),)),
    "as_strided": (lambda x: x.as_strided((2, 2), (1, 1)), ((4,),)),
    "flip": (lambda x: x.flip(0), ((4,),)),
    "roll": (lambda x: x.roll(1, 0), ((4,),)),
    "triangle": (lambda x: x.tril(), ((3, 3),)),
    "a view of another dtype": (lambda x: x.view(torch.float32).to(torch.float64), ((2,),)),
    "a cut across digits": (lambda x: x.t().reshape(6)[1:].view(5) * 1, ((2, 3),)),
    "a slice that is reshaped across": (lambda x: x[:, 1:4].reshape(3, 2), ((2, 5),)),
    "a write through a diagonal": (written(lambda y: y.diagonal().zero_()), ((3, 3),)),
    "a write through steps": (written(lambda y: y[::2].zero_()), ((4,),)),
    "a write to an uneven part": (written(lambda y: y[1:3].zero_()), ((4,),)),
    "a write by an index": (written(lambda y: y.index_fill_(0, torch.arange(1), 1.0)), ((4,),)),
    "strides changed in place": (lambda x: x.clone().as_strided_((2, 2), (1, 1)), ((4,),)),
    "an out argument": (lambda x, y: torch.mm(x, y, out=x.new_empty(2, 2)), ((2, 3), (3, 2))),
    "an out argument that is a view": (written(lambda y, z: torch.mm(z, z, out=y[0])), ((2, 2, 2), (2, 2))),
    "a list written": (written(lambda y, z: torch._foreach_add_([z.clone(), y], 2.0)), ((2,), (2,))),
    "several outputs": (lambda x: torch.var_mean(x, 0)[1], ((3, 2),)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_what_has_no_index_notation_is_a_leaf(name):
    function, shapes = LEAVES[name]
    found = program(function, *shapes)
    assert not found.leaves <= set(found.inputs), found.terms
    if torch.isfinite(found.expected).all():
        check(found)


SHAPED_IN_PLACE: dict[str, tuple[Function, tuple[int, ...]]] = {
    "unsqueeze_": (lambda x: x.clone().unsqueeze_(0).unsqueeze_(-1), (2, 3)),
    "squeeze_": (lambda x: x.clone().squeeze_(), (1, 2, 1, 3)),
    "squeeze_ of a dimension": (lambda x: x.clone().squeeze_(0).squeeze_(-1), (1, 2, 1, 1)),
    "t_": (lambda x: x.clone().t_(), (2, 3)),
    "transpose_": (lambda x: x.clone().transpose_(-1, 0), (2, 3, 4)),
    "swapaxes_": (lambda x: x.clone().swapaxes_(0, 1), (2, 3)),
    "a write before and after": (lambda x: x.clone().mul_(2).t_().add_(1), (2, 3)),
    "a write through a view of it": (written(lambda y: y.t_()[1].zero_()), (2, 3)),
    "a view": (lambda x: x[1].t_() * x[0].t(), (2, 2, 3)),
}


@pytest.mark.parametrize("name", SHAPED_IN_PLACE)
def test_a_shape_changed_in_place_is_read_as_a_view(name):
    function, shape = SHAPED_IN_PLACE[name]
    found = program(function, shape)
    assert found.leaves == set(found.inputs)
    check(found)


@pytest.mark.parametrize("change", [lambda y: y.view(3, 2).t_(), lambda y: y[0:1].squeeze_(0)])
def test_a_view_whose_shape_is_changed_leaves_its_base_as_it_was(change):
    found = program(written(change), (2, 3))
    assert found.leaves == set(found.inputs)
    check(found)


def test_a_base_is_unknown_after_a_write_through_a_view_whose_shape_was_changed():
    _, (x, z), result = record_function(written(lambda y, z: y.view(2, 3).t_().mul_(z)), (2, 3), (2,))
    (term,) = read(result)
    (leaf,) = leaves(term.factors)
    assert leaf.value.op is None and leaf.value not in (x, z)


def test_randomness_is_a_leaf():
    _, _, result = record_function(lambda x: F.dropout(x, 0.5), (2, 3))
    (term,) = read(result)
    assert {leaf.value.op and leaf.value.op.name for leaf in leaves(term.factors)} - {None}


def test_another_librarys_operation_is_not_mistaken_for_atens():
    with torch.library._scoped_library("mhf_test", "DEF") as library:
        library.define("silu(Tensor x) -> Tensor")
        library.impl("silu", lambda x: x + 1, "CompositeExplicitAutograd")
        _, _, result = record_function(lambda x: torch.ops.mhf_test.silu(x), (3,))
    (term,) = read(result)
    assert [leaf.value for leaf in leaves(term.factors)] == [result]


def test_a_detach_of_what_needs_a_gradient_is_a_leaf():
    tape, (x,), result = record_function(lambda x: (2 * x).detach() * 3, (3,))
    assert {leaf.value for term in read(result) for leaf in leaves(term.factors)} == {x}
    detached = next(value for value in tape.values if value.op is not None and value.op.name == "detach")
    detached.op.inputs[0].requires_grad = True
    assert {leaf.value for term in read(result) for leaf in leaves(term.factors)} == {detached}


def test_too_many_terms_or_factors_are_refused():
    def sums(x: Tensor) -> Tensor:
        for _ in range(13):
            x = (x + 1) * (x + 2)
        return x

    def squares(x: Tensor) -> Tensor:
        for _ in range(30):
            x = x * x
        return x

    for function in (sums, squares):
        _, _, result = record_function(function, (1,))
        with pytest.raises(Unreadable, match=f"more than ({TERM_LIMIT} terms|{FACTOR_LIMIT} factors)"):
            read(result)
