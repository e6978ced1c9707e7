"""The kernel of a chunk of tokens: their hidden values, and in backward all gradients there, go to memory.

What remains are products of two matrices, which the library computes: 3 units of work here and 5 there in
backward, where the kernels that keep everything on the chip have 11 or 13. It takes heads of any width, too
wide ones for a register tile included: it walks over their columns.
"""

import triton
import triton.language as tl

from mhf_compile.kernels.flash_mhf.elementwise import activate, cut_off, slope
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
    q, k, u, v, r, gate_bias, up_bias, grad, hidden, d_gate, d_up, dr,
    q_strides, k_strides, u_strides, v_strides, r_strides, gate_bias_strides, up_bias_strides, grad_strides,
    gate_scale, scale, tokens, length, group, subnetworks, width, first_token, chunk,
    HEAD_DIM: tl.constexpr, OUT_DIM: tl.constexpr, ACTIVATION: tl.constexpr,
    GATE_SCALED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_F: tl.constexpr, FAST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of tokens of the chunk, for each block of rows of all sub-networks; heads.

    The chunk is of tokens from first_token on. hidden, d_gate and d_up are [H, chunk, E * F]; without grad,
    hidden is all there is. dr is [chunk, H, E * blocks of rows], float32: parts of a sum.
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

    if grad is not None:
        grad_rows = token_rows(n, length, h, grad_strides)
        v_rows = weight_rows(f, hk, e, v_strides)
        d_hidden = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
        for start in range(0, OUT_DIM, BLOCK_D):
            columns = start + tl.arange(0, BLOCK_D)
            grad_tile = load_tile(
                grad, grad_rows, in_n, columns, grad_strides[3], OUT_DIM, OUT_DIM % BLOCK_D == 0, EVEN_N
            )
            v_tile = load_tile(
                v, v_rows, in_f, columns, v_strides[3], OUT_DIM, OUT_DIM % BLOCK_D == 0, EVEN_F
            )
            d_hidden = dot(grad_tile, tl.trans(v_tile), d_hidden, UPCAST)
        if SCALED:
            d_hidden *= scale

    activated = activate(gate, ACTIVATION, FAST)
    product = activated * up if u is not None else activated
    if r is not None:
        routed = load_router(r, n, in_n, length, h, e, r_strides, EVEN_N)[:, None]
    if dr is not None:
        part = tl.sum(tl.where(in_f[None, :], product * d_hidden, 0.0), 1)
        at = (m.to(tl.int64) * tl.num_programs(1) + h) * subnetworks * row_blocks + row_block
        tl.store(dr + at, part, mask=in_n)

    row_width = tl.cast(subnetworks * width, tl.int64)
    wide = (h.to(tl.int64) * chunk + m)[:, None] * row_width + (e * width + f)[None, :]
    inside = in_n[:, None] & in_f[None, :]
    if hidden is not None:
        if r is not None:
            product *= routed
        tl.store(hidden + wide, product, mask=inside)
    if d_gate is not None or d_up is not None:
        if r is not None:
            d_hidden *= routed
        if d_up is not None:
            tl.store(d_up + wide, activated * d_hidden, mask=inside)
        if d_gate is not None:
            gradient = slope(gate, ACTIVATION, FAST) * d_hidden
            if u is not None:
                gradient *= up
            gradient = cut_off(gradient, gate, ACTIVATION)
            tl.store(d_gate + wide, gradient, mask=inside)
