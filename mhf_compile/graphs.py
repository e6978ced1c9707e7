"""Graphs that do not come from a backend's call: made ready for the analysis, and given back as they came."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram, ModuleCallSignature
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv, is_symbolic
from torch.utils import _pytree as pytree

from mhf_compile.rewriting.surgery import copied
from mhf_compile.tape.recorder import fake_mode_of

EXAMPLE = "example_value"
"""Where Dynamo, and the analysis, keep the fake result of a node; torch.export calls it "val"."""


def copied_module(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph and of the graphs in it, which shares the parameters."""
    result = fx.GraphModule(module, copied(module.graph))
    result.meta.update(module.meta)
    for name, child in module.named_children():
        if isinstance(child, fx.GraphModule):
            setattr(result, name, copied_module(child))
    return result


def give_examples(module: fx.GraphModule, inputs: Sequence[Any] | None) -> None:
    """Give the nodes of a graph the fake values that the analysis reads, those of the inputs at least.

    Values that Dynamo or torch.export left in the graph, with symbolic sizes, are taken as they are.

    Raises:
        ValueError: the inputs are not those that the graph takes.
    """
    for part in _graphs(module):
        for node in part.graph.nodes:
            if "val" in node.meta:  # a strict export leaves some of Dynamo's beside them
                node.meta[EXAMPLE] = node.meta["val"]
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    unknown = [node for node in placeholders if EXAMPLE not in node.meta]
    if inputs is None:
        if unknown:
            raise ValueError(f"example inputs are needed for {_names(unknown)}: the graph knows no shapes")
        return
    given = list(module.graph.process_inputs(*inputs))
    defaults = [node.args[0] for node in placeholders[len(given) :] if node.args]
    if len(given) + len(defaults) != len(placeholders):
        lifted = "" if unknown else _LIFTED
        raise ValueError(
            f"the graph takes {len(placeholders)} inputs ({_names(placeholders)}), "
            f"and {len(given)} example inputs are given{lifted}"
        )
    held = (*given, *module.parameters(), *module.buffers())  # fake where they were made in such a mode
    mode = fake_mode_of(module) or detect_fake_mode(held) or FakeTensorMode(shape_env=ShapeEnv())

    def faked(item: Any) -> Any:
        real = isinstance(item, torch.Tensor) and not isinstance(item, FakeTensor)
        return mode.from_tensor(item, static_shapes=True) if real else item

    for node, example in zip(placeholders, [*given, *defaults], strict=True):
        if EXAMPLE in node.meta:
            _check(node, example)
        else:
            node.meta[EXAMPLE] = pytree.tree_map(faked, example)


_LIFTED = (
    "; where it is the graph_module of an ExportedProgram, which takes parameters and buffers as inputs, "
    "pass the program itself or its module()"
)


def _names(placeholders: Sequence[fx.Node]) -> str:
    names = [node.name for node in placeholders]
    return ", ".join(names if len(names) <= 8 else [*names[:7], "..."])


def _check(node: fx.Node, example: Any) -> None:
    """Raise unless an example is of the kind that a graph was made for."""
    known = node.meta[EXAMPLE]
    if not isinstance(known, torch.Tensor):
        return
    shape = list(known.shape)
    want = f"the graph was made for a {known.dtype} tensor of shape {shape}"
    if not isinstance(example, torch.Tensor):
        raise ValueError(f"input {node.name}: the example is a {type(example).__name__}, and {want}")
    fits = len(shape) == example.dim() and all(
        is_symbolic(size) or is_symbolic(other) or size == other
        for size, other in zip(shape, example.shape, strict=True)
    )
    if not fits or known.dtype != example.dtype:
        raise ValueError(
            f"input {node.name}: the example is a {example.dtype} tensor of shape {list(example.shape)}, "
            f"and {want}"
        )


def take_examples_back(module: fx.GraphModule, given: fx.GraphModule) -> None:
    """Leave in a rewritten graph such values as the given graph has: torch.export's, Dynamo's or none."""
    keys = {key for part in _graphs(given) for node in part.graph.nodes for key in node.meta}
    for part in _graphs(module):
        for node in part.graph.nodes:
            if ("val" in keys or EXAMPLE not in keys) and EXAMPLE in node.meta:
                example = node.meta.pop(EXAMPLE)
                if "val" in keys:
                    node.meta.setdefault("val", example)


class Exported:
    """A copy of an exported program's graph, to be rewritten, and the program of it.

    Attributes:
        module: the copy. It returns in addition, while it is rewritten, what the program's submodules take
            and return (``preserve_module_call_signature``): that stays, and where it has got to is seen.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.module = copied_module(program.graph_module)
        give_examples(self.module, None)
        self.output: fx.Node = self.module.graph.find_nodes(op="output")[0]
        self.outputs: Any = self.output.args[0]
        nodes = {node.name: node for node in self.module.graph.nodes}
        signatures = [call.signature for call in program.module_call_graph if call.signature is not None]
        kept = [argument.name for s in signatures for argument in (*s.inputs, *s.outputs)]
        self.returned = [*self.outputs, *(nodes[name] for name in dict.fromkeys(kept) if name in nodes)]
        self.output.args = (tuple(self.returned),)

    def rewritten(self) -> ExportedProgram:
        """The program of the rewritten graph, with the given one's parameters, buffers and constraints."""
        program = self.program
        for part in _graphs(self.module):
            _lower(part)
        signature = copy.deepcopy(program.graph_signature)
        calls = [
            replace(call, signature=_copied_signature(call.signature)) for call in program.module_call_graph
        ]
        now: Any = self.output.args[0]
        for before, after in zip(self.returned, now, strict=True):
            if isinstance(before, fx.Node) and before is not after:
                signature.replace_all_uses(before.name, after.name)
                for call in calls:
                    if call.signature is not None:
                        call.signature.replace_all_uses_with(before, after)
        self.output.args = (now[: len(self.outputs)],)
        take_examples_back(self.module, program.graph_module)
        return ExportedProgram(
            root=self.module,
            graph=self.module.graph,
            graph_signature=signature,
            state_dict=program.state_dict,
            range_constraints=copy.deepcopy(program.range_constraints),
            module_call_graph=calls,
            example_inputs=program.example_inputs,
            constants=program.constants,
            verifiers=program.verifiers,
        )


def _copied_signature(signature: ModuleCallSignature | None) -> ModuleCallSignature | None:
    if signature is None:
        return None
    inputs, outputs = copy.deepcopy((signature.inputs, signature.outputs))
    return replace(signature, inputs=inputs, outputs=outputs)


def _lower(module: fx.GraphModule) -> None:
    """Write what the rewriting put into a graph as ATen operators: an exported program calls no others."""
    mode = fake_mode_of(module)
    for node in list(module.graph.nodes):
        came_with_it = node.op not in ("call_function", "call_method") or "val" in node.meta
        if came_with_it or isinstance(node.target, OpOverload):
            continue
        given = node.all_input_nodes

        def call(*values: Any, node: fx.Node = node, given: Sequence[fx.Node] = given) -> Any:
            args, kwargs = fx.map_arg((node.args, node.kwargs), dict(zip(given, values, strict=True)).get)
            target: Any = node.target
            if node.op == "call_method":
                target, args = getattr(args[0], target), args[1:]
            return target(*args, **kwargs)

        assert mode is not None and mode.shape_env is not None
        with mode.shape_env.suppress_guards():
            traced = make_fx(call)(*(n.meta["val" if "val" in n.meta else EXAMPLE] for n in given))
        own = dict(zip(traced.graph.find_nodes(op="placeholder"), given, strict=True))
        with module.graph.inserting_before(node):
            result = module.graph.graph_copy(traced.graph, own)
        for made in own.values():
            if made not in given:
                made.meta |= {key: value for key, value in node.meta.items() if key != EXAMPLE}
        assert isinstance(result, fx.Node)
        node.replace_all_uses_with(result)
        module.graph.erase_node(node)
    module.recompile()


def _graphs(module: fx.GraphModule) -> list[fx.GraphModule]:
    """A graph and those in it."""
    return [part for part in module.modules() if isinstance(part, fx.GraphModule)]
