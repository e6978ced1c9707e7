"""Edits of a captured graph that keep its meaning, made at places that Hypothesis draws.

An edit is a row of ``EDITS``: a name, the nodes where it can be made, and a function that makes it at one.
``edited(program)`` is the strategy of a program with some edits; its repr lists them.
"""

from __future__ import annotations

import contextlib
import copy
import math
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.utils._pytree import tree_iter

Draw = Callable[[st.SearchStrategy[Any]], Any]


# -- programs -----------------------------------------------------------------------------------------------


class Program:
    """A graph as Dynamo captures it, the inputs it was captured with, and the edits made since."""

    def __init__(
        self,
        module: fx.GraphModule,
        inputs: Sequence[Tensor],
        context: Callable[[], Any] = contextlib.nullcontext,
        edits: tuple[str, ...] = (),
    ) -> None:
        self.module, self.inputs, self.context, self.edits = module, inputs, context, edits

    def __repr__(self) -> str:
        return "".join(f"\n    {line}" for line in self.edits)

    def outcome(self) -> list[Tensor]:
        """The results, and the gradients of all inputs that have one."""
        with self.context():
            results = [r for r in tree_iter(self.module(*self.inputs)) if isinstance(r, Tensor)]
        wanted = [t for t in self.inputs if t.requires_grad]
        loss = sum((r.square().mean() for r in results if r.requires_grad), torch.zeros(()))
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        return [*(r.detach() for r in results), *found]


def capture(
    model: Callable[..., Any], inputs: Sequence[Any], context: Callable[[], Any] = contextlib.nullcontext
) -> Program:
    """The graph of a program that Dynamo makes one graph of."""
    found: list[Program] = []

    def keep(module: fx.GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        found.append(Program(module, given, context))
        return module.forward

    torch._dynamo.reset()
    with context():
        torch.compile(model, backend=keep, fullgraph=True, dynamic=False)(*inputs)
    (program,) = found
    with context():
        propagate(program.module)
    for graph in graphs(program.module):
        for node in graph.nodes:
            if node.target == "view" and not is_written(node):
                node.target = "reshape"  # edits change strides, which a view may not take
        graph.owning_module.recompile()
    return program


def duplicate(program: Program) -> Program:
    """A program whose graphs can be changed."""
    module = fx.GraphModule(program.module, copy.deepcopy(program.module.graph))
    for name, child in module.named_children():
        if isinstance(child, fx.GraphModule):
            setattr(module, name, fx.GraphModule(child, copy.deepcopy(child.graph)))
    return Program(module, program.inputs, program.context, program.edits)


def graphs(module: fx.GraphModule) -> Iterator[fx.Graph]:
    """A graph, and the bodies of its higher-order operations."""
    yield module.graph
    for child in module.children():
        if isinstance(child, fx.GraphModule):
            yield from graphs(child)


# -- what is known of a node --------------------------------------------------------------------------------


def propagate(module: fx.GraphModule) -> None:
    """Give each node the fake value that it has now, and what is known of writes."""
    inputs = [node.meta["example_value"] for node in module.graph.nodes if node.op == "placeholder"]
    mode = next(given.fake_mode for given in inputs if isinstance(given, Tensor))
    with mode, torch.set_grad_enabled(torch.is_grad_enabled()):
        _run(module, inputs)


def _run(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    remaining = iter(inputs)
    for node in module.graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["example_value"])
        given = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        versions = [t._version for t in given]
        if node.op == "placeholder":
            value = next(remaining)
        elif node.op == "output":
            return args[0]
        elif node.op == "get_attr":
            value = operator.attrgetter(node.target)(module)
        elif node.op == "call_method":
            value = getattr(args[0], node.target)(*args[1:], **kwargs)
        elif isinstance(args[0] if args else None, fx.GraphModule):
            value = _run(args[0], args[1:])
        else:
            value = node.target(*args, **kwargs)
        node.meta["example_value"] = value
        node.meta["version"] = value._version if isinstance(value, Tensor) else 0
        node.meta["writes"] = [t._version for t in given] != versions
    return None


def shape_of(node: object) -> tuple[int, ...]:
    value = node.meta["example_value"] if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def is_tensor(node: object) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("example_value"), Tensor)


def is_written(node: fx.Node) -> bool:
    """Whether the memory of a tensor is written to after it is made, so that no copy may be read instead."""
    return bool(node.meta["example_value"]._version != node.meta["version"])


def is_value(node: fx.Node) -> bool:
    """Whether a node is a tensor of numbers that another one of the same value may stand for."""
    if not is_tensor(node) or not node.users or is_written(node):
        return False
    value = node.meta["example_value"]
    return bool(value.is_floating_point() and value.dim() and value.numel())


def is_computed(node: fx.Node) -> bool:
    """Whether a node is the value of a function, which depends on nothing else."""
    pure = node.op in ("call_function", "call_method") and not node.meta["writes"]
    return pure and is_value(node) and not node.kwargs.get("inplace")


def name_of(node: fx.Node) -> str:
    """The name of an operation, whether it is a function, an operator or a method."""
    return str(getattr(node.target, "__name__", node.target))


# -- writing nodes ------------------------------------------------------------------------------------------


class Writer:
    """Writes nodes behind a node, each behind the one before."""

    def __init__(self, node: fx.Node) -> None:
        self.graph, self.origin, self.last = node.graph, node, node
        while self.last.op == "placeholder" and self.last.next.op == "placeholder":
            self.last = self.last.next
        self.lines: list[str] = []

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Write the call of a function, or by its name of a method."""
        kind = "call_method" if isinstance(target, str) else "call_function"
        with self.graph.inserting_after(self.last):
            node = self.graph.create_node(kind, target, args, kwargs)
        known = ("stack_trace", "nn_module_stack")
        node.meta = {key: self.origin.meta[key] for key in known if key in self.origin.meta}
        given = ", ".join([*map(str, args), *(f"{key}={value}" for key, value in kwargs.items())])
        self.lines.append(f"{node} = {name_of(node)}({given})")
        self.last = node
        return node

    def parts(self, x: fx.Node, sizes: Sequence[int], dim: int) -> list[fx.Node]:
        """The parts of a tensor along a dimension."""
        parts = self("split", x, list(sizes), dim)
        return [self(operator.getitem, parts, i) for i in range(len(sizes))]


# -- the same value, on a detour ----------------------------------------------------------------------------


def transpose_twice(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    a, b = draw(dims(shape)), draw(dims(shape))
    return call("transpose", call("transpose", x, a, b), a, b)


def permute_and_back(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    order = draw(st.permutations(range(len(shape))))
    return call("permute", call("permute", x, order), [order.index(dim) for dim in range(len(shape))])


def permuted_copy(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    """The same values in another order in memory."""
    order = draw(st.permutations(range(len(shape))))
    copied = call("contiguous", call("permute", x, order))
    return call("permute", copied, [order.index(dim) for dim in range(len(shape))])


def view_and_back(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    dim = draw(dims(shape))
    divisors = [n for n in range(1, shape[dim] + 1) if shape[dim] % n == 0]
    outer = draw(st.sampled_from(divisors))
    split = [*shape[:dim], outer, shape[dim] // outer, *shape[dim + 1 :]]
    first = draw(st.integers(0, len(split) - 1))
    last = draw(st.integers(first, len(split) - 1))
    other = [*split[:first], math.prod(split[first : last + 1]), *split[last + 1 :]]
    return call("reshape", call("reshape", x, other), list(shape))


def flatten_and_unflatten(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    first = draw(dims(shape))
    last = draw(st.integers(first, len(shape) - 1))
    flat = call("flatten", x, first, last)
    return call("unflatten", flat, first, list(shape[first : last + 1]))


def unsqueeze_and_squeeze(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    dim = draw(st.integers(0, len(shape)))
    return call("squeeze", call("unsqueeze", x, dim), dim)


def expand_and_select(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    dim, size = draw(st.integers(0, len(shape))), draw(st.integers(1, 3))
    wide = call("expand", call("unsqueeze", x, dim), [*shape[:dim], size, *shape[dim:]])
    return call("select", wide, dim, draw(st.integers(0, size - 1)))


def split_and_cat(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    dim = draw(dims(shape))
    cut = draw(st.integers(0, shape[dim]))
    return call(torch.cat, call.parts(x, [cut, shape[dim] - cut], dim), dim)


def chunk_and_cat(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    dim, count = draw(dims(shape)), draw(st.integers(1, 4))
    chunks = call("chunk", x, count, dim)
    made = -(-shape[dim] // -(-shape[dim] // count))
    return call(torch.cat, [call(operator.getitem, chunks, i) for i in range(made)], dim)


def unbind_and_stack(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    dim = draw(st.sampled_from([d for d in range(len(shape)) if shape[d] <= 8] or [0]))
    slices = call("unbind", x, dim)
    return call(torch.stack, [call(operator.getitem, slices, i) for i in range(shape[dim])], dim)


def stack_and_unbind(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    dim, count = draw(st.integers(0, len(shape))), draw(st.integers(1, 3))
    slices = call("unbind", call(torch.stack, [x] * count, dim), dim)
    return call(operator.getitem, slices, draw(st.integers(0, count - 1)))


def narrow(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    dim = draw(dims(shape))
    return call("narrow", x, dim, 0, shape[dim])


def index(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    everything = [..., slice(None), (slice(None), ...), (..., slice(0, shape[-1]))]
    return call(operator.getitem, x, draw(st.sampled_from(everything)))


def index_new_axis(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    return call(operator.getitem, call(operator.getitem, x, None), 0)


def contiguous(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    return call("contiguous", x)


def clone(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    return call("clone", x)


def to_same_dtype(call: Writer, x: fx.Node, shape: tuple[int, ...], draw: Draw) -> fx.Node:
    return call("to", x, x.meta["example_value"].dtype)


DETOURS = [
    transpose_twice,
    permute_and_back,
    permuted_copy,
    view_and_back,
    flatten_and_unflatten,
    unsqueeze_and_squeeze,
    expand_and_select,
    split_and_cat,
    chunk_and_cat,
    unbind_and_stack,
    stack_and_unbind,
    narrow,
    index,
    index_new_axis,
    contiguous,
    clone,
    to_same_dtype,
]


def dims(shape: Sequence[int]) -> st.SearchStrategy[int]:
    return st.integers(0, len(shape) - 1)


def detour(way: Callable[[Writer, fx.Node, tuple[int, ...], Draw], fx.Node]) -> Edit:
    """An edit: all users of a value, or one of them, get it on a detour."""

    def make(node: fx.Node, draw: Draw) -> str:
        users = list(node.users)
        chosen = draw(st.sampled_from([users, *([user] for user in users)]))
        call = Writer(node)
        new = way(call, node, shape_of(node), draw)
        for user in chosen:
            user.replace_input_with(node, new)
        return "; ".join(call.lines) + (f" for {chosen[0]}" if len(chosen) < len(users) else "")

    return Edit(way.__name__, is_value, make)


# -- the same operation, written in another way -------------------------------------------------------------


def replaced(write: Callable[[Writer, fx.Node, Draw], fx.Node]) -> Callable[[fx.Node, Draw], str]:
    """Make an edit that writes a node anew."""

    def make(node: fx.Node, draw: Draw) -> str:
        call, before = Writer(node), f"{name_of(node)}({', '.join(map(str, node.args))})"
        node.replace_all_uses_with(write(call, node, draw), delete_user_cb=lambda user: True)
        node.graph.erase_node(node)
        return f"{before} is " + "; ".join(call.lines)

    return make


def is_swappable(node: fx.Node) -> bool:
    if not is_computed(node) or node.kwargs:
        return False
    if name_of(node) == "einsum":
        return len(letters(node) or ()) > 2
    infix = node.target in (operator.add, operator.mul)
    return name_of(node) in ("add", "mul") and len(node.args) == 2 and (infix or is_tensor(node.args[1]))


def swap(call: Writer, node: fx.Node, draw: Draw) -> fx.Node:
    """a * b is b * a, and so is an einsum."""
    if name_of(node) == "einsum":
        *operands, result = letters(node) or ()
        order = draw(st.permutations(range(len(operands))))
        equation = ",".join(operands[i] for i in order) + "->" + result
        return call(node.target, equation, *(node.args[1 + i] for i in order))
    return call(node.target, node.args[1], node.args[0])


def is_difference(node: fx.Node) -> bool:
    return is_computed(node) and name_of(node) == "sub" and not node.kwargs and is_tensor(node.args[1])


def add_the_negative(call: Writer, node: fx.Node, draw: Draw) -> fx.Node:
    """a - b is a + (-b)."""
    negative = call("neg", node.args[1])
    return call(operator.add, *draw(st.permutations([node.args[0], negative])))


def is_double(node: fx.Node) -> bool:
    return is_computed(node) and name_of(node) == "mul" and 2 in node.args


def add_to_itself(call: Writer, node: fx.Node, draw: Draw) -> fx.Node:
    """2 * x is x + x."""
    x = node.args[0] if node.args[1] == 2 else node.args[1]
    return call(operator.add, x, x)


def is_infix(node: fx.Node) -> bool:
    return (
        is_computed(node)
        and name_of(node) in ("add", "sub", "mul")
        and not node.kwargs
        and len(node.args) == 2
    )


def respell(call: Writer, node: fx.Node, draw: Draw) -> fx.Node:
    """A function, an operator and a method are the same."""
    name = name_of(node)
    ways = [getattr(operator, name)]
    if is_tensor(node.args[0]):
        ways += [getattr(torch, name), name]
    return call(draw(st.sampled_from(ways)), *node.args)


# -- the letters of a product -------------------------------------------------------------------------------

ARITHMETIC = ("add", "sub", "mul", "truediv", "div", "neg")
ACTIVATIONS = ("exp", "sigmoid", "silu", "relu", "gelu", "tanh", "erf")
PRODUCTS = ("linear", "matmul", "bmm", "einsum")


def letters(node: fx.Node) -> list[str] | None:
    """Letters for the dimensions of each operand of a product and of its result, as in an einsum."""
    if not all(is_tensor(arg) or isinstance(arg, str) for arg in node.args):
        return None  # a number among the operands
    name, shapes = name_of(node), [shape_of(arg) for arg in node.args]
    result = "".join(chr(ord("A") + i) for i in range(len(shape_of(node))))
    if name in ARITHMETIC + ACTIVATIONS:
        return [*(result[len(result) - len(shape) :] for shape in shapes), result]
    if name == "linear" and not node.kwargs:
        return [*[result[:-1] + "z", result[-1] + "z", result[-1]][: len(shapes)], result]
    if name in ("matmul", "bmm") and all(len(shape) >= 2 for shape in shapes):
        batch = [result[len(result) - len(shape) : -2] for shape in shapes]
        return [batch[0] + result[-2] + "z", batch[1] + "z" + result[-1], result]
    if name == "einsum" and isinstance(node.args[0], str) and all(map(is_tensor, node.args[1:])):
        given = node.args[0].replace(" ", "").replace("->", ",").split(",")
        if "->" in node.args[0] and "." not in node.args[0] and all(len(set(g)) == len(g) for g in given):
            return given
    return None


def splittable(node: fx.Node) -> list[str]:
    """The letters along which a product can be cut: those that no operand broadcasts."""
    *operands, result = letters(node) or [""]
    shapes = [*shapes_of_operands(node), shape_of(node)]
    if [len(given) for given in (*operands, result)] != [len(shape) for shape in shapes]:
        return []  # an operand is broadcast to more dimensions
    found = dict.fromkeys(result + "".join(operands))
    sizes = {letter: set[int]() for letter in found}
    for given, shape in zip([*operands, result], shapes, strict=True):
        for letter, size in zip(given, shape, strict=True):
            sizes[letter].add(size)
    return [letter for letter, sizes in sizes.items() if len(sizes) == 1 and max(sizes) > 1]


def shapes_of_operands(node: fx.Node) -> list[tuple[int, ...]]:
    return [shape_of(arg) for arg in node.args if not isinstance(arg, str)] if letters(node) else []


def is_product(node: fx.Node) -> bool:
    return is_computed(node) and name_of(node) in PRODUCTS and bool(splittable(node))


def is_arithmetic(node: fx.Node) -> bool:
    return is_computed(node) and name_of(node) in ARITHMETIC and bool(splittable(node))


def is_activation(node: fx.Node) -> bool:
    return is_computed(node) and name_of(node) in ACTIVATIONS and bool(splittable(node))


def cut(call: Writer, node: fx.Node, draw: Draw) -> fx.Node:
    """A product of parts: concatenated along an axis of the result, or added up along one that is summed."""
    *operands, result = letters(node) or ()
    letter = draw(st.sampled_from(splittable(node)))
    first = len(node.args) - len(operands)
    size = next(
        shape[given.index(letter)]
        for given, shape in zip(operands, shapes_of_operands(node), strict=True)
        if letter in given
    )
    at = draw(st.integers(1, size - 1))
    halves = [list(node.args), list(node.args)]
    for i, given in enumerate(operands, first):
        if letter in given:
            parts = call.parts(node.args[i], [at, size - at], given.index(letter))
            for half, part in zip(halves, parts, strict=True):
                half[i] = part
    if letter in result:
        return call(torch.cat, [call(node.target, *h, **node.kwargs) for h in halves], result.index(letter))
    if name_of(node) == "linear":
        del halves[1][2:]  # the bias is added once
    return call(operator.add, *(call(node.target, *half, **node.kwargs) for half in halves))


def is_no_einsum(node: fx.Node) -> bool:
    """Whether a product is none of einsum's, broadcasts nothing and has no bias."""
    if not is_product(node) or name_of(node) == "einsum" or len(node.args) != 2:
        return False
    return set(splittable(node)) == set("".join(letters(node) or ()))


def as_einsum(call: Writer, node: fx.Node, draw: Draw) -> fx.Node:
    *operands, result = letters(node) or ()
    return call(torch.einsum, ",".join(operands) + "->" + result, *node.args)


def is_linear(node: fx.Node) -> bool:
    return is_product(node) and name_of(node) == "linear"


def as_matmul(call: Writer, node: fx.Node, draw: Draw) -> fx.Node:
    x, weight, *bias = node.args
    product = call(operator.matmul, x, call("t", weight))
    return call(operator.add, product, bias[0]) if bias and bias[0] is not None else product


def is_used_twice(node: fx.Node) -> bool:
    return is_computed(node) and len(node.users) > 1


def compute_again(node: fx.Node, draw: Draw) -> str:
    """One user of a value gets another copy of it, computed anew."""
    user = draw(st.sampled_from(list(node.users)))
    call = Writer(node)
    user.replace_input_with(node, call(node.target, *node.args, **node.kwargs))
    return f"{call.lines[0]} again for {user}"


# -- the graph as a whole -----------------------------------------------------------------------------------


def is_output(node: fx.Node) -> bool:
    return node.op == "output"


def rename(node: fx.Node, draw: Draw) -> str:
    names = draw(st.permutations(range(len(node.graph.nodes))))
    for other, number in zip(node.graph.nodes, names, strict=True):
        if other is not node:
            other._rename(f"t{number}")
    return "all nodes renamed"


def is_end_of_values(node: fx.Node) -> bool:
    """Whether a graph computes tensors and does nothing else, such as to switch a mode."""
    return is_output(node) and all(
        other.op in ("placeholder", "output", "get_attr")
        or other.target in (operator.getitem, operator.setitem)
        or any(isinstance(item, Tensor) for item in tree_iter(other.meta["example_value"]))
        for other in node.graph.nodes
    )


def reorder(node: fx.Node, draw: Draw) -> str:
    """Another order of the nodes; a write keeps its place among all that touches the same memory."""
    nodes = [n for n in node.graph.nodes if n.op not in ("placeholder", "output")]
    touched = {n: memory(n) for n in nodes}
    waiting = {n: {m for m in n.all_input_nodes if m in touched} for n in nodes}
    for i, n in enumerate(nodes):
        for m in nodes[:i]:
            if (n.meta["writes"] or m.meta["writes"]) and touched[n] & touched[m]:
                waiting[n].add(m)
    seed = draw(st.integers(0, 99))
    choice = random.Random(seed).choice
    while waiting:
        n = choice([n for n, needed in waiting.items() if not needed])
        node.prepend(n)
        del waiting[n]
        for needed in waiting.values():
            needed.discard(n)
    return f"nodes in another order, {seed}"


def memory(node: fx.Node) -> set[int]:
    """The storages that a node reads, writes or makes."""
    values = [n.meta["example_value"] for n in (*node.all_input_nodes, node)]
    return {t.untyped_storage()._cdata for t in tree_iter(values) if isinstance(t, Tensor)}


# -- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """A way to write a program differently: where it can be made, and how; it returns what it did."""

    name: str
    is_place: Callable[[fx.Node], bool]
    make: Callable[[fx.Node, Draw], str]

    def __repr__(self) -> str:
        return self.name

    def places(self, module: fx.GraphModule) -> list[fx.Node]:
        return [node for graph in graphs(module) for node in graph.nodes if self.is_place(node)]


EDITS = [
    Edit("rename", is_output, rename),
    Edit("reorder", is_end_of_values, reorder),
    *map(detour, DETOURS),
    Edit("swap", is_swappable, replaced(swap)),
    Edit("respell", is_infix, replaced(respell)),
    Edit("add_the_negative", is_difference, replaced(add_the_negative)),
    Edit("add_to_itself", is_double, replaced(add_to_itself)),
    Edit("as_einsum", is_no_einsum, replaced(as_einsum)),
    Edit("as_matmul", is_linear, replaced(as_matmul)),
    Edit("cut_product", is_product, replaced(cut)),
    Edit("cut_arithmetic", is_arithmetic, replaced(cut)),
    Edit("cut_activation", is_activation, replaced(cut)),
    Edit("compute_again", is_used_twice, compute_again),
]


CUTS = ("cut_product", "cut_arithmetic", "cut_activation", "compute_again", "split_and_cat", "chunk_and_cat")
"""Edits after which a computation is in several pieces."""


def apply(edit: Edit, program: Program, draw: Draw) -> Program:
    """Make an edit at a place that is drawn."""
    program = duplicate(program)
    line = edit.make(draw(st.sampled_from(edit.places(program.module))), draw)
    for graph in graphs(program.module):
        graph.lint()
        graph.owning_module.recompile()
    with program.context():
        propagate(program.module)
    return Program(program.module, program.inputs, program.context, (*program.edits, f"{edit}: {line}"))


@st.composite
def edited(draw: Draw, program: Program, edits: Sequence[Edit] = tuple(EDITS), most: int = 5) -> Program:
    """A program with at least one edit, and at most one that cuts something in two."""
    for _ in range(draw(st.integers(1, most))):
        possible = [edit for edit in edits if edit.places(program.module)]
        edit = draw(st.sampled_from(possible))
        program = apply(edit, program, draw)
        if edit.name in CUTS:
            edits = [other for other in edits if other.name not in CUTS]
    return program
