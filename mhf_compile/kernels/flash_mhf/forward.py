"""The forward kernel in Triton.

A program holds one block of tokens of one head and a block of the columns of v, and walks over all rows of
all sub-networks. Its gate, up and hidden values never leave the chip, and without u nothing of up is
compiled in. Any sizes and strides; accumulation and elementwise arithmetic in float32; hidden is rounded to
the operands' dtype once, before the product with v.
"""

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
    store_tile,
    token_rows,
    weight_rows,
)


@triton.jit
def forward_kernel(
    q, k, u, v, r, gate_bias, up_bias, out,
    q_strides, k_strides, u_strides, v_strides, r_strides, gate_bias_strides, up_bias_strides, out_strides,
    gate_scale, scale, tokens, length, group, subnetworks, width,
    HEAD_DIM: tl.constexpr, OUT_DIM: tl.constexpr, ACTIVATION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of tokens, heads, blocks of output columns."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.program_id(1)
    o = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    hk = h // group
    in_n = n < tokens
    q_rows = token_rows(n, length, h, q_strides)

    total = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
    blocks = tl.cdiv(width, BLOCK_F)
    for i in range(subnetworks * blocks):
        e = i // blocks
        f = (i % blocks) * BLOCK_F + tl.arange(0, BLOCK_F)
        in_f = f < width
        k_rows = weight_rows(f, hk, e, k_strides)
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
        gate *= gate_scale
        if gate_bias is not None:
            gate += load_bias(gate_bias, f, in_f, hk, e, gate_bias_strides)[None, :]
        hidden = activate(gate, ACTIVATION)
        if u is not None:
            hidden *= up
        if r is not None:
            hidden *= load_router(r, n, in_n, length, h, e, r_strides)[:, None]
        values = load_tile(v, weight_rows(f, hk, e, v_strides), in_f, o, v_strides[3], OUT_DIM)
        total = dot(hidden.to(values.dtype), values, total, UPCAST)
    store_tile(out, token_rows(n, length, h, out_strides), in_n, o, total * scale, OUT_DIM)


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
) -> Tensor:
    """The operator `mhf::flash_mhf`; see `mhf_compile.kernels.ops.flash_mhf`."""
    out = q.new_empty(*q.shape[:3], v.shape[3])
    operands = (q, k, u, v, r, gate_bias, up_bias)
    launch.launch(forward_kernel, "forward", operands, (out,), activation, gate_scale, scale)
    return out
