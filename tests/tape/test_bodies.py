"""The bodies of checkpoints, regions, conditionals and autograd functions."""

import torch
from torch.nn import functional as F

from mhf_compile.reading.reader import Reader
from tests.tape.recording import Graph, value_named


def layer(x, weight):
    return F.silu(x @ weight)


def test_the_body_of_a_checkpoint_is_recorded():
    def function(x, weight):
        return torch.utils.checkpoint.checkpoint(layer, x, weight, use_reentrant=False) * 2

    graph = Graph(function, torch.randn(2, 3), torch.randn(3, 3, requires_grad=True))
    main, body = graph.tape.scopes
    assert main.module is graph.module and body.module is not main.module
    silu = value_named(graph, "silu")
    assert silu.op.scope is body and silu.op.node in set(body.module.graph.nodes)
    assert silu in body.returned
    assert value_named(graph, "mul").op.args[0] is silu  # one tape across the boundary
    (weight,) = [v for v in graph.tape.values if v.op is None and v.requires_grad]
    assert {scope for scope, _ in weight.handle.nodes} == {main, body}


def test_the_body_of_a_nested_region_is_recorded_once():
    region = torch.compiler.nested_compile_region(layer)

    def function(x, weight):
        return region(region(x, weight), weight)

    graph = Graph(function, torch.randn(3, 3), torch.randn(3, 3))
    assert graph.names.count("silu") == 1
    main, body = graph.tape.scopes
    silu = value_named(graph, "silu")
    assert silu.op.scope is body
    assert silu in main.returned, "what an unread call is given may be seen by it"


def test_a_conditional_is_taken_at_its_word():
    def function(x, flag):
        y = x * 2
        return torch.cond(flag, lambda y: y.sin(), lambda y: y.cos(), (y,)) * 3

    graph = Graph(function, torch.randn(3), torch.tensor(True))
    product, result = value_named(graph, "mul"), value_named(graph, "mul", 1)
    assert result.op.args[0].shape == (3,) and Reader().rule(result.op.args[0]) is None
    assert product in graph.tape.scopes[0].returned
    main, *bodies = graph.tape.scopes
    assert main.inside == "" and {body.inside for body in bodies} == {"a body of cond"}
    for name in ("sin", "cos"):  # what is inside is noted for the report
        assert value_named(graph, name).op.scope in bodies


def test_a_custom_autograd_function_is_opaque():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 5

    graph = Graph(lambda x: Double.apply(x + 1) * 3, torch.randn(3, requires_grad=True))
    main, body = graph.tape.scopes
    assert body.inside == "a custom autograd function"
    (product,) = [
        v for v in graph.tape.values if v.op is not None and v.op.name == "mul" and v.op.scope is main
    ]
    assert product.op.args[0].requires_grad and Reader().rule(product.op.args[0]) is None
