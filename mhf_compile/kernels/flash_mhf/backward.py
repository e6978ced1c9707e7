"""The backward kernels in Triton: dQ with dR, dK with dU and the biases, dV. Deterministic, no atomics.

Each recomputes gate and up, 13 products in all where 8 are the least (8 and 5 without u): three float32
accumulators do not fit in the registers beside the operands at D = 128. Kernels that walk over tokens
compute transposed values, rows of a sub-network first, which come out of one product as the left operand of
the next.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhf_compile.kernels.flash_mhf import launch
from mhf_compile.kernels.flash_mhf.elementwise import (
    activate,
    dot,
    load_bias,
    load_router,
    load_tile,
    row_products,
    slope,
    store_tile,
    token_rows,
    weight_rows,
)


@triton.jit
def dq_kernel(
    q, k, u, v, r, gate_bias, up_bias, grad, dq, dr,
    q_strides, k_strides, u_strides, v_strides, r_strides, gate_bias_strides, up_bias_strides,
    grad_strides, dq_strides, dr_strides,
    gate_scale, scale, tokens, length, group, subnetworks, width,
    HEAD_DIM: tl.constexpr, OUT_DIM: tl.constexpr, ACTIVATION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of tokens, heads, blocks of the columns of q; the programs of its first write dR."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.program_id(1)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    hk = h // group
    in_n = n < tokens
    q_rows = token_rows(n, length, h, q_strides)
    grad_rows = token_rows(n, length, h, grad_strides)

    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for e in range(subnetworks):
        dr_total = tl.zeros((BLOCK_N,), tl.float32)
        for start in range(0, width, BLOCK_F):
            f = start + tl.arange(0, BLOCK_F)
            in_f = f < width
            k_rows = weight_rows(f, hk, e, k_strides)
            v_rows = weight_rows(f, hk, e, v_strides)
            gate = row_products(
                q, q_rows, in_n, q_strides[3], k, k_rows, in_f, k_strides[3], HEAD_DIM, BLOCK_D, UPCAST
            )
            if u is not None:
                u_rows = weight_rows(f, hk, e, u_strides)
                up = row_products(
                    q, q_rows, in_n, q_strides[3], u, u_rows, in_f, u_strides[3], HEAD_DIM, BLOCK_D, UPCAST
                )
                if up_bias is not None:
                    up += load_bias(up_bias, f, in_f, hk, e, up_bias_strides)[None, :]
            d_hidden = row_products(
                grad,
                grad_rows,
                in_n,
                grad_strides[3],
                v,
                v_rows,
                in_f,
                v_strides[3],
                OUT_DIM,
                BLOCK_O,
                UPCAST,
            )
            gate *= gate_scale
            d_hidden *= scale
            if gate_bias is not None:
                gate += load_bias(gate_bias, f, in_f, hk, e, gate_bias_strides)[None, :]
            activated = activate(gate, ACTIVATION)
            if dr is not None:
                hidden = activated if u is None else activated * up
                dr_total += tl.sum(hidden * d_hidden, 1)
            if r is not None:
                d_hidden *= load_router(r, n, in_n, length, h, e, r_strides)[:, None]
            if dq is not None:
                k_tile = load_tile(k, k_rows, in_f, d, k_strides[3], HEAD_DIM)
                d_gate = slope(gate, ACTIVATION)
                if u is not None:
                    u_tile = load_tile(u, u_rows, in_f, d, u_strides[3], HEAD_DIM)
                    d_gate *= up
                d_gate *= d_hidden * gate_scale
                total = dot(d_gate.to(k_tile.dtype), k_tile, total, UPCAST)
                if u is not None:
                    total = dot((activated * d_hidden).to(u_tile.dtype), u_tile, total, UPCAST)
        if dr is not None:  # noqa: SIM102 (known when compiled, unlike the other condition)
            if tl.program_id(2) == 0:
                tl.store(dr + token_rows(n, length, h, dr_strides) + e, dr_total, mask=in_n)
    if dq is not None:
        store_tile(dq, token_rows(n, length, h, dq_strides), in_n, d, total, HEAD_DIM)


@triton.jit
def dk_du_kernel(
    q, k, u, v, r, gate_bias, up_bias, grad, dk, du, d_gate_bias, d_up_bias,
    q_strides, k_strides, u_strides, v_strides, r_strides, gate_bias_strides, up_bias_strides,
    grad_strides, dk_strides, du_strides, d_gate_bias_strides, d_up_bias_strides,
    gate_scale, scale, tokens, length, group, subnetworks, width,
    HEAD_DIM: tl.constexpr, OUT_DIM: tl.constexpr, ACTIVATION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of rows of all sub-networks, key-value heads, blocks of columns; its first do biases."""
    blocks = tl.cdiv(width, BLOCK_F)
    e = tl.program_id(0) // blocks
    f = (tl.program_id(0) % blocks) * BLOCK_F + tl.arange(0, BLOCK_F)
    hk = tl.program_id(1)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_f = f < width
    k_rows = weight_rows(f, hk, e, k_strides)
    v_rows = weight_rows(f, hk, e, v_strides)
    if u is not None:
        u_rows = weight_rows(f, hk, e, u_strides)

    dk_total = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
    du_total = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
    d_gate_total = tl.zeros((BLOCK_F,), tl.float32)
    d_up_total = tl.zeros((BLOCK_F,), tl.float32)
    for h in range(hk * group, (hk + 1) * group):
        for start in range(0, tokens, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            in_n = n < tokens
            q_rows = token_rows(n, length, h, q_strides)
            grad_rows = token_rows(n, length, h, grad_strides)
            gate = row_products(
                k, k_rows, in_f, k_strides[3], q, q_rows, in_n, q_strides[3], HEAD_DIM, BLOCK_D, UPCAST
            )
            if u is not None:
                up = row_products(
                    u, u_rows, in_f, u_strides[3], q, q_rows, in_n, q_strides[3], HEAD_DIM, BLOCK_D, UPCAST
                )
                if up_bias is not None:
                    up += load_bias(up_bias, f, in_f, hk, e, up_bias_strides)[:, None]
            d_hidden = row_products(
                v,
                v_rows,
                in_f,
                v_strides[3],
                grad,
                grad_rows,
                in_n,
                grad_strides[3],
                OUT_DIM,
                BLOCK_O,
                UPCAST,
            )
            gate *= gate_scale
            d_hidden *= scale
            if gate_bias is not None:
                gate += load_bias(gate_bias, f, in_f, hk, e, gate_bias_strides)[:, None]
            if r is not None:
                d_hidden *= load_router(r, n, in_n, length, h, e, r_strides)[None, :]
            d_gate = slope(gate, ACTIVATION)
            if u is not None:
                d_up = activate(gate, ACTIVATION) * d_hidden
                d_gate *= up
            d_gate *= d_hidden
            q_tile = load_tile(q, q_rows, in_n, d, q_strides[3], HEAD_DIM)
            dk_total = dot(d_gate.to(q_tile.dtype), q_tile, dk_total, UPCAST)
            if d_gate_bias is not None:
                d_gate_total += tl.sum(d_gate, 1)
            if u is not None:
                du_total = dot(d_up.to(q_tile.dtype), q_tile, du_total, UPCAST)
                if d_up_bias is not None:
                    d_up_total += tl.sum(d_up, 1)

    if dk is not None:
        store_tile(dk, weight_rows(f, hk, e, dk_strides), in_f, d, dk_total * gate_scale, HEAD_DIM)
    if du is not None:
        store_tile(du, weight_rows(f, hk, e, du_strides), in_f, d, du_total, HEAD_DIM)
    if tl.program_id(2) == 0:
        if d_gate_bias is not None:
            tl.store(d_gate_bias + weight_rows(f, hk, e, d_gate_bias_strides), d_gate_total, mask=in_f)
        if d_up_bias is not None:
            tl.store(d_up_bias + weight_rows(f, hk, e, d_up_bias_strides), d_up_total, mask=in_f)


@triton.jit
def dv_kernel(
    q, k, u, v, r, gate_bias, up_bias, grad, dv,
    q_strides, k_strides, u_strides, v_strides, r_strides, gate_bias_strides, up_bias_strides,
    grad_strides, dv_strides,
    gate_scale, scale, tokens, length, group, subnetworks, width,
    HEAD_DIM: tl.constexpr, OUT_DIM: tl.constexpr, ACTIVATION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of rows of all sub-networks, key-value heads, blocks of columns of v."""
    blocks = tl.cdiv(width, BLOCK_F)
    e = tl.program_id(0) // blocks
    f = (tl.program_id(0) % blocks) * BLOCK_F + tl.arange(0, BLOCK_F)
    hk = tl.program_id(1)
    o = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    in_f = f < width
    k_rows = weight_rows(f, hk, e, k_strides)
    if u is not None:
        u_rows = weight_rows(f, hk, e, u_strides)

    total = tl.zeros((BLOCK_F, BLOCK_O), tl.float32)
    for h in range(hk * group, (hk + 1) * group):
        for start in range(0, tokens, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            in_n = n < tokens
            q_rows = token_rows(n, length, h, q_strides)
            gate = row_products(
                k, k_rows, in_f, k_strides[3], q, q_rows, in_n, q_strides[3], HEAD_DIM, BLOCK_D, UPCAST
            )
            if u is not None:
                up = row_products(
                    u, u_rows, in_f, u_strides[3], q, q_rows, in_n, q_strides[3], HEAD_DIM, BLOCK_D, UPCAST
                )
                if up_bias is not None:
                    up += load_bias(up_bias, f, in_f, hk, e, up_bias_strides)[:, None]
            gate *= gate_scale
            if gate_bias is not None:
                gate += load_bias(gate_bias, f, in_f, hk, e, gate_bias_strides)[:, None]
            hidden = activate(gate, ACTIVATION)
            if u is not None:
                hidden *= up
            if r is not None:
                hidden *= load_router(r, n, in_n, length, h, e, r_strides)[None, :]
            grad_tile = load_tile(
                grad, token_rows(n, length, h, grad_strides), in_n, o, grad_strides[3], OUT_DIM
            )
            total = dot(hidden.to(grad_tile.dtype), grad_tile, total, UPCAST)
    store_tile(dv, weight_rows(f, hk, e, dv_strides), in_f, o, total * scale, OUT_DIM)


def backward(
    grad: Tensor,
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
    needs: Sequence[bool],
) -> list[Tensor]:
    """The operator `mhf::flash_mhf_backward`; see `mhf_compile.kernels.ops`."""
    operands = (q, k, u, v, r, gate_bias, up_bias)
    # Without tokens no kernel runs, and the gradients of the weights are zero.
    allocate = torch.empty_like if q.shape[0] * q.shape[1] else torch.zeros_like
    grads = [
        allocate(x, memory_format=torch.contiguous_format) if x is not None and need else None
        for x, need in zip(operands, needs, strict=True)
    ]
    dq, dk, du, dv, dr, d_gate_bias, d_up_bias = grads
    constants = activation, gate_scale, scale
    launch.launch(dq_kernel, "dq", operands, (grad, dq, dr), *constants)
    launch.launch(dk_du_kernel, "dk_du", operands, (grad, dk, du, d_gate_bias, d_up_bias), *constants)
    launch.launch(dv_kernel, "dv", operands, (grad, dv), *constants)
    return [x for x in grads if x is not None]
