"""Which values need a gradient."""

import torch
from torch.nn import functional as F

from mhf_compile.reading.reader import Reader
from tests.tape.recording import Graph, value_named


def test_a_value_needs_a_gradient_where_autograd_follows_it():
    def function(x, weight):
        y = x @ weight
        with torch.no_grad():
            z = y * 2
        return y + 1, z - 1, x / 2, y.detach().neg(), (y > 0).sum()

    graph = Graph(function, torch.randn(3, 3), torch.randn(3, 3, requires_grad=True))
    needs = {
        name: value_named(graph, name).requires_grad for name in ("mm", "add", "mul", "sub", "div", "neg")
    }
    assert needs == {"mm": True, "add": True, "mul": False, "sub": False, "div": False, "neg": False}
    assert not value_named(graph, "mul").op.state.grad_enabled
    assert value_named(graph, "sub").op.state.grad_enabled
    weight = next(v for v in graph.tape.values if v.op is None and v.requires_grad)
    assert weight.op is None


def test_inputs_that_need_gradients_give_the_operations_of_inputs_that_do_not():
    def function(x, weight):
        return torch.matmul(x.transpose(0, 1), weight)

    x, weight = torch.randn(4, 3, 5), torch.randn(5, 6)
    plain = Graph(function, x, weight).names
    needing = Graph(function, x.clone().requires_grad_(), weight.clone().requires_grad_()).names
    assert plain == needing


def test_a_gradient_followed_through_complex_numbers_is_followed():
    def function(x):
        return torch.view_as_real(torch.view_as_complex(x * 2) * 1j).detach() * 2

    graph = Graph(function, torch.randn(3, 2, requires_grad=True))
    assert value_named(graph, "view_as_real").requires_grad


def test_a_write_without_gradients_does_not_take_a_tensors_history():
    def function(x):
        y = x * 2
        with torch.no_grad():
            y[0].mul_(3)
        return y.detach() + 1

    graph = Graph(function, torch.randn(2, 3, requires_grad=True))
    assert value_named(graph, "detach").op.args[0].requires_grad


def test_what_is_made_without_gradients_for_use_with_them_is_a_leaf():
    def function(x):
        with torch.no_grad():
            y = x.view(9)
        return y.view(3, 3) * 2

    x = torch.randn(3, 3, requires_grad=True)
    assert Reader(grad=True).rule(value_named(Graph(function, x), "view")) is None
    assert Reader(grad=False).rule(value_named(Graph(function, x), "view")) is not None
    assert Reader(grad=True).rule(value_named(Graph(function, x.detach()), "view")) is not None


def test_inference_mode_gives_the_same_operations():
    def function(x, weight):
        return F.linear(x, weight).reshape(-1).chunk(2)[0].contiguous().to(torch.float32)

    x, weight = torch.randn(2, 2, 3), torch.randn(4, 3)
    plain = Graph(function, x, weight).names
    with torch.inference_mode():
        inference = Graph(function, x, weight).names
    assert plain == inference and "mm" in plain
