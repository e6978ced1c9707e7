"""Put an op in the place of a match, on the Dynamo graph."""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from mhf_compile import notation
from mhf_compile.matching.match import Match
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.notation import Axis
from mhf_compile.rewriting.operands import Builder
from mhf_compile.rewriting.region import Region
from mhf_compile.rewriting.rest import Rest
from mhf_compile.tape.recorder import fake_mode_of
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Op, Scope, Value, convert


class Surgeon:
    """Replaces matches on one Dynamo graph and its bodies."""

    def __init__(self, module: fx.GraphModule, tape: Tape, constants: Mapping[str, Any]) -> None:
        """Begin; `constants` are arguments of every op, beside what a match gives."""
        self.tape = tape
        self.constants = constants
        mode = fake_mode_of(module)
        assert mode is not None
        self.mode = mode
        self.replaced: dict[fx.Node, fx.Node] = {}

    def replace(self, match: Match, region: Region) -> None:
        """Put the op in the place of a match. Raises NoMatch before anything is changed."""
        scope, root = match.scope, match.root
        graph = scope.module.graph
        for value in (root, *region.leaves):
            if self.tape.is_inside(value, scope, root.time):
                self._expand(scope, value)
        assert root.op is not None and root.op.node is not None
        last = root.op.node
        while last in scope.transformed:  # the op takes no mapped tensors
            last = last.next
        order = scope.order[last]
        if last is not root.op.node and any(
            scope.order.get(user, order) < order
            for node in root.handle.nodes_in(scope)
            for user in node.users
        ):
            raise NoMatch("its result is used inside the transform of torch.func that it is in", root)
        before = len(graph.nodes)
        with graph.inserting_before(last.next):
            new: list[fx.Node] = []
            try:
                emitter = _Emitter(self, graph, last, new, scope.inference.get(last))
                result = self._emit(match, region, emitter)
                staying = [one for rest in region.rests for one in self._stay(match, region, rest, new)]
            except NoMatch:
                for node in reversed(new):
                    graph.erase_node(node)
                assert len(graph.nodes) == before
                raise
        self._redirect(match, order, result)
        for value, own in staying:
            for node in value.handle.nodes_in(scope):
                self.replaced[node] = own
                node.replace_all_uses_with(own)
        self._erase(scope, region)

    def _expand(self, scope: Scope, value: Value) -> None:
        """Write a call of the program as its operations, so that a value inside of it is at hand."""
        assert value.op is not None and value.op.node is not None
        node = value.op.node
        ops = self.tape.issued.pop(node)
        emitter = _Emitter(self, scope.module.graph, node, [])
        with scope.module.graph.inserting_before(node):
            for number, op in enumerate(ops, start=1):
                assert op.func is not None

                def given(item: Any, op: Op = op) -> Any:
                    return (
                        emitter.tensor(item, scope, op.outputs[0].time) if isinstance(item, Value) else item
                    )

                made = emitter.add(op.func, *convert(op.args, given), **convert(op.kwargs, given))
                op.state = replace(op.state, node=made)
                self.tape.issued[made] = [op]
                several = isinstance(made.meta["example_value"], (tuple, list))
                for result in op.outputs:
                    own = emitter.add(operator.getitem, made, result.output) if several else made
                    scope.order[own] = scope.order[node] - 1 + number / (len(ops) + 1)
                    scope.order.setdefault(made, scope.order[own])
                    if (scope, node) in result.handle.nodes:
                        result.handle.nodes.remove((scope, node))
                        node.replace_all_uses_with(own)
                    result.handle.nodes.append((scope, own))
        scope.module.graph.erase_node(node)

    def finish(self) -> None:
        """Check the changed graphs and make them callable."""
        for scope in self.tape.scopes:
            scope.module.graph.lint()
            scope.module.recompile()

    def _emit(self, match: Match, region: Region, emitter: _Emitter) -> fx.Node:
        unification, pattern = match.unification, match.pattern
        builder = emitter.builder(match, match.root.time)
        given = {**self.constants, "activation": unification.activation}
        given |= {name: float(value) for name, value in unification.scalars.items()}
        for name, operand in unification.operands.items():
            node = builder.operand(operand, match)
            given[name] = node if name == pattern.product else emitter.cast(node, region.dtype)
        packet = getattr(getattr(torch.ops, pattern.op.split("::")[0]), pattern.op.split("::")[1])
        arguments = [given.get(argument.name) for argument in packet.default._schema.arguments]
        result = emitter.add(packet.default, *arguments)
        original = match.root.handle.tensor
        assert original is not None
        return emitter.like(emitter.cast(builder.root(result, match), match.root.dtype), original)

    def _stay(
        self, match: Match, region: Region, rest: Rest, new: list[fx.Node]
    ) -> Iterator[tuple[Value, fx.Node]]:
        """Compute what stays of a product, in its place; each value that is wanted of it, and its node."""
        whole = rest.columns.whole
        assert whole.op is not None and whole.op.node is not None
        graph, node = match.scope.module.graph, whole.op.node
        with graph.inserting_before(node.next):
            emitter = _Emitter(self, graph, node, new)
            builder = emitter.builder(match, whole.time, region.dtype)
            columns = emitter.cast(builder.columns(rest, match), whole.dtype)
            for value, own in builder.wanted(rest, columns).items():
                assert value.handle.tensor is not None
                yield value, emitter.ordered(emitter.cast(own, value.dtype), value.handle.tensor)

    def _redirect(self, match: Match, position: float, result: fx.Node) -> None:
        """Give the result to everything that used the root's tensor after it was complete."""
        scope = match.scope
        for node in match.root.handle.nodes_in(scope):
            if node.op == "call_module" and node not in self.tape.issued:
                continue  # it gives its argument back in this mode, as dropout does, and not in the other
            self.replaced[node] = result
            for user in list(node.users):
                if scope.order.get(user, -1) > position:
                    user.replace_input_with(node, result)

    def _erase(self, scope: Scope, region: Region) -> None:
        """Erase the region's own nodes, and what was computed for them only."""
        nodes = {op.node for op in region.ops if op.node is not None}
        nodes |= {node for value in region.values for node in value.handle.nodes_in(scope)}
        for rest in region.rests:
            nodes |= {node for value in rest.between for node in value.handle.nodes_in(scope)}
        while nodes:
            node = max(nodes, key=lambda n: scope.order.get(n, -1))
            nodes.remove(node)
            ops = self.tape.issued.get(node, ())
            # What is written of operands, such as rows of a buffer, something else may read.
            harmless = all(
                not op.random if op.writes is None else region.own.issuperset(op.outputs) for op in ops
            )
            if node.op not in ("placeholder", "output") and not node.users and harmless:
                computed = [n for n in node.all_input_nodes if self.tape.issued.get(n)]
                scope.module.graph.erase_node(node)
                nodes.update(computed)  # what was only needed for it


class _Emitter:
    """Adds nodes to a graph, each with the fake value that it gives.

    Inference mode may be on where they are added. A view that is made in it of a tensor from before it is one
    that autograd and AOTAutograd do not take; what can be made before is, in front of the node `entered`.
    """

    def __init__(
        self,
        surgeon: Surgeon,
        graph: fx.Graph,
        origin: fx.Node,
        new: list[fx.Node],
        entered: fx.Node | None = None,
    ) -> None:
        self.surgeon = surgeon
        self.graph = graph
        self.origin = origin
        self.new = new
        self.entered = entered
        self.extents: dict[Axis, Any] = {}

    def builder(self, match: Match, time: int, dtype: torch.dtype | None = None) -> Builder[fx.Node]:
        """What takes the steps of a rewrite on nodes, at a time of the graph.

        Products are in a dtype, or else in the wider one of what is multiplied.
        """
        return Builder[fx.Node](
            self.call,
            lambda a, b: self.matmul(a, b, dtype),
            lambda value: self.tensor(value, match.scope, time),
            lambda axis: self.extent(axis, match),
            lambda node, factor: self.call("mul", node, float(factor)),
        )

    def call(self, function: str | Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call of a function, or of a method by its name, as early as it may stand."""
        given: list[fx.Node] = []
        fx.map_arg((args, kwargs), given.append)
        if self.entered is not None and all(node < self.entered for node in given):
            with self.graph.inserting_before(self.entered):
                return self.add(function, *args, **kwargs)
        return self.add(function, *args, **kwargs)

    def add(self, function: str | Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call where the others are."""
        if isinstance(function, str):
            node = self.graph.call_method(function, args, kwargs)
        else:
            node = self.graph.call_function(function, args, kwargs)
        self.new.append(node)
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            if key in self.origin.meta:
                node.meta[key] = self.origin.meta[key]
        given = fx.map_arg(args, lambda n: n.meta["example_value"])
        environment = self.surgeon.mode.shape_env
        with self.surgeon.mode, environment.suppress_guards() if environment else contextlib.nullcontext():
            node.meta["example_value"] = (
                getattr(given[0], function)(*given[1:], **kwargs)
                if isinstance(function, str)
                else function(*given, **kwargs)
            )
        return node

    def tensor(self, value: Value, scope: Scope, time: int) -> fx.Node:
        node = value.node_at(scope, time)
        if node is None:
            attribute = value.attribute_at(scope, time)
            assert attribute is not None
            with self.graph.inserting_before(self.entered) if self.entered else contextlib.nullcontext():
                node = self.graph.get_attr(attribute)
            self.new.append(node)
        node = self.surgeon.replaced.get(node, node)
        node.meta.setdefault("example_value", value.handle.tensor)
        return node

    def extent(self, axis: Axis, match: Match) -> Any:
        """The size of an axis, as a node where it is symbolic."""
        if isinstance(axis.size, int):
            return axis.size
        if axis not in self.extents:
            for leaf in match.leaves:
                for dim, index in enumerate(leaf.index):
                    if (
                        isinstance(leaf.value, Value)
                        and index.axes == (axis,)
                        and index.covers(leaf.value.shape[dim])
                    ):
                        tensor = self.tensor(leaf.value, match.scope, match.root.time)
                        self.extents[axis] = self.call("size", tensor, dim)
                        return self.extents[axis]
            raise NoMatch(f"no operand has the symbolic size {axis.size} as a dimension", match.root)
        return self.extents[axis]

    def matmul(self, a: fx.Node, b: fx.Node, dtype: torch.dtype | None) -> fx.Node:
        """The product of two matrices, or of batches of them."""
        if dtype is None:
            dtype = torch.promote_types(*(node.meta["example_value"].dtype for node in (a, b)))
        return self.call(torch.matmul, self.cast(a, dtype), self.cast(b, dtype))

    def cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        return node if node.meta["example_value"].dtype == dtype else self.call("to", node, dtype)

    def like(self, node: fx.Node, original: Tensor) -> fx.Node:
        """A node with the strides that what follows in the program was written for."""
        strides = [notation.size_of(s) for s in original.stride()]
        if [notation.size_of(s) for s in node.meta["example_value"].stride()] == strides:
            return node
        return self._contiguous(node, _order(original))

    def ordered(self, node: fx.Node, original: Tensor) -> fx.Node:
        """A node whose dimensions lie in memory in the order of those of another tensor."""
        order = _order(original)
        return node if _order(node.meta["example_value"]) == order else self._contiguous(node, order)

    def _contiguous(self, node: fx.Node, order: list[int]) -> fx.Node:
        """A node without gaps in memory, its dimensions in some order."""
        back = [order.index(d) for d in range(len(order))]
        if order == back == sorted(order):
            return self.call("contiguous", node)
        return self.call("permute", self.call("contiguous", self.call("permute", node, order)), back)


@contextlib.contextmanager
def undoable(scopes: Sequence[Scope]) -> Iterator[Callable[[], None]]:
    """Change graphs; where something fails after all, or on demand, they are as they came."""
    graphs = [(scope.module, copied(scope.module.graph)) for scope in scopes]

    def undo() -> None:
        for module, graph in graphs:
            module.graph = graph

    try:
        yield undo
    except BaseException:
        undo()
        raise


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph with all that its nodes have: torch.fx forgets Dynamo's sources of the inputs."""
    result = copy.deepcopy(graph)
    for node, own in zip(graph.nodes, result.nodes, strict=True):
        for name in vars(node).keys() - vars(own).keys():
            setattr(own, name, getattr(node, name))
    return result


def _order(tensor: Tensor) -> list[int]:
    """The dimensions of a tensor, of the largest stride first."""
    return sorted(range(tensor.dim()), key=lambda d: -_magnitude(tensor, d))


def _magnitude(tensor: Tensor, dim: int) -> int:
    stride = tensor.stride(dim)
    return stride if isinstance(stride, int) else int(stride.node.hint or 1)
