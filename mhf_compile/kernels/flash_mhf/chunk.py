"""The kernels of a chunk of tokens, whose hidden values go to memory.

In forward one kernel makes them, and the library multiplies them by V: 2 units of work and 1. In backward all
products are the library's, 8 units where the kernels that keep everything on the chip have 11 to 15: gate, up
and the gradient of hidden come to memory, and a kernel puts hidden and the gradients of gate and up in their
place. That is for heads of any width, too wide ones for a register tile included.
"""

import triton
import triton.language as tl

from mhf_compile.kernels.flash_mhf.elementwise import activate, is_name, pull_back
from mhf_compile.kernels.flash_mhf.tiles import (
    dot,
    load_bias,
    load_router,
    load_tile,
    token_rows,
    weight_rows,
)


@triton.jit(do_not_specialize=["tokens", "length", "first_token", "chunk"])
def chunk_kernel(
    q, k, u, v, r, gate_bias, up_bias, hidden,
    q_strides, k_strides, u_strides, v_strides, r_strides, gate_bias_strides, up_bias_strides,
    gate_scale, scale, tokens, length, group, subnetworks, width, first_token, chunk,
    HEAD_DIM: tl.constexpr, OUT_DIM: tl.constexpr, ACTIVATION: tl.constexpr,
    GATE_SCALED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_F: tl.constexpr, FAST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of tokens of the chunk, for each block of rows of all sub-networks; heads.

    The chunk is of tokens from first_token on. hidden is [H, chunk, E * F].
    """
    token_blocks = tl.cdiv(chunk, BLOCK_N)
    row_block = tl.program_id(0) // token_blocks
    m = (tl.program_id(0) % token_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = m < chunk
    n = first_token + m
    row_blocks = tl.cdiv(width, BLOCK_F)
    e = row_block // row_blocks
    f = (row_block % row_blocks) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_f = f < width
    h = tl.program_id(1)
    hk = h // group

    q_rows = token_rows(n, length, h, q_strides)
    k_rows = weight_rows(f, hk, e, k_strides)
    gate = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
    if u is not None:
        u_rows = weight_rows(f, hk, e, u_strides)
        up = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
    else:
        up = None
    for start in range(0, HEAD_DIM, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        q_tile = load_tile(q, q_rows, in_n, columns, q_strides[3], HEAD_DIM, HEAD_DIM % BLOCK_D == 0, EVEN_N)
        k_tile = load_tile(k, k_rows, in_f, columns, k_strides[3], HEAD_DIM, HEAD_DIM % BLOCK_D == 0, EVEN_F)
        gate = dot(q_tile, tl.trans(k_tile), gate, UPCAST)
        if u is not None:
            u_tile = load_tile(
                u, u_rows, in_f, columns, u_strides[3], HEAD_DIM, HEAD_DIM % BLOCK_D == 0, EVEN_F
            )
            up = dot(q_tile, tl.trans(u_tile), up, UPCAST)

    if GATE_SCALED:
        gate *= gate_scale
    if FAST:
        gate *= 0.5
    if gate_bias is not None:
        gate += load_bias(gate_bias, f, in_f, hk, e, gate_bias_strides)[None, :]
    if up_bias is not None:
        up += load_bias(up_bias, f, in_f, hk, e, up_bias_strides)[None, :]

    activated = activate(gate, up, ACTIVATION, FAST)
    product = activated * up if u is not None and is_name(ACTIVATION) else activated
    if r is not None:
        product *= load_router(r, n, in_n, length, h, e, r_strides, EVEN_N)[:, None]
    row_width = tl.cast(subnetworks * width, tl.int64)
    wide = (h.to(tl.int64) * chunk + m)[:, None] * row_width + (e * width + f)[None, :]
    tl.store(hidden + wide, product, mask=in_n[:, None] & in_f[None, :])


@triton.jit(do_not_specialize=["length", "first_token", "chunk"])
def gradients_kernel(
    gate, up, d_hidden, r, gate_bias, up_bias, dr, r_strides, gate_bias_strides, up_bias_strides,
    length, group, subnetworks, width, first_token, chunk,
    ACTIVATION: tl.constexpr, HIDDEN: tl.constexpr, D_GATE: tl.constexpr, D_UP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Put D_GATE in the place of gate, D_UP of up, HIDDEN of d_hidden, or of gate if that is all there is.

    Grid: blocks of tokens of the chunk, for each block of rows of all sub-networks; heads. The chunk is of
    tokens from first_token on, its values are [H, chunk, E * F]. dr is [chunk, H, E * blocks of rows],
    float32: parts of a sum.
    """
    token_blocks = tl.cdiv(chunk, BLOCK_N)
    row_block = tl.program_id(0) // token_blocks
    m = (tl.program_id(0) % token_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = m < chunk
    row_blocks = tl.cdiv(width, BLOCK_F)
    e = row_block // row_blocks
    f = (row_block % row_blocks) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_f = f < width
    h = tl.program_id(1)
    hk = h // group
    row_width = tl.cast(subnetworks * width, tl.int64)
    wide = (h.to(tl.int64) * chunk + m)[:, None] * row_width + (e * width + f)[None, :]
    inside = in_n[:, None] & in_f[None, :]

    x = tl.load(gate + wide, mask=inside, other=0.0).to(tl.float32)
    if FAST:
        x *= 0.5
    if gate_bias is not None:
        x += load_bias(gate_bias, f, in_f, hk, e, gate_bias_strides)[None, :]
    if up is not None:
        y = tl.load(up + wide, mask=inside, other=0.0).to(tl.float32)
        if up_bias is not None:
            y += load_bias(up_bias, f, in_f, hk, e, up_bias_strides)[None, :]
    else:
        y = None
    activated = activate(x, y, ACTIVATION, FAST)
    product = activated * y if up is not None and is_name(ACTIVATION) else activated
    if r is not None:
        routed = load_router(r, first_token + m, in_n, length, h, e, r_strides, False)[:, None]
    if d_hidden is not None:
        gradient = tl.load(d_hidden + wide, mask=inside, other=0.0).to(tl.float32)
        if dr is not None:
            part = tl.sum(tl.where(inside, product * gradient, 0.0), 1)
            at = (m.to(tl.int64) * tl.num_programs(1) + h) * subnetworks * row_blocks + row_block
            tl.store(dr + at, part, mask=in_n)
        if r is not None:
            gradient *= routed
        d_gate, d_up = pull_back(gradient, x, y, activated, ACTIVATION, FAST)
        if D_UP:
            tl.store(up + wide, d_up, mask=inside)
        if D_GATE:
            tl.store(gate + wide, d_gate, mask=inside)
    if HIDDEN:
        if r is not None:
            product *= routed
        tl.store((gate if d_hidden is None else d_hidden) + wide, product, mask=inside)
