"""The fused calls that a model makes, forward and backward, and how their operands lie in memory.

They are read where autograd has made its graph: there stand the gradients, with their strides, and which of
them are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition

from mhf_compile.api import merged, run_compiled
from mhf_compile.backend import analyse
from mhf_compile.options import PREFIX, parse
from mhf_compile.report.report import Report

if TYPE_CHECKING:
    from mhf_compile.kernels.flash_mhf.config import Target
    from mhf_compile.kernels.flash_mhf.launch import Launch

OPS = (torch.ops.mhf.flash_mhf.default, torch.ops.mhf.flash_mhf_backward.default)
OPERANDS = ("q", "k", "u", "v", "r", "gate_bias", "up_bias")


class UnknownSize(Exception):
    """A size of a fused call is known only when it runs."""


@dataclass(frozen=True)
class Layout:
    """All of a tensor that a kernel is compiled for, and more.

    Attributes:
        shape, strides: in elements.
        dtype: of an element.
        offset: elements by which it begins after an address that is a multiple of 16 of them.
        storage: elements of all that its storage holds.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    storage: int

    @classmethod
    def of(cls, x: Tensor) -> Layout:
        """That of a tensor; of a fake one too, whose symbolic sizes are what they are in the example."""
        shape, strides = tuple(map(_known, x.shape)), tuple(map(_known, x.stride()))
        storage = _known(x.untyped_storage().nbytes()) // x.dtype.itemsize
        return cls(shape, strides, x.dtype, _known(x.storage_offset()) % 16, storage)

    def empty(self) -> Tensor:
        """A tensor that lies so, on the meta device."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        base = torch.empty(max(self.storage, self.offset + last + 1), dtype=self.dtype, device="meta")
        return base.as_strided(self.shape, self.strides, self.offset)

    def of_tokens(self, batch: int, length: int) -> Layout:
        """That of a [B, T, ...] tensor of other B and T, whose axes are nested in the same order.

        Where it is contiguous, strides that count for nothing are as those of a new tensor: a kernel is
        compiled for them as well.
        """
        strides, storage = list(self.strides), self.storage
        for axis, size in enumerate((batch, length)):
            step, whole = strides[axis], strides[axis] * self.shape[axis]
            storage = storage * size // self.shape[axis] if whole else storage
            outer = (i for i, stride in enumerate(strides) if i != axis and whole and stride % whole == 0)
            for i in outer:
                strides[i] = strides[i] // whole * size * step
        shape = batch, length, *self.shape[2:]
        if torch.empty_strided(shape, strides, device="meta").is_contiguous():
            strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return replace(self, shape=shape, strides=tuple(strides), storage=storage)


def _known(size: int | torch.SymInt) -> int:
    """A size as it is in the example."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    if hint is None:
        raise UnknownSize(f"a fused call has a size that is known only when it runs, {size}")
    return int(hint)


@dataclass(frozen=True)
class FusedCall:
    """A call of `mhf::flash_mhf`; or of `mhf::flash_mhf_backward`, which has `grad` and `needs`.

    `operands` are q, k, u, v, r and the biases; see `mhf_compile.kernels.ops.flash_mhf`.
    """

    operands: tuple[Layout | None, ...]
    activation: str
    gate_scale: float
    scale: float
    workspace: int | None
    grad: Layout | None = None
    needs: tuple[bool, ...] = ()

    @classmethod
    def of(cls, node: fx.Node) -> FusedCall:
        """The call that a node of a graph of `OPS` makes."""
        assert isinstance(node.target, torch._ops.OpOverload)
        names = [argument.name for argument in node.target._schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}  # defaults may be left out

        def layout(name: str) -> Layout | None:
            operand: Any = given.get(name)
            return None if operand is None else Layout.of(operand.meta["val"])

        constants: dict[str, Any] = {
            name: given.get(name) for name in ("activation", "gate_scale", "scale", "workspace")
        }
        needs: Any = given.get("needs", ())
        operands = tuple(map(layout, OPERANDS))
        return cls(operands, grad=layout("grad"), needs=tuple(needs), **constants)

    @property
    def q(self) -> Layout:
        """That of the queries, [B, T, H, D]."""
        assert self.operands[0] is not None
        return self.operands[0]

    @property
    def tokens(self) -> int:
        """N = B * T."""
        return self.q.shape[0] * self.q.shape[1]

    def of_tokens(self, tokens: int) -> FusedCall:
        """The call on so many tokens: in as many sequences as now if that is possible, else in one."""
        if tokens == self.tokens:
            return self
        batch = max(1, self.q.shape[0])
        batch = batch if tokens % batch == 0 else 1

        def changed(x: Layout | None) -> Layout | None:
            return None if x is None else x.of_tokens(batch, tokens // batch)

        q, *weights, r, gate_bias, up_bias = self.operands
        operands = (changed(q), *weights, changed(r), gate_bias, up_bias)
        return replace(self, operands=operands, grad=changed(self.grad))

    def cast(self, dtype: torch.dtype) -> FusedCall:
        """The call with another dtype of all but r."""

        def changed(x: Layout | None) -> Layout | None:
            return None if x is None else replace(x, dtype=dtype)

        operands = (x if name == "r" else changed(x) for name, x in zip(OPERANDS, self.operands, strict=True))
        return replace(self, operands=tuple(operands), grad=changed(self.grad))

    def launches(self, target: Target) -> list[Launch]:
        """What it would launch on a device, on the meta device."""
        from mhf_compile.kernels.flash_mhf import backward, forward  # they import Triton
        from mhf_compile.kernels.flash_mhf.ahead import recorded

        arguments: list[Any] = [None if x is None else x.empty() for x in self.operands]
        arguments += [self.activation, self.gate_scale, self.scale]
        with recorded() as launches:
            if self.grad is None:
                arguments += [self.workspace]
                forward.forward(*arguments, target=target)
            else:
                arguments = [self.grad.empty(), *arguments, self.needs, self.workspace]
                backward.backward(*arguments, target=target)
        return launches


def fused_calls(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> tuple[list[FusedCall], Report]:
    """The different fused calls of a model that is run once on its arguments, and the report.

    Raises:
        OptionError: an unknown ``flashmhf.`` option or value.
        UnknownSize: a size of a call is known only when it runs.
    """
    ours, _ = parse({PREFIX + "strict": True, **(options or {})})
    reports: list[Report] = []
    calls: dict[FusedCall, None] = {}

    def note(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        graphs = (part.graph for part in module.modules() if isinstance(part, fx.GraphModule))
        nodes = (node for graph in graphs for node in graph.nodes if node.target in OPS)
        calls.update(dict.fromkeys(map(FusedCall.of, nodes)))
        return make_boxed_func(module)

    def note_joint(module: fx.GraphModule, inputs: Sequence[Any], **sizes: Any) -> Any:
        note(module, inputs)
        return min_cut_rematerialization_partition(module, inputs, **sizes)

    def collect(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        reports.append(analyse(module, ours))
        return aot_autograd(fw_compiler=note, partition_fn=note_joint)(module, inputs)

    run_compiled(model, args, kwargs, collect, dynamic=False)
    return list(calls), merged(reports)
