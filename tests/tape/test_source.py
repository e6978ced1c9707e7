"""What a value is called: as the user wrote it, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from mhf_compile.tape.recorder import record
from mhf_compile.tape.source import is_named, path_in_self, path_of


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w_1 = nn.Parameter(torch.ones(4))
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w_1 * self.scale


class Holder:
    """An object that is no module."""

    def __init__(self) -> None:
        self.tensor = torch.ones(4)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Part(), Part()])
        self.keys = nn.ParameterList([nn.Parameter(torch.ones(4))])
        self.named = nn.ModuleDict({"main": Part()})
        self.unregistered = [Part()]
        self.holder = Holder()

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.layers, self.named["main"], self.unregistered[0]):
            x = layer(x)
        return x * self.keys[0] * self.holder.tensor


GLOBAL = torch.ones(4)
TENSORS = {"first": [torch.ones(4), torch.ones(4)]}
PART = Part()


def graph_of(program: Callable[..., Any], *args: object, **kwargs: object) -> fx.GraphModule:
    """The graph that Dynamo makes of a program."""
    graphs: list[fx.GraphModule] = []

    def backend(module: fx.GraphModule, inputs: object) -> Callable[..., Any]:
        graphs.append(module)
        return module

    torch._dynamo.reset()
    torch.compile(program, backend=backend)(*args, **kwargs)
    (graph,) = graphs
    return graph


def inputs_of(graph: fx.GraphModule) -> set[str]:
    return {".".join(path_of(node)) for node in graph.graph.find_nodes(op="placeholder")}


def test_what_a_model_holds() -> None:
    graph = graph_of(Model(), torch.ones(4))
    parts = ("layers.0", "layers.1", "named.main", "unregistered.0")
    held = {f"{part}.{name}" for part in parts for name in ("w_1", "scale")}
    assert inputs_of(graph) == held | {"keys.0", "holder.tensor", "x"}
    below_self = {".".join(path_in_self(node)) for node in graph.graph.find_nodes(op="placeholder")}
    assert below_self == held | {"keys.0", "holder.tensor", ""}


def test_arguments() -> None:
    def program(x: Tensor, *more: Tensor, options: dict[str, list[Tensor]], **others: Tensor) -> Tensor:
        return x * more[1] * options["given"][0] * others["last"]

    one = torch.ones(4)
    graph = graph_of(program, one, one.clone(), one.clone(), options={"given": [one.clone()]}, last=one + 1)
    assert inputs_of(graph) == {"x", "more.1", "options.given.0", "others.last"}


def test_globals_and_what_a_function_closes_over() -> None:
    weight, part = torch.ones(4), Part()

    def inner(x: Tensor) -> Tensor:
        return x * weight * part.w_1

    def program(x: Tensor) -> Tensor:
        return inner(x) * GLOBAL * TENSORS["first"][1] * PART.w_1

    told = hasattr(torch._dynamo.source, "CellContentsSource")  # else cells have numbers alone
    closed_over = {"weight", "part.w_1"} if told else {"inner.0.w_1", "inner.1"}
    names = inputs_of(graph_of(program, torch.ones(4)))
    assert names == {"x", "GLOBAL", "TENSORS.first.1", "PART.w_1"} | closed_over


def test_variables_lose_the_number_of_the_graph() -> None:
    def program(x: Tensor) -> Tensor:
        for _ in range(3):
            hidden = x.relu()
            x = hidden + hidden
        return x

    graph = graph_of(program, torch.ones(4))
    names = [".".join(path_of(node)) for node in graph.graph.nodes if node.op.startswith("call_")]
    assert set(names) == {"hidden", "x"}
    assert all(is_named(node) for node in graph.graph.nodes)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Part()])

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x)  # type: ignore[no-any-return]


def test_an_attribute_of_a_module_that_was_exported_or_traced() -> None:
    exported = torch.export.export(Whole(), (torch.ones(4),)).module()
    for graph in (exported, fx.symbolic_trace(Whole())):
        assert isinstance(graph, fx.GraphModule)
        assert inputs_of(graph) == {"x"}
        attributes = {path_of(node) for node in graph.graph.find_nodes(op="get_attr")}
        assert attributes == {("parts", "0", "w_1"), ("parts", "0", "scale")}


@pytest.mark.parametrize(("name", "shown"), [("to_12", "to"), ("_1", "_1"), ("hidden", "hidden")])
def test_nodes_of_no_dynamo(name: str, shown: str) -> None:
    graph = fx.Graph()
    node = graph.create_node("call_method", "to", (graph.placeholder("x"),), name=name)
    assert path_of(node) == (shown,)
    assert is_named(node) == (shown != "to")


def test_a_value_has_the_first_name_that_the_user_gave_it() -> None:
    def program(x: Tensor, w: Tensor) -> Tensor:
        same = x.to(x.dtype)
        w.mul_(2)
        routed = torch.softmax(same, -1)
        routed = routed.to(x.dtype)
        (routed * w).add_(1)
        return (routed @ w) + routed.relu().t()

    tape = record(graph_of(program, torch.ones(4, 4), torch.ones(4, 4)))
    names = [str(value) for value in tape.values]
    assert names == ["x", "w", "w", "routed", "mul", "mul", "matmul", "relu", "t", "add"]


def test_a_value_inside_a_call_has_the_name_of_its_operation() -> None:
    def program(x: Tensor, w: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, w).relu()

    tape = record(graph_of(program, torch.ones(2, 3), torch.ones(4, 3)))
    assert "t" in [str(value) for value in tape.values]
