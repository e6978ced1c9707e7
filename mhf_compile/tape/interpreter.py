"""Runs graphs on fake tensors, one node after the other, and writes down what each does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import sympy
import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._python_dispatch import TorchDispatchMode

from mhf_compile.notation import size_of
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.template import Template
from mhf_compile.tape.values import (
    Handle,
    Op,
    Scope,
    State,
    Value,
    convert,
    describe,
    every,
    hashable,
    is_plain,
)

BODIES = ("tag_activation_checkpoint", "invoke_subgraph", "wrap")
"""Higher-order operations that run a graph once, as it stands: their bodies are recorded as well."""


_EXITS: dict[str, Callable[[Any], object]] = {
    "_enter_autocast": torch.amp.autocast_mode._exit_autocast,
    "_enter_inference_mode": torch.autograd.grad_mode._exit_inference_mode,
    "_enter_dual_level": lambda level: torch._C._exit_dual_level(level=level),
}
"""How to leave a context that a node of a graph enters."""


_RESHAPES = frozenset(
    [
        "t_",
        "transpose_",
        "swapaxes_",
        "swapdims_",
        "squeeze_",
        "unsqueeze_",
        "as_strided_",
        "resize_",
        "resize_as_",
        "set_",
    ]
)
"""Methods that change the shape of a tensor in place."""


class Recorder(TorchDispatchMode):
    """Writes every operation down with the node that is run, and the modes that it is run in."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape
        self.node: fx.Node | None = None
        self.scope: Scope | None = None
        self.autocast: tuple[torch.dtype | None, ...] = ()
        self.transforms: tuple[str, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func) and all(map(is_plain, every(torch.Tensor, (args, kwargs)))):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if func.namespace != "prim":
            self.tape.record(func, args, kwargs, result, self.state())
        return result

    def enter(self, scope: Scope | None, node: fx.Node | None) -> None:
        """Say which node is run from now on."""
        self.scope, self.node = scope, node
        # Asked here: inside an operation that autocast or functorch wraps, they are off.
        devices = ("cpu", "cuda")
        self.autocast = tuple(
            torch.get_autocast_dtype(d) if torch.is_autocast_enabled(d) else None for d in devices
        )
        stack = torch._C._functorch.get_interpreter_stack() or []
        self.transforms = tuple(interpreter.key().name for interpreter in stack)

    def state(self) -> State:
        """The modes of the operation being run."""
        return State(self.node, self.scope, torch.is_grad_enabled(), self.autocast, self.transforms)


@cache
def _is_composite(func: OpOverload) -> bool:
    """Whether an operation is defined by others; inference mode brings such operations here whole.

    So do subclasses of tensors, of which they may be defined in another way.
    """
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return func.namespace != "prim" and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


# -- running a graph ----------------------------------------------------------------------------------------


class Interpreter:
    """Runs graphs on fake tensors, one node after the other."""

    def __init__(self, tape: Tape, mode: FakeTensorMode) -> None:
        self.tape = tape
        self.mode = mode
        self.recorder = Recorder(tape)
        self.symbolic = mode.shape_env is not None and bool(mode.shape_env.var_to_range)
        self.contexts: list[tuple[Any, Callable[[Any], object]]] = []  # entered, and how to leave them
        self.templates: dict[object, Template | None] = {}
        self.reuse = True

    def run(self, module: fx.GraphModule, inputs: Sequence[object], inside: str = "") -> object:
        """Run a graph; ``inside`` says what runs it, where nothing of it can be replaced."""
        around = self.recorder.scope
        inside = inside or (around.inside if around is not None else "")
        scope = Scope(module, {node: i for i, node in enumerate(module.graph.nodes)}, inside)
        scope.callers += [around] if around is not None else []
        self.tape.scopes.append(scope)
        outside = self.recorder.scope, self.recorder.node
        values: dict[fx.Node, Any] = {}
        remaining = iter(inputs)
        result: object = None
        # Dynamo's example of a tensor whose shape is changed later has that shape already.
        self.reuse = self.reuse and _RESHAPES.isdisjoint(node.target for node in module.graph.nodes)
        for node in module.graph.nodes:
            self.recorder.enter(scope, node)
            if node.op == "placeholder":
                values[node] = next(remaining)
            elif node.op == "output":
                result = fx.map_arg(node.args[0], lambda n: values[n])
                scope.returned.update(self.tape.value(t) for t in every(torch.Tensor, result))
            else:
                values[node] = self.node(node, values, module)
            self.tape.bind(scope, node, values.get(node))
            if torch._C._functorch.get_dynamic_layer_stack_depth():
                scope.transformed.add(node)
            if torch.is_inference_mode_enabled():
                scope.inference[node] = scope.inference.get(node.prev, node)
        self.recorder.enter(*outside)
        return result

    def node(self, node: fx.Node, values: dict[fx.Node, Any], module: fx.GraphModule) -> object:
        """The result of a node."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
        if node.op == "get_attr":
            attribute: object = module
            for part in str(node.target).split("."):
                attribute = getattr(attribute, part)
            return self.fake(attribute) if isinstance(attribute, torch.Tensor) else attribute
        if isinstance(node.target, HigherOrderOperator):
            return self.higher_order(node, args, kwargs)
        if not _unbacked(node.meta.get("example_value")) <= _unbacked((args, kwargs)):
            return self.opaque(node, (args, kwargs))  # running it would make symbols other than Dynamo's
        target: Any = node.target
        if node.op == "call_module":
            return self.call_module(node, args, kwargs, module.get_submodule(target))
        if node.op == "call_method":
            target = _method(target)
        given = list(every(torch.Tensor, (args, kwargs)))
        if torch._C._functorch.get_dynamic_layer_stack_depth():
            return self.execute(target, args, kwargs)
        operands = tuple(map(self.tape.value, given))
        start = len(self.tape.values)
        if not all(map(is_plain, given)):
            return self.linked(node, operands, start, self.execute(target, args, kwargs))
        handles = [self.tape.handle(tensor) for tensor in given]
        key = self.key(node, args, kwargs)
        template = self.templates.get(key) if self.reuse else None
        if template is not None and "example_value" in node.meta:
            return template.apply(handles, node.meta["example_value"], self.tape, self.recorder.state())
        result = self.execute(target, args, kwargs)
        made = self.tape.values[start:]
        self.templates[key] = Template.of(handles, made, result, self.tape) if made else None
        return self.linked(node, operands, start, result)

    def linked(self, node: fx.Node, operands: tuple[Value, ...], start: int, result: object) -> object:
        """A result as made of what was given, also where a tensor subclass goes around the recorder."""
        values = [*operands, *map(self.tape.value, every(torch.Tensor, result))]
        if not all(value.plain for value in values):
            name = getattr(node.target, "__name__", str(node.target))
            op = Op(name, operands, {}, self.recorder.state())
            for value in self.tape.values[start:]:
                if value.op is None:
                    value.op = op
                    value.requires_grad |= any(operand.requires_grad for operand in operands)
                    op.outputs.append(value)
        return result

    def execute(self, target: Callable[..., Any], args: Any, kwargs: Any) -> object:
        """Run a function and write down what it does."""
        args, kwargs = fx.node.map_aggregate((args, kwargs), self.detached)
        # As in Dynamo: of symbolic sizes, some decompositions in C++ ask for numbers.
        dispatcher = enable_python_dispatcher() if self.symbolic else contextlib.nullcontext()
        with self.mode, self.recorder, dispatcher:
            result = target(*args, **kwargs)
        name = getattr(target, "__name__", "")
        if name in _EXITS:
            self.contexts.append((result, _EXITS[name]))
        elif name.startswith("_exit_"):
            left = args[0] if args else kwargs["level"]
            self.contexts = [entry for entry in self.contexts if entry[0] is not left]
        return result

    def key(self, node: fx.Node, args: Any, kwargs: Any) -> object:
        """What the operations of a node depend on: target, arguments without contents, and modes."""
        first: dict[Handle, int] = {}

        def described(item: Any) -> object:
            if isinstance(item, torch.Tensor):
                sizes = (*item.shape, *item.stride(), item.storage_offset())
                number = first.setdefault(self.tape.handle(item), len(first))
                return number, tuple(map(size_of, sizes)), item.dtype, item.device, is_plain(item)
            if isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
                return type(item), getattr(item.node, "expr", str(item))
            return type(item), repr(item)

        state = self.recorder.state()
        modes = (state.grad_enabled, state.autocast, state.transforms, torch.is_inference_mode_enabled())
        flat = (convert(tuple(args), described), tuple((k, convert(v, described)) for k, v in kwargs.items()))
        return node.op, node.target, hashable(flat), modes

    def higher_order(self, node: fx.Node, args: Any, kwargs: Any) -> object:
        """Run the body of an operation that runs one graph; take the others at their word."""
        bodies = [a for a in args if isinstance(a, fx.GraphModule)]
        recorded = {scope.module: scope for scope in self.tape.scopes}
        for body in bodies:
            if body in recorded and self.recorder.scope is not None:
                recorded[body].callers.append(self.recorder.scope)
        name = getattr(node.target, "__name__", "")
        if name not in BODIES or len(bodies) != 1 or bodies[0] in recorded:
            if name == "triton_kernel_wrapper_mutation" or any(self.writes_outside(body) for body in bodies):
                for tensor in every(torch.Tensor, (args, kwargs)):
                    self.tape.forget(self.tape.handle(tensor), self.recorder.state())
            if name == "autograd_function_apply":
                bodies, name = bodies[:1], "custom autograd function"  # the forward
            for body in bodies:
                if body not in recorded:
                    self.aside(body, f"a {name}" if name.startswith("custom") else f"a body of {name}")
            return self.opaque(node, (args, kwargs))
        count = sum(n.op == "placeholder" for n in bodies[0].graph.nodes)
        return self.run(bodies[0], args[len(args) - count :])

    def aside(self, body: fx.GraphModule, inside: str) -> None:
        """Record a body that nothing is known of but what it does to its inputs, for the report."""
        examples = [n.meta.get("example_value") for n in body.graph.nodes if n.op == "placeholder"]
        with self.mode:
            inputs = [torch.empty_like(e) if isinstance(e, torch.Tensor) else e for e in examples]
        if None not in inputs:
            self.run(body, [self.fake(given) for given in inputs], inside)

    def writes_outside(self, body: fx.GraphModule) -> bool:
        """Whether a body that is recorded writes to what it was given."""
        origins = [
            value.storage.origin
            for value in self.tape.values
            if value.op is not None and value.op.writes is not None and _is_in(value.op, body)
        ]
        return any(o is None or o.op is None or not _is_in(o.op, body) for o in origins)

    def call_module(self, node: fx.Node, args: Any, kwargs: Any, module: nn.Module) -> object:
        """Run a module of the graph; one with hooks, which may do anything, only to see what it returns."""
        forward = self.faked(module, str(node.target)).forward
        mha: Any = torch.backends.mha
        fast = mha.get_fastpath_enabled()
        mha.set_fastpath_enabled(False)  # it takes no fake tensors
        try:
            if not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
                return self.execute(forward, args, kwargs)
            with self.mode:
                example = forward(*args, **kwargs)
            return self.opaque(node, (args, kwargs), example)
        finally:
            mha.set_fastpath_enabled(fast)

    def faked(self, module: nn.Module, path: str) -> nn.Module:
        """A copy of a module without its hooks, with fake parameters and buffers, which are at hand."""
        assert self.recorder.scope is not None
        copy: Any = module._replicate_for_data_parallel()
        copy._compiled_call_impl = copy.forward  # what calls it is to run neither hooks nor what is compiled
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            fake = self.fake(tensor)
            setattr(copy, name, self.detached(fake))
            if fake is not None:
                self.tape.handle(fake).attributes[self.recorder.scope] = f"{path}.{name}"
        for name, child in module._modules.items():
            copy._modules[name] = None if child is None else self.faked(child, f"{path}.{name}")
        return cast(nn.Module, copy)

    def opaque(self, node: fx.Node, args: Any = (), example: Any = None) -> object:
        """A node's result as Dynamo saw it, with no meaning; what it was given counts as returned to it."""
        given = tuple(self.tape.value(tensor) for tensor in every(torch.Tensor, args))
        if self.recorder.scope is not None:
            self.recorder.scope.returned.update(given)
        op = Op(getattr(node.target, "__name__", str(node.target)), given, {}, self.recorder.state())
        example = node.meta.get("example_value", example)
        return fx.node.map_aggregate(example, lambda item: self.fake(item, op))

    def detached(self, item: Any) -> Any:
        """A tensor without autograd's history, on which operations decompose in one way."""
        if not isinstance(item, torch.Tensor) or not item.requires_grad:
            return item
        if torch._C._functorch.get_dynamic_layer_stack_depth():
            return item  # a transform follows it in a way of its own
        handle = self.tape.handle(item)
        if handle.tensor is None or handle.tensor.requires_grad:
            self.tape.adopt(item.detach(), handle)
        return handle.tensor

    def fake(self, item: Any, op: Op | None = None) -> Any:
        """A tensor as it may be recorded, from outside or from an operation without a meaning."""
        if not isinstance(item, torch.Tensor):
            return item
        if not isinstance(item, FakeTensor) and is_plain(item):
            item = self.mode.from_tensor(item, static_shapes=True)
        handle = self.tape.handle(item)
        value = self.tape.read(handle) if op is None else self.tape.new(handle, op, 0, *describe(item))
        value.requires_grad = item.requires_grad
        return item


def _method(name: Any) -> Callable[..., Any]:
    """A method as a function of the object and its arguments."""
    return lambda item, *args, **kwargs: getattr(item, name)(*args, **kwargs)


def _is_in(op: Op, body: fx.GraphModule) -> bool:
    return op.scope is not None and op.scope.module is body


def _unbacked(structure: object) -> set[sympy.Symbol]:
    """The symbols in a structure that stand for data."""
    symbols: set[sympy.Symbol] = set()

    def visit(item: object) -> None:
        if isinstance(item, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
            symbols.update(free_unbacked_symbols(item))

    convert(structure, visit)
    return symbols
