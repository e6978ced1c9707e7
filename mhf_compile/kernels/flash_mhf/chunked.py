"""Forward and backward by chunks of tokens, whose hidden values and gradients go to a workspace in memory.

See `chunk` for what a kernel does there and what the library's products of two matrices do, and
`config.forward_chunk` and `config.backward_chunk` for when, and how large a chunk is.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mhf_compile.kernels.activations import compiled_in
from mhf_compile.kernels.flash_mhf import config
from mhf_compile.kernels.flash_mhf.chunk import chunk_kernel, gradients_kernel
from mhf_compile.kernels.flash_mhf.config import Sizes, Tiles
from mhf_compile.kernels.flash_mhf.launch import Call, Launch

BLOCK, MOST_ROWS = 2048, 512  # values that a program of `gradients_kernel` makes, and rows of them


def forward(call: Call, out: Tensor, chunk: int) -> None:
    """Fill `out`, [B, T, H, O] and contiguous."""
    sizes = call.sizes
    v, outs = call.v.flatten(1, 2), _by_group(out, sizes)
    for here in _chunks(sizes, chunk):
        hidden = _wide(call, here)
        launch(call, here, hidden).run()
        for out_g, hidden_g in zip(outs, _groups(hidden, sizes), strict=True):
            target = out_g[:, here]
            torch.baddbmm(target, hidden_g, v, beta=0, alpha=call.scale, out=target)
        del hidden, hidden_g  # before the next ones


def backward(call: Call, grad: Tensor, grads: Sequence[Tensor | None], chunk: int) -> None:
    """Fill `grads`, zeros for q, k, u, v, r and the biases; None where a gradient is not wanted."""
    dq, dk, du, dv, dr, d_gate_bias, d_up_bias = grads
    sizes = call.sizes
    k, u = call.k.flatten(1, 2), None if call.u is None else call.u.flatten(1, 2)
    v = call.v.flatten(1, 2)
    queries, gradients = _by_group(call.q, sizes), _by_group(grad, sizes)
    dqs = None if dq is None else _by_group(dq, sizes)
    chunks = list(_chunks(sizes, chunk))
    terms = len(chunks) * call.group
    dk_sum, du_sum, dv_sum = sums = [_sum_for(x, terms) for x in (dk, du, dv)]
    bias_sums = [None if x is None else _float32(x) for x in (d_gate_bias, d_up_bias)]

    makes = Made(
        hidden=dv is not None,
        d_gate=any(x is not None for x in (dq, dk, d_gate_bias)),
        d_up=u is not None and any(x is not None for x in (dq, du, d_up_bias)),
        dr=dr is not None,
    )
    for here in chunks:
        gate = _scores(call, here, queries, k, call.gate_scale)
        up = None if u is None else _scores(call, here, queries, u)
        d_hidden = _scores(call, here, gradients, v, call.scale) if makes.gradients else None
        dr_parts = router_parts(call, here) if makes.dr else None
        gradients_launch(call, here, gate, up, d_hidden, dr_parts, makes).run()
        if dr is not None and dr_parts is not None:
            dr.flatten(0, 1)[here] = dr_parts.sum(-1)
        wide = (
            (gate if d_hidden is None else d_hidden) if makes.hidden else None,
            gate if makes.d_gate else None,
            up if makes.d_up else None,
        )
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
        del gate, up, wide, hidden, d_gate, d_up, d_hidden, x, dr_parts  # before the next ones
    for target, total in zip((dk, du, dv, d_gate_bias, d_up_bias), (*sums, *bias_sums), strict=True):
        if target is not None and total is not None and total.dtype != target.dtype:
            target.copy_(total.view_as(target))


class Made(NamedTuple):
    """What is made of gate, up and the gradient of hidden."""

    hidden: bool
    d_gate: bool
    d_up: bool
    dr: bool

    @property
    def gradients(self) -> bool:
        """Whether the gradient of hidden is needed."""
        return self.d_gate or self.d_up or self.dr


def launch(call: Call, here: slice, hidden: Tensor) -> Launch:
    """The kernel that makes the hidden values of the tokens `here`."""
    sizes, chunk = call.sizes, here.stop - here.start
    name = config.chunk_kernel(chunk)
    tiles = call.tiles(name)
    row_blocks = sizes.subnetworks * triton.cdiv(sizes.width, tiles.rows)
    grid = (triton.cdiv(chunk, tiles.tokens) * row_blocks, sizes.heads)
    extra = [here.start, chunk]
    return call.launch(name, chunk_kernel, grid, [], [], extra, tiles, contiguous=[hidden], tokens=chunk)


def gradients_launch(
    call: Call,
    here: slice,
    gate: Tensor,
    up: Tensor | None,
    d_hidden: Tensor | None,
    dr_parts: Tensor | None,
    makes: Made,
) -> Launch:
    """The kernel that makes hidden and the gradients of the tokens `here` in place, [H, tokens, E * F]."""
    sizes, chunk = call.sizes, here.stop - here.start
    rows = block_rows(sizes)
    tokens = BLOCK // rows
    row_blocks = sizes.subnetworks * triton.cdiv(sizes.width, rows)
    args = (
        gate, up, d_hidden, call.r, call.gate_bias, call.up_bias, dr_parts,
        *(() if x is None else x.stride() for x in (call.r, call.gate_bias, call.up_bias)),
        call.q.shape[1], call.group, sizes.subnetworks, sizes.width, here.start, chunk,
    )  # fmt: skip
    options = {
        "ACTIVATION": compiled_in(call.activation, sizes.gated),
        "HIDDEN": makes.hidden,
        "D_GATE": makes.d_gate,
        "D_UP": makes.d_up,
        "BLOCK_N": tokens,
        "BLOCK_F": rows,
        "FAST": call.fast,
        "num_warps": 4,
        "num_stages": 1,
    }
    grid = (triton.cdiv(chunk, tokens) * row_blocks, sizes.heads)
    return Launch("gradients", gradients_kernel, grid, args, options, Tiles(tokens, rows, warps=4, stages=1))


def block_rows(sizes: Sizes) -> int:
    """Rows of a block of `gradients_kernel`."""
    return min(MOST_ROWS, 1 << (sizes.width - 1).bit_length())


def _scores(call: Call, here: slice, xs: Tensor, weight: Tensor, alpha: float = 1.0) -> Tensor:
    """A wide value of the chunk: the products of tokens [group, Hk, N, C] and rows [Hk, E * F, C]."""
    wide = _wide(call, here)
    for x, target in zip(xs, _groups(wide, call.sizes), strict=True):
        torch.baddbmm(target, x[:, here], weight.mT, beta=0, alpha=alpha, out=target)
    return wide


def _chunks(sizes: Sizes, chunk: int) -> Iterator[slice]:
    return (slice(i, min(i + chunk, sizes.tokens)) for i in range(0, sizes.tokens, chunk))


def _wide(call: Call, here: slice) -> Tensor:
    """Room for a wide value of the chunk, [H, tokens, E * F]."""
    sizes = call.sizes
    return call.q.new_empty(sizes.heads, here.stop - here.start, sizes.subnetworks * sizes.width)


def router_parts(call: Call, here: slice) -> Tensor:
    """Room for the parts of dR that the programs of a chunk make, [tokens, H, E, parts of the rows]."""
    sizes = call.sizes
    row_blocks = triton.cdiv(sizes.width, block_rows(sizes))
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
