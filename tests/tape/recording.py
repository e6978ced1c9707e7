"""Dynamo graphs that are recorded."""

import contextlib

import torch
from torch import fx

from mhf_compile.tape.recorder import record
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Value
from tests.evaluate import replay


class Graph:
    """A Dynamo graph as a backend gets it, and what it looks like once recorded."""

    def __init__(self, function, *args, dynamic=None):
        self.graphs: list[fx.GraphModule] = []

        def backend(module, inputs):
            self.graphs.append(module)
            with contextlib.ExitStack() as stack:
                for context in self.contexts:
                    stack.enter_context(context())
                self.tape = record(module)
            return module

        self.contexts = []
        self.result = torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)(*args)

    @property
    def module(self) -> fx.GraphModule:
        return self.graphs[-1]

    @property
    def returned(self) -> list[Value]:
        (output,) = self.module.graph.find_nodes(op="output")
        nodes = [node for node in output.args[0] if node is not None]
        main = next(s for s in self.tape.scopes if s.module is self.module)
        return [
            value for node in nodes for value in main.returned if value.handle.nodes_in(main)[-1:] == [node]
        ]

    @property
    def names(self) -> list[str]:
        return names(self.tape)

    def replayed(self, *given):
        """What the tape computes for the graph's inputs, in the order of its placeholders."""
        main = next(s for s in self.tape.scopes if s.module is self.module)
        inputs = {}
        for node, tensor in zip(self.module.graph.find_nodes(op="placeholder"), given, strict=True):
            inputs[next(v for v in self.tape.values if v.handle.nodes_in(main)[:1] == [node])] = tensor
        return replay(self.tape, inputs)


def names(tape: Tape) -> list[str]:
    return [value.op.name for value in tape.values if value.op is not None]


def value_named(graph: Graph, name: str, number: int = 0) -> Value:
    return [v for v in graph.tape.values if v.op is not None and v.op.name == name][number]
