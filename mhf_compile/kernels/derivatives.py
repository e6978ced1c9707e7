"""The operator in differentiable ATen, for the derivatives that no kernel computes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mhf_compile.kernels.activations import hidden_of

T = TypeVar("T")


def of_present(function: Callable[..., T], operands: Sequence[Tensor | None]) -> Callable[..., T]:
    """A function of operands, as one of those of them that there are."""
    present = [x is not None for x in operands]

    def call(*tensors: Tensor) -> T:
        given = iter(tensors)
        return function(*(next(given) if there else None for there in present))

    return call


def directional(
    function: Callable[..., Any], operands: Sequence[Tensor | None], tangents: Sequence[Tensor | None]
) -> Any:
    """The derivative of a function of the operands that there are, in the direction of their tangents.

    It is the gradient in w of the gradient of w * function, which is linear in w: PyTorch has no forward mode
    inside forward mode.
    """
    pairs = [(x, t) for x, t in zip(operands, tangents, strict=False) if x is not None]
    result, pullback, *_ = torch.func.vjp(function, *(x for x, _ in pairs))
    direction = tuple(torch.zeros_like(x) if t is None else t.to(x.dtype) for x, t in pairs)
    (derivative,) = torch.func.vjp(pullback, tree_map(torch.zeros_like, result))[1](direction)
    return derivative


def formula(operands: Iterable[Any], activation: str, gate_scale: float, scale: float) -> Tensor:
    """The operator in differentiable ATen, in q's dtype."""
    q, k, u, v, r, gate_bias, up_bias = operands
    heads = torch.arange(q.shape[2], device=q.device) // (q.shape[2] // k.shape[0])
    gate = torch.einsum("bthd,hefd->bthef", q, k[heads]) * gate_scale
    if gate_bias is not None:
        gate = gate + gate_bias[heads]
    up = None if u is None else torch.einsum("bthd,hefd->bthef", q, u[heads])
    if up is not None and up_bias is not None:
        up = up + up_bias[heads]
    hidden = hidden_of(activation, u is not None)(gate, up)
    if r is not None:
        hidden = hidden * r.to(q.dtype).unsqueeze(-1)
    out: Tensor = torch.einsum("bthef,hefo->btho", hidden, v[heads]) * scale
    return out
