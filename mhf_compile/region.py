"""The region of a match: the operations it stands for, and the reasons to leave them alone.

A region is refused wherever leaving it out could be seen: in values, in gradients, in memory that is written,
or in modes that change inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from mhf_compile import notation
from mhf_compile.fold import Stacked
from mhf_compile.kernels.ops import DTYPES
from mhf_compile.match import Match
from mhf_compile.report import source_of
from mhf_compile.rules import RULES
from mhf_compile.tape import Op, Tape, Value, convert
from mhf_compile.unify import Refusal

_CONTRACTIONS = ("mm", "bmm", "mv", "dot", "addmm", "baddbmm")


class Region:
    """The operations that a match stands for, and the reasons to leave them alone."""

    def __init__(self, tape: Tape, match: Match) -> None:
        self.tape = tape
        self.match = match
        self.leaves = {value for leaf in match.leaves for value in _values(leaf.value)}
        self.values = [v for v in sorted(match.visited, key=lambda v: v.time) if v not in self.leaves]
        self.ops = {value.op for value in self.values if value.op is not None}
        self.computed: list[Value] = []
        computed: set[Value] = set()
        for value in self.values:
            assert value.op is not None
            if RULES[value.op.name].kind != "move" or not computed.isdisjoint(value.op.inputs):
                computed.add(value)
                self.computed.append(value)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the op: the widest that the region contracts in."""
        dtypes = [
            v.dtype
            for op in self.ops
            if op.name in _CONTRACTIONS
            for v in op.inputs
            if v.dtype.is_floating_point
        ]
        dtypes = dtypes or [v.dtype for v in self.computed]
        widest = dtypes[0]
        for dtype in dtypes:
            widest = torch.promote_types(widest, dtype)
        return widest

    @property
    def saved(self) -> notation.Size:
        """The bytes of the region's own values that autograd keeps for the backward."""
        computed = set(self.computed)
        kept: dict[object, notation.Size] = {}
        for op in self.ops:
            if not any(value.requires_grad for value in op.outputs):
                continue
            operands = op.inputs if op.name in ("mul", "div", "silu", *_CONTRACTIONS) else ()
            results = op.outputs if op.name in ("sigmoid", "exp", "reciprocal") else ()
            for value in (*operands, *results):
                if value in computed:
                    kept[value.storage] = notation.times(notation.product(value.shape), value.dtype.itemsize)
        total: notation.Size = 0
        for count in kept.values():
            total = notation.size_of(total + count)
        return total

    def structure(self) -> object:
        """What equal regions have in common: operations, shapes, dtypes, and which tensors are the same."""
        names: dict[object, int] = {}

        def name(item: object) -> object:
            if isinstance(item, Value):
                return names.setdefault(item, len(names)), item.shape, item.dtype, item in self.leaves
            if isinstance(item, Op):  # the view that is written through
                return item.name, convert(item.args[1:], name)
            return type(item), item

        return tuple(
            (
                value.op.name,
                value.output,
                convert((value.op.args, tuple(value.op.kwargs.items())), name),
                name(value),
            )
            for value in self.values
            if value.op is not None
        )

    def check(self) -> None:
        """Raise Refusal where the region cannot be left out."""
        root = self.match.root
        assert root.op is not None
        for leaf in self.match.leaves:
            for value in _values(leaf.value):
                self._check_leaf(value, root)
        states = {
            (op.state.grad_enabled, op.state.autocast, op.state.functorch_level)
            for v in self.computed
            if (op := v.op) is not None and op.name not in _CREATION
        }
        if len({grad for grad, _, _ in states}) > 1:
            raise Refusal("grad mode changes inside it", root)
        if len({autocast for _, autocast, _ in states}) > 1:
            raise Refusal("autocast is switched inside it", root)
        if any(level for _, _, level in states):
            raise Refusal("it is inside a functorch transform (vmap or grad)", root)
        inside = set(self.ops)
        for value in self.computed:
            assert value.op is not None
            if value.op.scope is not self.match.scope:
                raise Refusal("a checkpoint boundary crosses it", value)
            if value.op.writes is not None and not self._owns(value):
                raise Refusal(f"it is written into {value.op.writes}, which is not made inside it", value)
            if value is root:
                continue
            if value in self.match.scope.returned:
                raise Refusal(
                    f"the activation {value} is returned as well; return it only when needed", value
                )
            for user in value.users:
                if user not in inside and not self.tape.used.isdisjoint(user.outputs):
                    raise Refusal(
                        f"the activation {value} is used elsewhere as well, by {_describe(user)}", value
                    )
        if root.device.type not in DTYPES or self.dtype not in DTYPES[root.device.type]:
            raise Refusal(f"the op does not take {self.dtype} on {root.device.type}", root)
        for value in self.tape.values[root.time + 1 :]:
            if value.handle is root.handle and value.op is not None and value.op.name.startswith("aten::"):
                raise Refusal(f"the shape of the result {root} is changed in place later", value)
            alias = value.storage is root.storage and value.handle is not root.handle
            if alias and value.handle.born < root.time and value in self.tape.used:
                raise Refusal(
                    f"{value} shares memory with the result {root}, which is written to later", value
                )

    def _check_leaf(self, value: Value, root: Value) -> None:
        if not value.plain:
            raise Refusal(f"{value} is a tensor subclass", value)
        if not value.handle.nodes_in(self.match.scope):
            raise Refusal(
                "an operand is computed inside a single call of the program and cannot be taken from it",
                value,
            )
        if value.node_at(self.match.scope, root.time) is None:
            raise Refusal(f"{value} is written to between its use and the result", value)
        if value.expires < math.inf and root.requires_grad:
            raise Refusal(f"{value} is written to before the backward, which reads it", value)

    def _owns(self, value: Value) -> bool:
        """Whether the storage that a value was written into was made inside the region."""
        first = value.storage.origin
        return (
            first is not None
            and first.op is not None
            and (first.op in self.ops or first.op.name in _CREATION)
        )


_CREATION = ("zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty", "ones", "full")


def _values(value: Any) -> Iterator[Value]:
    if isinstance(value, Stacked):
        for part in value.parts:
            yield from _values(part)
    else:
        yield value


def _describe(op: Op) -> str:
    place = source_of(op.node)
    return f"{op.name} ({place})" if place else op.name
