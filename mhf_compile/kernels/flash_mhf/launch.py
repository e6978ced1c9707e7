"""How every Triton kernel of this folder is launched: its arguments, its grid, its tiles."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from mhf_compile.kernels.flash_mhf.config import Pass, Tiles, tiles

Operands = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]


def launch(
    kernel: Any,
    name: Pass,
    operands: Operands,
    others: Sequence[Tensor | None],
    activation: str,
    gate_scale: float,
    scale: float,
) -> None:
    """Run `kernel` on the operands q, k, u, v, r, gate_bias, up_bias and on `others`: gradients and results.

    Backward kernels take the gradient of the output first. Nothing is launched where there are no tokens or
    no result is wanted.
    """
    q, _, _, v, *_ = operands
    results = others if name == "forward" else others[1:]
    if q.shape[0] * q.shape[1] == 0 or all(x is None for x in results):
        return
    chosen = tiles(name, q.shape[3], v.shape[3], q.dtype, capability(q.device))
    args, options = arguments(operands, others, activation, gate_scale, scale, chosen)
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        kernel[grid(name, q, v, chosen)](*args, **options)


def arguments(
    operands: Operands,
    others: Sequence[Tensor | None],
    activation: str,
    gate_scale: float,
    scale: float,
    chosen: Tiles,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of every kernel: tensors, their strides, constants, sizes; then what is compiled in."""
    q, _, _, v, *_ = operands
    tensors = (*operands, *others)
    strides = ((0,) if x is None else x.stride() for x in tensors)
    tokens, group = q.shape[0] * q.shape[1], q.shape[2] // v.shape[0]
    options = {
        "HEAD_DIM": q.shape[3],
        "OUT_DIM": v.shape[3],
        "ACTIVATION": activation,
        "UPCAST": triton.knobs.runtime.interpret and q.dtype == torch.bfloat16,
        "BLOCK_N": chosen.tokens,
        "BLOCK_F": chosen.rows,
        "BLOCK_D": chosen.d,
        "BLOCK_O": chosen.o,
        "num_warps": chosen.warps,
        "num_stages": chosen.stages,
    }
    return (*tensors, *strides, gate_scale, scale, tokens, q.shape[1], group, *v.shape[1:3]), options


def grid(name: Pass, q: Tensor, v: Tensor, chosen: Tiles) -> tuple[int, int, int]:
    """Over tokens: their blocks, heads, columns. Over rows: their blocks, key-value heads, columns."""
    tokens, heads, head_dim = q.shape[0] * q.shape[1], q.shape[2], q.shape[3]
    kv_heads, subnetworks, width, out_dim = v.shape
    columns = triton.cdiv(head_dim, chosen.d) if name in ("dq", "dk_du") else triton.cdiv(out_dim, chosen.o)
    if name in ("forward", "dq"):
        return triton.cdiv(tokens, chosen.tokens), heads, columns
    return subnetworks * triton.cdiv(width, chosen.rows), kv_heads, columns


def capability(device: torch.device) -> tuple[int, int]:
    """(major, minor); of the interpreter, the least that the kernels support."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
