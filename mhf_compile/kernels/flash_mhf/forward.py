"""The forward kernel in Triton.

A program holds a block of tokens of one head, in registers, and walks over the rows of all sub-networks, or
over a part of them: then it leaves a float32 partial sum, and the parts are added in their order. Its gate,
up and hidden values never leave the chip, and without u nothing of up is compiled in. Accumulation and
elementwise arithmetic are in float32; hidden is rounded to the operands' dtype once, before the product
with v.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhf_compile.kernels.flash_mhf import chunked, config
from mhf_compile.kernels.flash_mhf.config import Target
from mhf_compile.kernels.flash_mhf.elementwise import activate, is_name
from mhf_compile.kernels.flash_mhf.launch import Call, Launch, target_of
from mhf_compile.kernels.flash_mhf.parts import in_parts
from mhf_compile.kernels.flash_mhf.tiles import (
    add_parts,
    add_product,
    in_registers,
    is_last,
    load_bias,
    load_router,
    load_tokens,
    load_weights,
    row_products,
    store_tiles,
    token_rows,
    zero_tiles,
)


@triton.jit(do_not_specialize=["tokens", "length", "part_blocks"])
def forward_kernel(
    q, k, u, v, r, gate_bias, up_bias, out, partial, counters, k_beside, u_beside, v_beside,
    q_strides, k_strides, u_strides, v_strides, r_strides, gate_bias_strides, up_bias_strides, out_strides,
    gate_scale, scale, tokens, length, group, subnetworks, width, part_stride, part_blocks,
    HEAD_DIM: tl.constexpr, OUT_DIM: tl.constexpr, D: tl.constexpr, O: tl.constexpr,
    ACTIVATION: tl.constexpr, GATE_SCALED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, EVEN_N: tl.constexpr, EVEN_F: tl.constexpr,
    DESCRIBED: tl.constexpr, RESIDENT: tl.constexpr, FAST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of tokens, heads, parts of the rows. Descriptors, where DESCRIBED: k, u and v.

    With `counters`, of zeros, a program leaves its sums in its part of `partial`, and the last one of a block
    and head adds them all to `out`; without, `out` is the first of the parts.
    """
    first_n = tl.program_id(0) * BLOCK_N
    n = first_n + tl.arange(0, BLOCK_N)
    in_n = n < tokens
    h = tl.program_id(1)
    hk = h // group
    q_tiles = load_tokens(
        q, None, q_strides, first_n, tokens, length, h, BLOCK_N, D, HEAD_DIM, EVEN_N, False
    )  # fmt: skip
    if RESIDENT and FAST:  # gate and up are halves below
        q_tiles = in_registers(q_tiles, 0.5, BLOCK_N, D, UPCAST)

    totals = zero_tiles(BLOCK_N, O)
    blocks = tl.cdiv(width, BLOCK_F)
    first = tl.program_id(2) * part_blocks
    e = first // blocks
    if r is not None:
        routed = load_router(r, n, in_n, length, h, e, r_strides, EVEN_N)
    first_f = (first % blocks) * BLOCK_F
    for _ in range(first, min(first + part_blocks, subnetworks * blocks)):
        if r is not None:  # noqa: SIM102 (known when compiled, unlike the other condition)
            if first_f == 0:
                routed = load_router(r, n, in_n, length, h, e, r_strides, EVEN_N)
        f = first_f + tl.arange(0, BLOCK_F)
        in_f = f < width
        k_tiles = load_weights(
            k, k_beside, k_strides, first_f, width, hk, e, BLOCK_F, D, HEAD_DIM, EVEN_F, DESCRIBED
        )  # fmt: skip
        gate = row_products(q_tiles, k_tiles, BLOCK_N, BLOCK_F, D, UPCAST)
        if u is not None:
            u_tiles = load_weights(
                u, u_beside, u_strides, first_f, width, hk, e, BLOCK_F, D, HEAD_DIM, EVEN_F, DESCRIBED
            )
            up = row_products(q_tiles, u_tiles, BLOCK_N, BLOCK_F, D, UPCAST)
            if up_bias is not None:
                bias = load_bias(up_bias, f, in_f, hk, e, up_bias_strides)
                up += (0.5 * bias if RESIDENT and FAST else bias)[None, :]
        else:
            up = None
        if GATE_SCALED:
            gate *= gate_scale
        if FAST and not RESIDENT:
            gate *= 0.5
        if gate_bias is not None:
            gate += load_bias(gate_bias, f, in_f, hk, e, gate_bias_strides)[None, :]
        hidden = activate(gate, up, ACTIVATION, FAST)
        if u is not None and is_name(ACTIVATION):
            hidden *= up
        if r is not None:
            hidden *= routed[:, None]
        if not EVEN_F:  # an infinite q makes the rows outside NaN
            hidden = tl.where(in_f[None, :], hidden, 0.0)
        v_tiles = load_weights(
            v, v_beside, v_strides, first_f, width, hk, e, BLOCK_F, O, OUT_DIM, EVEN_F, DESCRIBED
        )  # fmt: skip
        totals = add_product(totals, hidden, v_tiles, O, UPCAST)
        first_f += BLOCK_F
        done = first_f >= width
        e += done.to(tl.int32)
        first_f = tl.where(done, 0, first_f)

    if RESIDENT and FAST and u is not None:
        scale *= 2
    rows = token_rows(n, length, h, out_strides)
    shift = tl.program_id(2).to(tl.int64) * part_stride
    if counters is None:
        store_tiles(out, rows + shift, in_n, totals, scale, O, OUT_DIM)
    else:
        store_tiles(partial, rows + shift, in_n, totals, scale, O, OUT_DIM)
        parts = tl.num_programs(2)
        if is_last(counters, h * tl.num_programs(0) + tl.program_id(0), parts):
            totals = add_parts(partial, part_stride, parts, rows, in_n, BLOCK_N, O, OUT_DIM, 4)
            store_tiles(out, rows, in_n, totals, 1.0, O, OUT_DIM)


def forward(
    q: Tensor,
    k: Tensor,
    u: Tensor | None,
    v: Tensor,
    r: Tensor | None,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    gate_scale: float,
    scale: float,
    workspace: int | None = None,
    *,
    target: Target | None = None,
) -> Tensor:
    """The operator `mhf::flash_mhf`; see `mhf_compile.kernels.ops.flash_mhf`."""
    target = target or target_of(q.device)
    call = Call(q, k, u, v, r, gate_bias, up_bias, activation, gate_scale, scale, target)
    out = q.new_empty(*q.shape[:3], v.shape[3])
    chunk = config.forward_chunk(call.sizes, workspace)
    if call.sizes.tokens == 0:
        pass
    elif chunk is not None:
        chunked.forward(call, out, chunk)
    else:
        for launch in launches(call, out):
            launch.run()
    return out


def launches(call: Call, out: Tensor) -> list[Launch]:
    """The kernel, and the sum of its parts if there are several and it does not add them itself."""
    sizes = call.sizes
    name = config.forward_kernel(sizes)
    tiles = call.tiles(name)
    row_blocks = sizes.subnetworks * triton.cdiv(sizes.width, tiles.rows)
    parts = call.parts(name, row_blocks)
    grid = (triton.cdiv(sizes.tokens, tiles.tokens), sizes.heads, parts)
    extra = [0 if parts == 1 else out.numel(), triton.cdiv(row_blocks, parts)]
    if tiles.joined and parts > 1:
        partial = out.new_empty(parts, *out.shape, dtype=torch.float32)
        joining = [partial, torch.zeros(grid[:2], dtype=torch.int32, device=out.device)]
        return [call.launch(name, forward_kernel, grid, [out], [], extra, tiles, contiguous=joining)]
    result, adding = in_parts(out, parts)
    first = call.launch(name, forward_kernel, grid, [result], [], extra, tiles, contiguous=[None, None])
    return [first, *adding]
