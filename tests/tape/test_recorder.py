"""A graph is recorded in the mode that Dynamo traced it in, and is not changed."""

import torch
from torch import fx
from torch.nn import functional as F

from mhf_compile.reading.reader import Reader
from mhf_compile.tape.recorder import fake_mode_of, record
from tests.tape.recording import Graph, names, value_named

# -- the mode ----------------------------------------------------------------------------------------------


def test_the_mode_is_the_one_dynamo_traced_in_not_the_one_in_force():
    seen = {}

    def backend(module, inputs):
        seen["mode"] = fake_mode_of(module)
        seen["detected"] = torch._guards.detect_fake_mode()
        seen["tape"] = record(module)
        return module

    weight = torch.nn.Parameter(torch.randn(3, 3))
    torch.compile(lambda x: x @ weight, backend=backend)(torch.randn(2, 3))
    assert seen["mode"] is not seen["detected"]
    assert "mm" in names(seen["tape"])


def test_a_graph_without_tensors_gives_an_empty_tape():
    graph = fx.Graph()
    graph.output(())
    assert record(fx.GraphModule({}, graph)).values == []


def test_nothing_of_the_graph_is_changed():
    def backend(module, inputs):
        before = module.print_readable(print_output=False), [dict(n.meta) for n in module.graph.nodes]
        examples = [n.meta.get("example_value") for n in module.graph.nodes]
        record(module)
        after = module.print_readable(print_output=False), [dict(n.meta) for n in module.graph.nodes]
        assert before[0] == after[0]
        assert [m.keys() for m in before[1]] == [m.keys() for m in after[1]]
        assert all(
            n.meta.get("example_value") is e for n, e in zip(module.graph.nodes, examples, strict=True)
        )
        return module

    torch.compile(lambda x: (x.clone().add_(1), x @ x), backend=backend)(
        torch.randn(3, 3, requires_grad=True)
    )


def test_a_shape_changed_in_place_is_not_changed_again():
    def function(x, y):
        x, y = x.view(2, 3), y.view(2, 3)
        x.t_()
        y.t_()
        return x * 1, y * 1

    def backend(module, inputs):
        before = [n.meta["example_value"].shape for n in module.graph.nodes if n.op != "output"]
        tape = record(module)
        assert [n.meta["example_value"].shape for n in module.graph.nodes if n.op != "output"] == before
        assert [v.shape for v in tape.values if v.op is not None and v.op.name == "mul"] == [(3, 2), (3, 2)]
        return module

    torch.compile(function, backend=backend, fullgraph=True)(torch.randn(6), torch.randn(6))


# -- transforms and subclasses -----------------------------------------------------------------------------


def test_the_transforms_of_torch_func_are_noted():
    def inner(x):
        return torch.func.grad(lambda x: x.sin().sum())(x)

    graph = Graph(lambda x: torch.vmap(lambda row: inner(F.silu(row) * 2))(x) + 1, torch.randn(3, 4))
    assert value_named(graph, "silu").op.state.transforms == ("Vmap",)
    assert value_named(graph, "sin").op.state.transforms == ("Vmap", "Grad")
    assert value_named(graph, "add").op.state.transforms == ()


def test_a_tensor_subclass_is_not_plain():
    from torch.testing._internal.two_tensor import TwoTensor

    graph = Graph(lambda x, y: (x * 2, y + 1), TwoTensor(torch.randn(3), torch.randn(3)), torch.randn(3))
    product, total = value_named(graph, "mul"), value_named(graph, "add")
    assert not product.plain and not product.op.args[0].plain and Reader().rule(product) is None
    assert total.plain and Reader().rule(total) is not None


def test_a_graph_of_subclasses_only_gives_an_empty_tape():
    from torch.testing._internal.two_tensor import TwoTensor

    assert Graph(lambda x: x * 2, TwoTensor(torch.randn(3), torch.randn(3))).tape.values == []
