"""Forward and backward by chunks of tokens, whose hidden values and gradients go to a workspace in memory.

A kernel makes them, the library's products of two matrices use them. See `config.forward_chunk` and
`config.backward_chunk` for when, and how large a chunk is.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mhf_compile.kernels.flash_mhf import config
from mhf_compile.kernels.flash_mhf.chunk import chunk_kernel
from mhf_compile.kernels.flash_mhf.config import Sizes, Tiles
from mhf_compile.kernels.flash_mhf.launch import Call, Launch
from mhf_compile.kernels.flash_mhf.walk import walk_kernel


def forward(call: Call, out: Tensor, chunk: int) -> None:
    """Fill `out`, [B, T, H, O] and contiguous."""
    sizes = call.sizes
    v, outs = call.v.flatten(1, 2), _by_group(out, sizes)
    for here in _chunks(sizes, chunk):
        hidden = _wide(call, here)
        launch(call, here, None, [hidden, None, None, None]).run()
        for out_g, hidden_g in zip(outs, _groups(hidden, sizes), strict=True):
            target = out_g[:, here]
            torch.baddbmm(target, hidden_g, v, beta=0, alpha=call.scale, out=target)
        del hidden, hidden_g  # before the next ones


def backward(call: Call, grad: Tensor, grads: Sequence[Tensor | None], chunk: int) -> None:
    """Fill `grads`, zeros for q, k, u, v, r and the biases; None where a gradient is not wanted."""
    dq, dk, du, dv, dr, d_gate_bias, d_up_bias = grads
    sizes = call.sizes
    k, u = call.k.flatten(1, 2), None if call.u is None else call.u.flatten(1, 2)
    queries, gradients = _by_group(call.q, sizes), _by_group(grad, sizes)
    dqs = None if dq is None else _by_group(dq, sizes)
    chunks = list(_chunks(sizes, chunk))
    terms = len(chunks) * call.group
    dk_sum, du_sum, dv_sum = sums = [_sum_for(x, terms) for x in (dk, du, dv)]
    bias_sums = [None if x is None else _float32(x) for x in (d_gate_bias, d_up_bias)]

    for here in chunks:
        wanted = (
            dv is not None,
            any(x is not None for x in (dq, dk, d_gate_bias)),
            u is not None and any(x is not None for x in (dq, du, d_up_bias)),
        )
        wide = [_wide(call, here) if x else None for x in wanted]
        dr_parts = None if dr is None else router_parts(call, here, grad)
        launch(call, here, grad, [*wide, dr_parts]).run()
        if dr is not None and dr_parts is not None:
            dr.flatten(0, 1)[here] = dr_parts.sum(-1)
        hidden, d_gate, d_up = ([None] * call.group if x is None else list(_groups(x, sizes)) for x in wide)
        for g in range(call.group):
            _add_product(dk_sum, d_gate[g], queries[g, :, here], call.gate_scale, rows=True)
            _add_product(du_sum, d_up[g], queries[g, :, here], rows=True)
            _add_product(dv_sum, hidden[g], gradients[g, :, here], call.scale, rows=True)
            for bias_sum, x in zip(bias_sums, (d_gate[g], d_up[g]), strict=True):
                if bias_sum is not None and x is not None:
                    bias_sum += x.sum(1, dtype=torch.float32).view_as(bias_sum)
            if dqs is not None:
                dq_g = dqs[g, :, here]
                dq_sum = dq_g if u is None else _float32(dq_g)
                _add_product(dq_sum, d_gate[g], k, call.gate_scale)
                _add_product(dq_sum, d_up[g], u)
                if dq_sum is not dq_g:
                    dq_g.copy_(dq_sum)
        del wide, hidden, d_gate, d_up, dr_parts  # before the next ones
    for target, total in zip((dk, du, dv, d_gate_bias, d_up_bias), (*sums, *bias_sums), strict=True):
        if target is not None and total is not None and total.dtype != target.dtype:
            target.copy_(total.view_as(target))


def launch(call: Call, here: slice, grad: Tensor | None, outputs: Sequence[Tensor | None]) -> Launch:
    """The kernel on the tokens `here`; `outputs` are hidden, d_gate, d_up and dr, None where not wanted."""
    sizes, chunk = call.sizes, here.stop - here.start
    name = config.chunk_kernel(chunk, grad is not None)
    tiles = call.tiles(name)
    token_blocks = triton.cdiv(chunk, tiles.tokens)
    extra: list[int | None] = [here.start, chunk]
    made: Sequence[Any] = outputs
    if grad is not None and walks(call, grad):
        parts = config.parts(token_blocks * sizes.heads, sizes.subnetworks, tiles, call.target.processors)
        grid: tuple[int, ...] = (token_blocks, sizes.heads, parts)
        kernel, extra = walk_kernel, [*extra, triton.cdiv(sizes.subnetworks, parts)]
        *wide, dr = outputs
        made = [*(None if x is None else _describe(x, tiles) for x in wide), dr]
    else:
        tiles = tiles._replace(described=0)
        kernel = chunk_kernel
        row_blocks = sizes.subnetworks * triton.cdiv(sizes.width, tiles.rows)
        grid = (token_blocks * row_blocks, sizes.heads)
    return call.launch(name, kernel, grid, [grad], [], extra, tiles, contiguous=made, tokens=chunk)


def walks(call: Call, grad: Tensor) -> bool:
    """Whether the programs of a backward walk over rows: they hold a head, and blocks come and go whole."""
    sizes, tiles = call.sizes, call.tiles("chunk_backward")
    return (
        sizes.held is not None
        and sizes.width % tiles.rows == 0
        and call.describable("chunk_backward", [grad], tiles.described)
    )


def _describe(wide: Tensor, tiles: Tiles) -> TensorDescriptor:
    """A result [H, tokens, E * F] by blocks."""
    return TensorDescriptor(wide, list(wide.shape), list(wide.stride()), [1, tiles.tokens, tiles.rows])


def _chunks(sizes: Sizes, chunk: int) -> Iterator[slice]:
    return (slice(i, min(i + chunk, sizes.tokens)) for i in range(0, sizes.tokens, chunk))


def _wide(call: Call, here: slice) -> Tensor:
    """Room for a wide value of the chunk, [H, tokens, E * F]."""
    sizes = call.sizes
    return call.q.new_empty(sizes.heads, here.stop - here.start, sizes.subnetworks * sizes.width)


def router_parts(call: Call, here: slice, grad: Tensor) -> Tensor:
    """Room for the parts of dR that the programs of a chunk make, [tokens, H, E, parts of the rows]."""
    sizes = call.sizes
    row_blocks = 1 if walks(call, grad) else triton.cdiv(sizes.width, call.tiles("chunk_backward").rows)
    shape = here.stop - here.start, sizes.heads, sizes.subnetworks, row_blocks
    return call.q.new_empty(shape, dtype=torch.float32)


def _by_group(x: Tensor, sizes: Sizes) -> Tensor:
    """[B, T, H, C] -> [group, Hk, N, C]; a view where the strides allow."""
    grouped = x.reshape(sizes.tokens, sizes.kv_heads, -1, x.shape[3])
    return grouped.permute(2, 1, 0, 3)


def _groups(wide: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """[H, tokens, E * F] -> [Hk, tokens, E * F] of each head that shares a key-value head."""
    return wide.view(sizes.kv_heads, -1, *wide.shape[1:]).unbind(1)


def _float32(zeros: Tensor) -> Tensor:
    """Zeros of a shape to sum in: themselves where they are float32."""
    return zeros if zeros.dtype == torch.float32 else torch.zeros_like(zeros, dtype=torch.float32)


def _sum_for(grad: Tensor | None, terms: int) -> Tensor | None:
    """Where to sum so many products for a zeroed gradient [Hk, E, F, C], as [Hk, E * F, C]."""
    if grad is None:
        return None
    rows = grad.flatten(1, 2)
    return rows if terms == 1 else _float32(rows)


def _add_product(
    total: Tensor | None, wide: Tensor | None, x: Tensor | None, alpha: float = 1.0, *, rows: bool = False
) -> None:
    """`total += alpha * wide @ x`, or `wide.T @ x` for sums of rows."""
    if total is None or wide is None or x is None:
        return
    a = wide.mT if rows else wide
    if total.dtype == a.dtype:
        total.baddbmm_(a, x, alpha=alpha)
    elif a.is_cuda:
        total.add_(torch.bmm(a, x, out_dtype=total.dtype), alpha=alpha)
    else:  # the interpreter's tensors
        total.baddbmm_(a.to(total.dtype), x.to(total.dtype), alpha=alpha)
