"""One activation, however it is written."""

import pytest
import torch
from torch.nn import functional as F

from mhf_compile.activation import Activations
from mhf_compile.notation import Func, Leaf
from mhf_compile.read import Reader, entry_axes
from mhf_compile.record import record_function

SILU = frozenset({"silu"})


def anchors(function, *shapes, names=SILU):
    tape, inputs, result = record_function(function, *shapes)
    return Activations(tape, names), inputs, result


# Each is silu(x) for x of shape (2, 3), perhaps times another factor.
SPELLINGS = {
    "silu": lambda x: F.silu(x),
    "silu in place": lambda x: F.silu(x.clone(), inplace=True),
    "x * sigmoid": lambda x: x * torch.sigmoid(x),
    "sigmoid * x": lambda x: torch.sigmoid(x) * x,
    "a product in place": lambda x: x.clone().mul_(torch.sigmoid(x)),
    "x / (1 + exp(-x))": lambda x: x / (1 + torch.exp(-x)),
    "x / (exp(-x) + 1)": lambda x: x / (torch.exp(-x) + 1),
    "x / (1 + exp(-1 * x))": lambda x: x / (1 + torch.exp(-1 * x)),
    "x * (1 / (1 + exp(-x)))": lambda x: x * (1 / (1 + torch.exp(-x))),
    "x * reciprocal": lambda x: x * (1 + torch.exp(-x)).reciprocal(),
    "exp(-x) in place": lambda x: x / x.neg().exp_().add_(1),
    "casts between": lambda x: x * torch.sigmoid(x.float().to(torch.bfloat16)).double(),
    "a cast before": lambda x: x.bfloat16().double() * torch.sigmoid(x.bfloat16().double()),
    "views between": lambda x: x.view(6) * torch.sigmoid(x).view(6),
    "a transposition between": lambda x: x.t() * torch.sigmoid(x.t()),
    "a transposition after": lambda x: (x.t() * torch.sigmoid(x).t()).t(),
    "a view inside": lambda x: x / (1 + torch.exp((-x).view(6)).view(2, 3)),
    "a negation of a view": lambda x: x / (1 + torch.exp(-x.view(6).view(2, 3))),
    "a copy": lambda x: x.clone() * torch.sigmoid(x.contiguous()),
    "x computed twice": lambda x: (2 * x) * torch.sigmoid(2 * x),
    "x computed twice by a product": lambda x: (x @ x.t()) * torch.sigmoid(x @ x.t()),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_of_silu_is_found_once_and_read_as_silu(name):
    activations, _, _ = anchors(SPELLINGS[name], (2, 3))
    ((anchor, function),) = activations.anchors.items()
    assert function == "silu"
    (term,) = activations.read(Reader(), Leaf(anchor, entry_axes(anchor)))
    (factor,) = term.factors
    assert isinstance(factor, Func) and factor.name == "silu" and term.bound == ()


# Other factors come between the parts of the activation.
PRODUCTS = {
    "(x * up) * sigmoid(x)": lambda x, up: (x * up) * torch.sigmoid(x),
    "(sigmoid(x) * up) * x": lambda x, up: (torch.sigmoid(x) * up) * x,
    "(up * x) / (1 + exp(-x))": lambda x, up: (up * x) / (1 + torch.exp(-x)),
    "(up / (1 + exp(-x))) * x": lambda x, up: (up / (1 + torch.exp(-x))) * x,
    "(x * up * 2) * sigmoid(x)": lambda x, up: (up * (x * 2)).view(2, 3) * torch.sigmoid(x),
    "views of the product": lambda x, up: (x * up).view(6) * torch.sigmoid(x.view(6)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_other_factors_may_come_between(name):
    activations, (_, up), _ = anchors(PRODUCTS[name], (2, 3), (2, 3))
    ((anchor, _),) = activations.anchors.items()
    (term,) = activations.read(Reader(), Leaf(anchor, entry_axes(anchor)))
    assert [f.name for f in term.factors if isinstance(f, Func)] == ["silu"]
    if name != "views of the product":
        assert [f.value for f in term.factors if isinstance(f, Leaf)] == [up]


OTHERS = {
    "a sigmoid of something else": lambda x, y: x * torch.sigmoid(y),
    "a sigmoid of another entry": lambda x, y: x * torch.sigmoid(x.flip(0)),
    "a sigmoid of a transposition": lambda x, y: x * torch.sigmoid(x.t()),
    "a sigmoid of a shifted slice": lambda x, y: x[1:] * torch.sigmoid(x[:-1]),
    "a sigmoid of a multiple": lambda x, y: x * torch.sigmoid(2 * x),
    "another sign": lambda x, y: x / (1 + torch.exp(x)),
    "another constant": lambda x, y: x / (2 + torch.exp(-x)),
    "another difference": lambda x, y: x / (1 - torch.exp(-x)),
    "an exponential of a multiple": lambda x, y: x / (1 + torch.exp(-2 * x)),
    "an exponential of something else": lambda x, y: x / (1 + torch.exp(-y)),
    "x written in between": lambda x, y: (lambda s: x.clone().add_(y) * s)(torch.sigmoid(x)),
    "a sum with a sigmoid": lambda x, y: x + torch.sigmoid(x),
    "a sigmoid without x": lambda x, y: torch.sigmoid(x) * torch.sigmoid(x),
    "other random numbers": lambda x, y: torch.rand_like(x) * torch.sigmoid(torch.rand_like(x)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_silu_is_not_taken_for_it(name):
    activations, _, _ = anchors(OTHERS[name], (2, 2), (2, 2))
    assert activations.anchors == {}


def test_a_written_x_is_another_x():
    def function(x):
        x = x.clone()
        gate = torch.sigmoid(x)
        x.add_(1)
        return x * gate

    assert anchors(function, (2, 2))[0].anchors == {}


def test_a_routers_sigmoid_is_no_activation():
    def function(x, w, up):
        scores = torch.sigmoid(x @ w)
        scores = scores / (scores.sum(-1, keepdim=True) + 1e-6)
        return (F.silu(up) * scores).sum(-1)

    activations, (_, _, up), _ = anchors(function, (2, 3), (3, 4), (2, 4))
    assert [anchor.op.args[0] for anchor in activations.anchors] == [up]


def test_names_that_the_op_does_not_know_are_not_found():
    assert anchors(F.silu, (2, 3), names=frozenset({"gelu"}))[0].anchors == {}
    activations, _, result = anchors(F.gelu, (2, 3), names=frozenset({"gelu"}))
    assert activations.anchors == {result: "gelu"}


def test_a_long_product_of_sigmoids_is_no_error():
    def function(x):
        y = torch.sigmoid(x)
        for _ in range(16):
            y = y * (1 + y)
        return y

    assert anchors(function, (2,))[0].anchors == {}
