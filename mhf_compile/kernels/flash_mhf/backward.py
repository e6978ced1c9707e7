"""The backward kernels in Triton: dQ with dR, and the gradients of the weights. Deterministic, no atomics.

Each recomputes gate and up. In one launch dK, dU, dV and the biases take 6 products of a score and dQ 5,
where 8 are the least; three float32 accumulators and the operands do not fit into the registers at D = 128,
where dV gets a launch of its own, 13 products in all; at D = 256 each gradient has one, 15 in all. The kernel
of the weights computes transposed values, rows of a sub-network first, which come out of one product as the
left operand of the next.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhf_compile.kernels.flash_mhf import chunked, config
from mhf_compile.kernels.flash_mhf.config import Kernel, Target
from mhf_compile.kernels.flash_mhf.elementwise import activate, is_name, pull_back
from mhf_compile.kernels.flash_mhf.launch import Call, Launch, lies_flat, target_of
from mhf_compile.kernels.flash_mhf.parts import in_parts, tail_in_parts, tail_numbers
from mhf_compile.kernels.flash_mhf.tiles import (
    add_product,
    in_registers,
    load_bias,
    load_router,
    load_tokens,
    load_weights,
    row_products,
    store_or_leave,
    store_or_leave_vector,
    store_tiles,
    token_rows,
    weight_rows,
    zero_tiles,
)


@triton.jit(do_not_specialize=["tokens", "length", "part_subnetworks"])
def dq_kernel(
    q, k, u, v, r, gate_bias, up_bias, grad, dq, dr, k_beside, u_beside, v_beside,
    q_strides, k_strides, u_strides, v_strides, r_strides, gate_bias_strides, up_bias_strides,
    grad_strides, dq_strides, dr_strides,
    gate_scale, scale, tokens, length, group, subnetworks, width, part_stride, part_subnetworks,
    HEAD_DIM: tl.constexpr, OUT_DIM: tl.constexpr, D: tl.constexpr, O: tl.constexpr,
    ACTIVATION: tl.constexpr, GATE_SCALED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, EVEN_N: tl.constexpr, EVEN_F: tl.constexpr,
    DESCRIBED: tl.constexpr, RESIDENT: tl.constexpr, COLLECTED: tl.constexpr, FAST: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of tokens, heads, parts of the sub-networks. Descriptors, where DESCRIBED: k, u and v.

    dR of a sub-network is stored after its last rows, or, where COLLECTED > 0, with all others in the end.
    """
    first_n = tl.program_id(0) * BLOCK_N
    n = first_n + tl.arange(0, BLOCK_N)
    in_n = n < tokens
    h = tl.program_id(1)
    hk = h // group
    q_tiles = load_tokens(
        q, None, q_strides, first_n, tokens, length, h, BLOCK_N, D, HEAD_DIM, EVEN_N, False
    )  # fmt: skip
    if RESIDENT:
        q_tiles = in_registers(q_tiles, 1.0, BLOCK_N, D, UPCAST)
    grad_tiles = load_tokens(
        grad, None, grad_strides, first_n, tokens, length, h, BLOCK_N, O, OUT_DIM, EVEN_N, False
    )  # fmt: skip

    dq_totals = zero_tiles(BLOCK_N, D)
    dr_total = tl.zeros((BLOCK_N,), tl.float32)
    if COLLECTED > 0:
        columns = tl.arange(0, COLLECTED)
        dr_totals = tl.zeros((BLOCK_N, COLLECTED), tl.float32)
    blocks = tl.cdiv(width, BLOCK_F)
    first_e = tl.program_id(2) * part_subnetworks
    last_e = min(first_e + part_subnetworks, subnetworks)
    e = first_e
    first_f = 0
    if r is not None:
        routed = load_router(r, n, in_n, length, h, e, r_strides, EVEN_N)
    for _ in range(first_e * blocks, last_e * blocks):
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
                up += load_bias(up_bias, f, in_f, hk, e, up_bias_strides)[None, :]
        else:
            up = None
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
        activated = activate(gate, up, ACTIVATION, FAST)
        if dr is not None:
            hidden = activated * d_hidden
            if u is not None and is_name(ACTIVATION):
                hidden *= up
            if not EVEN_F:
                hidden = tl.where(in_f[None, :], hidden, 0.0)
            if COLLECTED > 0:
                dr_totals += tl.where(columns[None, :] == e, tl.sum(hidden, 1)[:, None], 0.0)
            else:
                dr_total += tl.sum(hidden, 1)
                last = first_f + BLOCK_F >= width
                tl.store(dr + token_rows(n, length, h, dr_strides) + e, dr_total, mask=in_n & last)
                dr_total = tl.where(last, 0.0, dr_total)
        if dq is not None:
            if r is not None:
                d_hidden *= routed[:, None]
            d_gate, d_up = pull_back(d_hidden, gate, up, activated, ACTIVATION, FAST)
            if GATE_SCALED:
                d_gate *= gate_scale
            if u is not None:
                if not EVEN_F:
                    d_up = tl.where(in_f[None, :], d_up, 0.0)
                dq_totals = add_product(dq_totals, d_up, u_tiles, D, UPCAST)
            if not EVEN_F:
                d_gate = tl.where(in_f[None, :], d_gate, 0.0)
            dq_totals = add_product(dq_totals, d_gate, k_tiles, D, UPCAST)
        first_f += BLOCK_F
        done = first_f >= width
        e += done.to(tl.int32)
        first_f = tl.where(done, 0, first_f)

    if dr is not None and COLLECTED > 0:
        here = in_n[:, None] & (columns >= first_e)[None, :] & (columns < last_e)[None, :]
        tl.store(dr + token_rows(n, length, h, dr_strides)[:, None] + columns[None, :], dr_totals, mask=here)
    if dq is not None:
        rows = token_rows(n, length, h, dq_strides) + tl.program_id(2).to(tl.int64) * part_stride
        store_tiles(dq, rows, in_n, dq_totals, 1.0, D, HEAD_DIM)


@triton.jit(do_not_specialize=["tokens", "length", "whole", "parts", "tail_first", "tail_rows"])
def weights_kernel(
    q, k, u, v, r, gate_bias, up_bias, grad, dk, du, dv, d_gate_bias, d_up_bias,
    dk_parts, du_parts, dv_parts, d_gate_bias_parts, d_up_bias_parts, q_beside, grad_beside,
    q_strides, k_strides, u_strides, v_strides, r_strides, gate_bias_strides, up_bias_strides,
    grad_strides, dk_strides, du_strides, dv_strides, d_gate_bias_strides, d_up_bias_strides,
    gate_scale, scale, tokens, length, group, subnetworks, width, whole, parts, tail_first, tail_rows,
    HEAD_DIM: tl.constexpr, OUT_DIM: tl.constexpr, D: tl.constexpr, O: tl.constexpr,
    ACTIVATION: tl.constexpr, GATE_SCALED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, EVEN_N: tl.constexpr, EVEN_F: tl.constexpr,
    DESCRIBED: tl.constexpr, FAST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of rows of all sub-networks, key-value heads. Descriptors, where DESCRIBED: q and grad.

    With `whole` the grid is flat: so many of these tiles, then parts of the others, which walk over a part
    of the tokens each; see `waves.Tail`.
    """
    blocks = tl.cdiv(tokens, BLOCK_N)
    row_blocks = tl.cdiv(width, BLOCK_F)
    first, last = 0, group * blocks
    in_part, shift = False, 0
    tile, hk = tl.program_id(0), tl.program_id(1)
    if whole is not None:
        in_part = tile >= whole
        if in_part:
            part = (tile - whole) % parts
            tile = whole + (tile - whole) // parts
            first = part * (group * blocks) // parts
            last = (part + 1) * (group * blocks) // parts
            shift = part * tail_rows - tail_first  # in rows, from a gradient to the part of its tail
        hk = tile // (subnetworks * row_blocks)
        tile -= hk * (subnetworks * row_blocks)
    e = tile // row_blocks
    first_f = (tile % row_blocks) * BLOCK_F
    f = first_f + tl.arange(0, BLOCK_F)
    in_f = f < width
    k_tiles = load_weights(
        k, None, k_strides, first_f, width, hk, e, BLOCK_F, D, HEAD_DIM, EVEN_F, False
    )  # fmt: skip
    dk_totals = zero_tiles(BLOCK_F, D)
    d_gate_total = tl.zeros((BLOCK_F,), tl.float32)
    if u is not None:
        u_tiles = load_weights(
            u, None, u_strides, first_f, width, hk, e, BLOCK_F, D, HEAD_DIM, EVEN_F, False
        )  # fmt: skip
        du_totals = zero_tiles(BLOCK_F, D)
        d_up_total = tl.zeros((BLOCK_F,), tl.float32)
    D_PROJECTIONS: tl.constexpr = (
        dk is not None or du is not None or d_gate_bias is not None or d_up_bias is not None
    )
    if D_PROJECTIONS:
        v_tiles = load_weights(
            v, None, v_strides, first_f, width, hk, e, BLOCK_F, O, OUT_DIM, EVEN_F, False
        )  # fmt: skip
    dv_totals = zero_tiles(BLOCK_F, O)

    for i in range(first, last):
        h = hk * group + i // blocks
        first_n = (i % blocks) * BLOCK_N
        n = first_n + tl.arange(0, BLOCK_N)
        in_n = n < tokens
        q_tiles = load_tokens(
            q, q_beside, q_strides, first_n, tokens, length, h, BLOCK_N, D, HEAD_DIM, EVEN_N, DESCRIBED
        )  # fmt: skip
        grad_tiles = load_tokens(
            grad, grad_beside, grad_strides, first_n, tokens, length, h, BLOCK_N, O, OUT_DIM, EVEN_N,
            DESCRIBED,
        )  # fmt: skip
        if D_PROJECTIONS:
            d_hidden = row_products(v_tiles, grad_tiles, BLOCK_F, BLOCK_N, O, UPCAST)
            if SCALED:
                d_hidden *= scale
            if r is not None:
                d_hidden *= load_router(r, n, in_n, length, h, e, r_strides, EVEN_N)[None, :]
        gate = row_products(k_tiles, q_tiles, BLOCK_F, BLOCK_N, D, UPCAST)
        if u is not None:
            up = row_products(u_tiles, q_tiles, BLOCK_F, BLOCK_N, D, UPCAST)
            if up_bias is not None:
                up += load_bias(up_bias, f, in_f, hk, e, up_bias_strides)[:, None]
        else:
            up = None
        if GATE_SCALED:
            gate *= gate_scale
        if FAST:
            gate *= 0.5
        if gate_bias is not None:
            gate += load_bias(gate_bias, f, in_f, hk, e, gate_bias_strides)[:, None]
        activated = activate(gate, up, ACTIVATION, FAST)
        if dv is not None:
            hidden = activated * up if u is not None and is_name(ACTIVATION) else activated
            if r is not None:
                hidden *= load_router(r, n, in_n, length, h, e, r_strides, EVEN_N)[None, :]
            if not EVEN_N:  # an infinite weight makes the tokens outside NaN
                hidden = tl.where(in_n[None, :], hidden, 0.0)
            dv_totals = add_product(dv_totals, hidden, grad_tiles, O, UPCAST)
        if D_PROJECTIONS:
            d_gate, d_up = pull_back(d_hidden, gate, up, activated, ACTIVATION, FAST)
            if u is not None:
                if not EVEN_N:
                    d_up = tl.where(in_n[None, :], d_up, 0.0)
                if du is not None:
                    du_totals = add_product(du_totals, d_up, q_tiles, D, UPCAST)
                if d_up_bias is not None:
                    d_up_total += tl.sum(d_up, 1)
            if not EVEN_N:
                d_gate = tl.where(in_n[None, :], d_gate, 0.0)
            if dk is not None:
                dk_totals = add_product(dk_totals, d_gate, q_tiles, D, UPCAST)
            if d_gate_bias is not None:
                d_gate_total += tl.sum(d_gate, 1)

    if dk is not None:
        rows = weight_rows(f, hk, e, dk_strides)
        store_or_leave(
            dk, dk_parts, rows, shift, dk_strides[2], in_part, in_f, dk_totals, gate_scale, D, HEAD_DIM
        )  # fmt: skip
    if du is not None:
        rows = weight_rows(f, hk, e, du_strides)
        store_or_leave(
            du, du_parts, rows, shift, du_strides[2], in_part, in_f, du_totals, 1.0, D, HEAD_DIM
        )  # fmt: skip
    if dv is not None:
        rows = weight_rows(f, hk, e, dv_strides)
        store_or_leave(
            dv, dv_parts, rows, shift, dv_strides[2], in_part, in_f, dv_totals, scale, O, OUT_DIM
        )  # fmt: skip
    if d_gate_bias is not None:
        rows = weight_rows(f, hk, e, d_gate_bias_strides)
        store_or_leave_vector(d_gate_bias, d_gate_bias_parts, rows, shift, in_part, in_f, d_gate_total)
    if d_up_bias is not None:
        rows = weight_rows(f, hk, e, d_up_bias_strides)
        store_or_leave_vector(d_up_bias, d_up_bias_parts, rows, shift, in_part, in_f, d_up_total)


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
    workspace: int | None = None,
    *,
    target: Target | None = None,
) -> list[Tensor]:
    """The operator `mhf::flash_mhf_backward`; see `mhf_compile.kernels.ops`."""
    operands = (q, k, u, v, r, gate_bias, up_bias)
    call = Call(*operands, activation, gate_scale, scale, target or target_of(q.device))
    chunk = config.backward_chunk(call.sizes, workspace, call.target.arch)
    # Without tokens no kernel runs, and the gradients of the weights are zero.
    on_chip = call.sizes.tokens > 0 and chunk is None
    allocate = torch.empty_like if on_chip else torch.zeros_like
    grads = [
        allocate(x, memory_format=torch.contiguous_format) if x is not None and need else None
        for x, need in zip(operands, needs, strict=True)
    ]
    if on_chip:
        for launch in launches(call, grad, grads):
            launch.run()
    elif chunk:
        chunked.backward(call, grad, grads, chunk)
    return [x for x in grads if x is not None]


def launches(call: Call, grad: Tensor, grads: Sequence[Tensor | None]) -> list[Launch]:
    """The kernels that make `grads`, of q, k, u, v, r and the biases; None where one is not wanted."""
    dq, dk, du, dv, dr, d_gate_bias, d_up_bias = grads
    wanted: dict[Kernel, tuple[Tensor | None, ...]] = {
        "weights": (dk, du, dv, d_gate_bias, d_up_bias),
        "dk_du": (dk, du, None, d_gate_bias, d_up_bias),
        "dk": (dk, None, None, d_gate_bias, None),
        "du": (None, du, None, None, d_up_bias),
        "dv": (None, None, dv, None, None),
    }
    names = [
        name
        for name in config.weight_kernels(call.sizes, call.target.arch)
        if any(x is not None for x in wanted[name])
    ]
    specialised_here = any(call.tiles(name).specialised for name in names)
    if 0 in grad.stride() or (specialised_here and not lies_flat(grad)):
        grad = grad.contiguous()  # that of a sum, say: no descriptor can load it
    kernels = [] if dq is None and dr is None else dq_launches(call, grad, dq, dr)
    if names and call.r is not None:
        call = replace(call, r=_tokens_last(call.r))
    numbers = max((tail_numbers(wanted[name], call.tail(name)) for name in names), default=0)
    room = grad.new_empty(numbers, dtype=torch.float32)  # one after the other uses it
    for name in names:
        kernels += _weight_launches(call, grad, name, wanted[name], room)
    return kernels


def _weight_launches(
    call: Call, grad: Tensor, name: Kernel, wanted: Sequence[Tensor | None], room: Tensor
) -> list[Launch]:
    """One kernel of the weights' gradients, and the sums of what it leaves in parts."""
    sizes, tiles, tail = call.sizes, call.tiles(name), call.tail(name)
    partials, adding = tail_in_parts(wanted, tail, room)
    if tiles.specialised:
        from mhf_compile.kernels.flash_mhf import specialised  # of Gluon: see `Call.tiles`

        return [specialised.launch(call, grad, name, wanted, tiles, tail, partials), *adding]
    row_blocks = sizes.subnetworks * triton.cdiv(sizes.width, tiles.rows)
    grid: tuple[int, ...] = (row_blocks, sizes.kv_heads)
    extra: list[int | None] = [None] * 4
    if tail is not None:
        grid = (tail.split.programs(row_blocks * sizes.kv_heads),)
        extra = [*tail.split, tail.first, tail.rows]
    return [
        call.launch(name, weights_kernel, grid, [grad], wanted, extra, tiles, contiguous=partials),
        *adding,
    ]


def _tokens_last(r: Tensor) -> Tensor:
    """R in float32, its tokens beside each other in memory: the kernel of the weights loads rows of them."""
    return r.float().permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


def dq_launches(call: Call, grad: Tensor, dq: Tensor | None, dr: Tensor | None) -> list[Launch]:
    """The kernel of dQ and dR, and the sum of its parts if there are several."""
    sizes, tiles = call.sizes, call.tiles("dq")
    parts = 1 if dq is None else call.parts("dq", sizes.subnetworks)
    result, adding = (None, []) if dq is None else in_parts(dq, parts)
    grid = (triton.cdiv(sizes.tokens, tiles.tokens), sizes.heads, parts)
    extra = [0 if dq is None or parts == 1 else dq.numel(), triton.cdiv(sizes.subnetworks, parts)]
    return [call.launch("dq", dq_kernel, grid, [grad, result, dr], [], extra, tiles), *adding]
