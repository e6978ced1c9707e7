"""The kernel of a chunk of tokens in backward whose programs walk over the rows; `chunk` has the other.

A program holds q and the gradient of a block of tokens of one head; K, U and V come, and what it makes goes,
through descriptors (TMA), so that to store a block does not keep the next one waiting.
"""

import triton
import triton.language as tl

from mhf_compile.kernels.flash_mhf.elementwise import activate, cut_off, slope
from mhf_compile.kernels.flash_mhf.tiles import (
    load_bias,
    load_router,
    load_tokens,
    load_weights,
    row_products,
    store_block,
)


@triton.jit(do_not_specialize=["tokens", "length", "first_token", "chunk", "part_subnetworks"])
def walk_kernel(
    q, k, u, v, r, gate_bias, up_bias, grad, hidden, d_gate, d_up, dr, k_beside, u_beside, v_beside,
    q_strides, k_strides, u_strides, v_strides, r_strides, gate_bias_strides, up_bias_strides, grad_strides,
    gate_scale, scale, tokens, length, group, subnetworks, width, first_token, chunk, part_subnetworks,
    HEAD_DIM: tl.constexpr, OUT_DIM: tl.constexpr, D: tl.constexpr, O: tl.constexpr,
    ACTIVATION: tl.constexpr, GATE_SCALED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, EVEN_N: tl.constexpr, EVEN_F: tl.constexpr,
    DESCRIBED: tl.constexpr, FAST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of tokens of the chunk, heads, parts of the sub-networks. BLOCK_F divides the width.

    Descriptors: k, u and v; hidden, d_gate and d_up, [H, chunk, E * F]. The chunk is of tokens from
    first_token on. dr is [chunk, H, E], float32.
    """
    first_m = tl.program_id(0) * BLOCK_N
    first_n = first_token + first_m
    m = first_m + tl.arange(0, BLOCK_N)
    in_n = m < chunk
    n = first_token + m
    h = tl.program_id(1)
    hk = h // group
    q_tiles = load_tokens(
        q, None, q_strides, first_n, tokens, length, h, BLOCK_N, D, HEAD_DIM, EVEN_N, False
    )  # fmt: skip
    grad_tiles = load_tokens(
        grad, None, grad_strides, first_n, tokens, length, h, BLOCK_N, O, OUT_DIM, EVEN_N, False
    )  # fmt: skip
    dr_total = tl.zeros((BLOCK_N,), tl.float32)
    blocks = width // BLOCK_F
    first_e = tl.program_id(2) * part_subnetworks
    last_e = min(first_e + part_subnetworks, subnetworks)
    for block in range(first_e * blocks, last_e * blocks):
        e = block // blocks
        first_f = (block % blocks) * BLOCK_F
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
                up += load_bias(up_bias, f, in_f, hk, e, up_bias_strides)[None, :]
        v_tiles = load_weights(
            v, v_beside, v_strides, first_f, width, hk, e, BLOCK_F, O, OUT_DIM, EVEN_F, DESCRIBED
        )  # fmt: skip
        d_hidden = row_products(grad_tiles, v_tiles, BLOCK_N, BLOCK_F, O, UPCAST)
        if SCALED:
            d_hidden *= scale
        if GATE_SCALED:
            gate *= gate_scale
        if FAST:
            gate *= 0.5
        if gate_bias is not None:
            gate += load_bias(gate_bias, f, in_f, hk, e, gate_bias_strides)[None, :]
        activated = activate(gate, ACTIVATION, FAST)
        product = activated * up if u is not None else activated
        if dr is not None:
            dr_total += tl.sum(product * d_hidden, 1)
            at = (m.to(tl.int64) * tl.num_programs(1) + h) * subnetworks + e
            tl.store(dr + at, dr_total, mask=in_n)  # each time: cheap beside the tiles
            dr_total = tl.where(first_f + BLOCK_F == width, 0.0, dr_total)
        if r is not None:
            routed = load_router(r, n, in_n, length, h, e, r_strides, EVEN_N)[:, None]
            d_hidden *= routed
        column = block * BLOCK_F
        if hidden is not None:
            store_block(hidden, h, first_m, column, product * routed if r is not None else product)
        if d_up is not None:
            store_block(d_up, h, first_m, column, activated * d_hidden)
        if d_gate is not None:
            gradient = slope(gate, ACTIVATION, FAST) * d_hidden
            if u is not None:
                gradient *= up
            store_block(d_gate, h, first_m, column, cut_off(gradient, gate, ACTIVATION))
