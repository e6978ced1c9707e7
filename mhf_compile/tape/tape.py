"""The tape: ATen operations in a functional form.

An operation that writes in place gives a new value to the tensor it writes, to the tensors that one is a
view of, and, when they are next used, to the other views of the same storage. A tape therefore has no
mutation in it; what remains of it is :attr:`Value.expires`, the time from which the tensor of a value holds
something else.
"""

from __future__ import annotations

from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload

from mhf_compile.notation import Size, size_of
from mhf_compile.tape.operations import NO_GRADIENT, ONE_TO_ONE, OVERWRITES
from mhf_compile.tape.values import (
    Handle,
    Op,
    Scope,
    State,
    Storage,
    Value,
    convert,
    describe,
    describe_value,
    is_plain,
)


class Tape:
    """The values of a graph, oldest first, and the tensors that hold them."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.scopes: list[Scope] = []
        self.hints: dict[sympy.Symbol, int] = {}  # a value of each symbol that satisfies every guard
        self._handles: dict[int, tuple[Handle, torch.Tensor]] = {}  # while a tensor lives, its id is its own
        self._storages: dict[int, Storage] = {}
        self._expandable: dict[fx.Node, bool] = {}

    @cached_property
    def used(self) -> frozenset[Value]:
        """The values that reach a result of a graph or memory from outside, once the tape is complete."""
        used = set[Value]().union(*(scope.returned for scope in self.scopes))

        def matters(op: Op, value: Value) -> bool:
            if op.writes is not None:
                origin = op.writes.storage.origin
                if origin is None or origin.op is None:
                    return True
                if op.writes is value and op.name in OVERWRITES:
                    return False  # only written over
            return not used.isdisjoint(op.outputs)

        for value in reversed(self.values):
            if any(matters(op, value) for op in value.users):
                used.add(value)
        return frozenset(used)

    @cached_property
    def issued(self) -> dict[fx.Node, list[Op]]:
        """The operations of each node, once the tape is complete."""
        issued: dict[fx.Node, dict[Op, None]] = {}
        for value in self.values:
            if value.op is not None and value.op.node is not None:
                issued.setdefault(value.op.node, {})[value.op] = None
        return {node: list(ops) for node, ops in issued.items()}

    def is_inside(self, value: Value, scope: Scope, time: float) -> bool:
        """Whether a value is made inside a call that can be written as operations, and is there at a time."""
        op = value.op
        if (
            op is None
            or op.node is None
            or op.scope is not scope
            or value.handle.nodes
            or time >= value.expires
        ):
            return False
        if op.node not in self._expandable:
            self._expandable[op.node] = self._may_expand(op.node, scope)
        return self._expandable[op.node]

    def is_at_hand(self, value: Value, scope: Scope, time: float) -> bool:
        """Whether a tensor holds a value at a time, or can be made to."""
        given = value.node_at(scope, time) is not None or value.attribute_at(scope, time) is not None
        return given or self.is_inside(value, scope, time)

    def _may_expand(self, node: fx.Node, scope: Scope) -> bool:
        made: set[Value] = set()
        for op in self.issued[node]:
            known = all(
                value in made or value.handle.nodes_in(scope) or scope in value.handle.attributes
                for value in op.inputs
            )
            pure = op.func is not None and op.writes is None and not op.random and not op.replayed
            pure = pure and not op.state.transforms
            sizes: list[object] = []
            convert((op.args, tuple(op.kwargs.values())), sizes.append)
            if not known or not pure or any(isinstance(size, sympy.Basic) for size in sizes):
                return False
            made.update(op.outputs)
        return sum(where is scope and n is node for v in made for where, n in v.handle.nodes) == 1

    # -- tensors

    def handle(self, tensor: torch.Tensor) -> Handle:
        """The handle of a tensor; one that was never seen holds something from outside."""
        entry = self._handles.get(id(tensor))
        return entry[0] if entry is not None else self.adopt(tensor, Handle(self._storage(tensor)))

    def adopt(self, tensor: torch.Tensor, handle: Handle) -> Handle:
        """Let a handle stand for a tensor."""
        handle.tensor = tensor
        self._handles[id(tensor)] = handle, tensor
        if is_plain(tensor):
            self._storages.setdefault(tensor.untyped_storage()._cdata, handle.storage)
        return handle

    def _storage(self, tensor: torch.Tensor) -> Storage:
        return (
            self._storages.get(tensor.untyped_storage()._cdata, Storage()) if is_plain(tensor) else Storage()
        )

    def value(self, tensor: torch.Tensor) -> Value:
        """What a tensor holds now."""
        return self.read(self.handle(tensor))

    def read(self, handle: Handle) -> Value:
        """What the tensor of a handle holds now."""
        if handle.value is not None and handle.version == handle.storage.version:
            return handle.value
        if handle.view is None:
            old = handle.value
            assert old is not None or handle.tensor is not None
            meta = describe(handle.tensor) if old is None else describe_value(old)  # type: ignore[arg-type]
            value = self.new(handle, None, 0, *meta)
            value.requires_grad = old is not None and value.dtype.is_floating_point  # written by an alias
            return value
        base, view, output = handle.view
        args = (self.read(base), *view.args[1:])
        op = Op(view.name, args, view.kwargs, view.state, func=view.func, replayed=True)
        assert handle.value is not None
        old = handle.value
        return self.new(handle, op, output, *describe_value(old))

    def new(
        self,
        handle: Handle,
        op: Op | None,
        output: int,
        shape: tuple[Size, ...],
        dtype: torch.dtype,
        device: torch.device,
        plain: bool,
    ) -> Value:
        """Give a value to a handle."""
        value = Value(
            op, output, shape, dtype, device, handle, len(self.values), _needs_grad(op, dtype), plain
        )
        self.values.append(value)
        storage = handle.storage
        storage.live.append(value)
        storage.origin = storage.origin or value
        handle.born = value.time if handle.value is None else handle.born
        handle.value, handle.version = value, storage.version
        if op is not None:
            op.outputs.append(value)
        return value

    def bind(self, scope: Scope, node: fx.Node, result: object) -> None:
        """Say that a node's result is a tensor."""
        if isinstance(result, torch.Tensor):
            handle = self.handle(result)
            self.read(handle)
            handle.nodes.append((scope, node))

    # -- operations

    def record(self, func: OpOverload, args: Any, kwargs: Any, result: Any, state: State) -> None:
        """Write an operation down after it ran."""

        def argument(item: Any) -> Any:
            if isinstance(item, torch.Tensor):
                return self.value(item)
            return size_of(item) if isinstance(item, torch.SymInt) else item

        schema = func._schema
        # Other libraries' operations keep their full name, and so do those that reinterpret as a dtype.
        name = schema.name if schema.overload_name == "dtype" else schema.name.removeprefix("aten::")
        written = [
            a
            for a, s in zip(args, schema.arguments, strict=False)
            if s.alias_info is not None and s.alias_info.is_write
        ]
        written += [kwargs[s.name] for s in schema.arguments if s.name in kwargs and s.alias_info is not None]
        in_place = len(written) == 1 and name.endswith("_")
        if written and not in_place:
            name = schema.name  # several tensors, or an out argument: no meaning is claimed
        reshapes = torch.Tag.inplace_view in func.tags
        name = name[:-1] if in_place else name
        random = torch.Tag.nondeterministic_seeded in func.tags
        op = Op(name, convert(tuple(args), argument), convert(kwargs, argument), state, random=random)
        op.reshapes = reshapes
        op.func = _functional(func) if in_place else None if written else func
        targets = [t for item in written for t in (item if isinstance(item, (tuple, list)) else (item,))]
        for position, target in enumerate(targets):
            if reshapes:
                self._reshape(target, op)
            else:
                self._write(self.handle(target), op, position)
        views = name == "_unsafe_view" or any(r.alias_info is not None for r in schema.returns)
        base = self.handle(args[0]) if views and args and isinstance(args[0], torch.Tensor) else None
        for position, out in enumerate(result if isinstance(result, (tuple, list)) else (result,)):
            if isinstance(out, torch.Tensor) and not any(out is a for a in (*args, *targets)):
                handle = Handle(self._storage(out), view=None if base is None else (base, op, position))
                self.new(self.adopt(out, handle), op, position, *describe(out))

    def _reshape(self, tensor: torch.Tensor, op: Op) -> None:
        """Note that a tensor looks at its memory in another way; the memory holds what it held."""
        handle = self.handle(tensor)
        op.writes = self.read(handle)
        op.writes.expires = min(op.writes.expires, len(self.values))
        handle.view, handle.storage = None, self._storage(tensor)
        self.new(handle, op, 0, *describe(tensor)).requires_grad |= op.writes.requires_grad

    def forget(self, handle: Handle, state: State) -> None:
        """Note that a tensor may have been written to."""
        self._write(handle, Op("unknown", (self.read(handle),), {}, state))

    def _write(self, handle: Handle, op: Op, output: int = 0) -> None:
        old = self.read(handle)
        op.writes = old
        chain = [handle]
        while (view := chain[-1].view) is not None:
            chain.append(view[0])
        before = [self.read(base) for base in chain]
        now = len(self.values)
        handle.storage.version += 1
        for value in handle.storage.live:
            value.expires = min(value.expires, now)
        handle.storage.live = []
        assert handle.tensor is not None
        written = self.new(handle, op, output, *describe(handle.tensor))
        written.requires_grad |= old.requires_grad
        if any(base.view is not None and base.view[1].name not in ONE_TO_ONE for base in chain):
            unknown = Op("unknown", (before[-1], written), {}, op.state)
            for base in chain[:-1]:
                base.version = -1  # what it shows is read from the last one again
            whole = before[-1]
            self.new(chain[-1], unknown, 0, *describe_value(whole)).requires_grad |= whole.requires_grad
            return
        for (child, base), whole in zip(pairwise(chain), before[1:], strict=True):
            assert child.view is not None
            _, look, part = child.view
            scatter = Op("scatter_view", (whole, written, look, part), {}, op.state)
            written = self.new(base, scatter, 0, *describe_value(whole))
            written.requires_grad |= whole.requires_grad


@cache
def _functional(func: OpOverload) -> OpOverload | None:
    """The operation that computes what one in place writes; None where there is none."""

    def parameters(func: OpOverload) -> list[tuple[str, str]]:
        return [(a.name, str(a.type)) for a in func._schema.arguments]

    packet = getattr(getattr(torch.ops, func.namespace), func._schema.name.split("::")[1][:-1], None)
    others = (getattr(packet, name) for name in packet.overloads()) if packet is not None else ()
    return next((other for other in others if parameters(other) == parameters(func)), None)


def _needs_grad(op: Op | None, dtype: torch.dtype) -> bool:
    """Whether autograd follows an operation's result. Inputs are recorded detached and say it themselves."""
    if op is None or not op.state.grad_enabled or op.name in NO_GRADIENT:
        return False
    return (dtype.is_floating_point or dtype.is_complex) and any(value.requires_grad for value in op.inputs)
