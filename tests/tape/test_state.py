"""The state that each operation ran in, and that it is put back."""

import pytest
import torch

from mhf_compile.tape.recorder import record
from mhf_compile.tape.tape import Tape
from tests.tape.recording import Graph, value_named

# -- autocast ----------------------------------------------------------------------------------------------


def test_a_weights_cast_that_autocast_cached_before_is_linked_to_the_weight():
    weight = torch.randn(3, 3, requires_grad=True)

    def backend(module, inputs):
        with torch.autocast("cpu", torch.bfloat16):
            torch.mm(weight, weight)  # caches the cast
            tapes.append(record(module))
            assert torch.is_autocast_cache_enabled()
        return module

    tapes: list[Tape] = []
    with torch.autocast("cpu", torch.bfloat16):
        torch.compile(lambda x: (x @ weight) @ weight, backend=backend, fullgraph=True)(torch.randn(2, 3))
    (tape,) = tapes
    products = [v.op for v in tape.values if v.op is not None and v.op.name == "mm"]
    for product in products:
        cast = product.args[1]
        assert cast.dtype == torch.bfloat16 and cast.op.name == "_to_copy"
        assert cast.op.args[0].op is None and cast.op.args[0].requires_grad


def test_autocast_inside_the_graph_is_noted_on_each_operation_and_left_again():
    def function(x):
        with torch.autocast("cpu", torch.bfloat16):
            y = x @ x
        return y.float() * 2

    graph = Graph(function, torch.randn(3, 3))
    assert value_named(graph, "mm").dtype == torch.bfloat16
    assert torch.bfloat16 in value_named(graph, "mm").op.state.autocast
    assert set(value_named(graph, "mul").op.state.autocast) == {None}
    assert not torch.is_autocast_enabled("cpu")


# -- state -------------------------------------------------------------------------------------------------


def state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch._C._functorch.get_dynamic_layer_stack_depth(),
        torch._C._len_torch_dispatch_stack(),
        torch.is_deterministic_algorithms_enabled()
        if hasattr(torch, "is_deterministic_algorithms_enabled")
        else 0,
        torch.get_rng_state().sum().item(),
    )


def modes(x):
    with torch.autocast("cpu", torch.bfloat16):
        y = x @ x
        with torch.no_grad():
            y = y * 2
    with torch.inference_mode():
        y = y + x.sum()
    z = torch.vmap(lambda row: row * 2)(x)
    return y + z + torch.rand(3)


class Broken(Exception):
    pass


def failing(*args, **kwargs):
    raise Broken


@pytest.mark.parametrize("grad", [True, False])
def test_the_state_is_put_back_whichever_node_fails(grad):
    tested = []

    def backend(module, inputs):
        calls = [node for node in module.graph.nodes if node.op in ("call_function", "call_method")]
        for node in calls:
            op, target = node.op, node.target
            node.op, node.target = "call_function", failing
            before = state()
            with pytest.raises(Broken):
                record(module)
            assert state() == before, node.format_node()
            node.op, node.target = op, target
            tested.append(node)
        before = state()
        record(module)
        assert state() == before
        return module

    with torch.set_grad_enabled(grad):
        torch.compile(modes, backend=backend, fullgraph=True)(torch.randn(3, 3))
    assert len(tested) > 10
