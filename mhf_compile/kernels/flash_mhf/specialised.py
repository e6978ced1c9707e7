"""Gradients of the weights by warps of several kinds, for Hopper in Gluon: one loads, two groups multiply.

Each of the two groups of four warps holds 64 rows of a sub-network, as `weights_kernel` does, and walks over
the tokens; what it makes, and the parts of the last wave, are the same. The warp that loads is ahead by as
many stages as there is room for: no product waits for memory, and one group does elementwise work while the
other multiplies.

Barriers: `held` says that the weights are there, `full` of a stage that its tokens are, `empty` of a stage
that both groups have done with it. The i-th use of a stage waits for phase i & 1 of `full`; the warp that
loads waits for phase (i & 1) ^ 1 of `empty`, which a new barrier lets pass.

Gluon is an experimental part of Triton, without an interpreter: only a GPU runs these kernels. `Call.tiles`
says where they are used, and `weights_kernel` is used everywhere else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from mhf_compile.kernels.flash_mhf.config import Kernel, Tiles
from mhf_compile.kernels.flash_mhf.launch import Call, Launch, token_stride
from mhf_compile.kernels.flash_mhf.waves import Tail

ROWS = 64  # of a sub-network that a group of four warps holds
REGISTERS = (240, 24)  # of a thread of the second group and of the warp that loads


@gluon.jit
def _tanh(x):
    return gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], gl.float32, is_pure=True, pack=1)


@gluon.jit
def _load(
    q, grad, r, q_tiles, grad_tiles, r_tiles, full, empty, first, count, blocks, hk, e, group, subnetworks,
    tokens, SIZE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, ROUTED: gl.constexpr,
):  # fmt: skip
    """Bring `count` blocks of tokens, from the first on: of one head after the other."""
    for j in range(count):
        stage = j % STAGES
        h = hk * group + (first + j) // blocks
        n = (first + j) % blocks * BLOCK_N
        mbarrier.wait(empty.index(stage), (j // STAGES & 1) ^ 1)
        expected: gl.constexpr = q.block_type.nbytes + grad.block_type.nbytes
        if ROUTED:
            mbarrier.expect(full.index(stage), expected + r.block_type.nbytes)
            tma.async_copy_global_to_shared(
                r, [(h * subnetworks + e) * tokens + n], full.index(stage), r_tiles.index(stage)
            )
        else:
            mbarrier.expect(full.index(stage), expected)
        tma.async_copy_global_to_shared(q, [n, h * SIZE], full.index(stage), q_tiles.index(stage))
        tma.async_copy_global_to_shared(grad, [n, h * SIZE], full.index(stage), grad_tiles.index(stage))


@gluon.jit
def _store(
    x, parts, total, row, shift, in_part, SIZE: gl.constexpr, SPLIT: gl.constexpr, LAYOUT: gl.constexpr
):  # fmt: skip
    """Store 64 rows of a gradient, or, where SPLIT and in a part, of that part: `shift` rows further on."""
    i = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT)).expand_dims(1)
    at = i * SIZE + gl.arange(0, SIZE, gl.SliceLayout(0, LAYOUT)).expand_dims(0)
    if SPLIT:
        if in_part:
            gl.store(parts + (row + shift).to(gl.int64) * SIZE + at, total)
        else:
            gl.store(x + row.to(gl.int64) * SIZE + at, total.to(gl.bfloat16))
    else:
        gl.store(x + row.to(gl.int64) * SIZE + at, total.to(gl.bfloat16))


@gluon.jit
def _dk_du(
    k_tile, u_tile, v_tile, q_tiles, grad_tiles, r_tiles, held, full, empty, dk, du, dk_parts, du_parts,
    row, shift, in_part, count, gate_scale, scale,
    SIZE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, ROUTED: gl.constexpr,
    SPLIT: gl.constexpr, GATE_SCALED: gl.constexpr, SCALED: gl.constexpr, DK: gl.constexpr, DU: gl.constexpr,
):  # fmt: skip
    """Make dK and dU of 64 rows: while one of the products is on its way, what the next needs is made."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    TOTALS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SIZE, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, TOTALS, 2)
    zeros = gl.zeros([64, BLOCK_N], gl.float32, SCORES)
    dk_total = gl.zeros([64, SIZE], gl.float32, TOTALS)
    du_total = gl.zeros([64, SIZE], gl.float32, TOTALS)
    mbarrier.wait(held, 0)
    for j in range(count):
        stage = j % STAGES
        q = q_tiles.index(stage)
        mbarrier.wait(full.index(stage), j // STAGES & 1)
        gate = warpgroup_mma(k_tile, q.permute((1, 0)), zeros, use_acc=False, is_async=True)
        d_hidden = warpgroup_mma(
            v_tile, grad_tiles.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True
        )
        x = warpgroup_mma_wait(1, [gate]) * 0.5
        if GATE_SCALED:
            x *= gate_scale
        t = _tanh(x)
        activated = gl.fma(x, t, x)
        slope = gl.fma(t, 0.5, 0.5) * gl.fma(x, 1.0 - t, 1.0)
        if ROUTED:
            routed = r_tiles.index(stage).load(gl.SliceLayout(0, SCORES)).expand_dims(0)
        d_hidden = warpgroup_mma_wait(0, [d_hidden])
        up = warpgroup_mma(u_tile, q.permute((1, 0)), zeros, use_acc=False, is_async=True)
        if ROUTED:
            d_hidden *= routed
        if SCALED:
            d_hidden *= scale
        d_up = gl.convert_layout((activated * d_hidden).to(gl.bfloat16), LEFT)
        du_total = warpgroup_mma(d_up, q, du_total, is_async=True)
        slope *= d_hidden
        up = warpgroup_mma_wait(1, [up])
        d_gate = gl.convert_layout((slope * up).to(gl.bfloat16), LEFT)
        dk_total = warpgroup_mma(d_gate, q, dk_total, is_async=True)
        dk_total, du_total = warpgroup_mma_wait(0, [dk_total, du_total])
        mbarrier.arrive(empty.index(stage))
    if DK:
        if GATE_SCALED:
            dk_total *= gate_scale
        _store(dk, dk_parts, dk_total, row, shift, in_part, SIZE, SPLIT, TOTALS)
    if DU:
        _store(du, du_parts, du_total, row, shift, in_part, SIZE, SPLIT, TOTALS)


@gluon.jit
def _hidden(
    gate, up, r_tiles, stage, gate_scale, LAYOUT: gl.constexpr, PENDING: gl.constexpr, ROUTED: gl.constexpr,
    GATE_SCALED: gl.constexpr,
):  # fmt: skip
    """The weighted hidden values of a block, once its gate and up are there; PENDING products come after."""
    x = warpgroup_mma_wait(PENDING + 1, [gate]) * 0.5
    if GATE_SCALED:
        x *= gate_scale
    activated = gl.fma(x, _tanh(x), x)
    if ROUTED:
        activated *= r_tiles.index(stage).load(gl.SliceLayout(0, LAYOUT)).expand_dims(0)
    up = warpgroup_mma_wait(PENDING, [up])
    return (activated * up).to(gl.bfloat16)


@gluon.jit
def _dv(
    k_tile, u_tile, q_tiles, grad_tiles, r_tiles, held, full, empty, dv, dv_parts,
    row, shift, in_part, count, gate_scale, scale,
    SIZE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, ROUTED: gl.constexpr,
    SPLIT: gl.constexpr, GATE_SCALED: gl.constexpr, SCALED: gl.constexpr,
):  # fmt: skip
    """Make dV of 64 rows, k and u in registers: a block's gate and up are under way before dV of the last."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    TOTALS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SIZE, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, TOTALS, 2)
    zeros = gl.zeros([64, BLOCK_N], gl.float32, SCORES)
    total = gl.zeros([64, SIZE], gl.float32, TOTALS)
    mbarrier.wait(held, 0)
    k = k_tile.load(gl.DotOperandLayout(0, SCORES, 2))
    u = u_tile.load(gl.DotOperandLayout(0, SCORES, 2))
    mbarrier.wait(full.index(0), 0)
    gate = warpgroup_mma(k, q_tiles.index(0).permute((1, 0)), zeros, use_acc=False, is_async=True)
    up = warpgroup_mma(u, q_tiles.index(0).permute((1, 0)), zeros, use_acc=False, is_async=True)
    rounded = _hidden(gate, up, r_tiles, 0, gate_scale, SCORES, 0, ROUTED, GATE_SCALED)
    hidden = gl.convert_layout(rounded, LEFT)
    for j in range(1, count):
        stage = j % STAGES
        last = (j + STAGES - 1) % STAGES
        q = q_tiles.index(stage).permute((1, 0))
        mbarrier.wait(full.index(stage), j // STAGES & 1)
        gate = warpgroup_mma(k, q, zeros, use_acc=False, is_async=True)
        up = warpgroup_mma(u, q, zeros, use_acc=False, is_async=True)
        total = warpgroup_mma(hidden, grad_tiles.index(last), total, is_async=True)
        rounded = _hidden(gate, up, r_tiles, stage, gate_scale, SCORES, 1, ROUTED, GATE_SCALED)
        total = warpgroup_mma_wait(0, [total])
        hidden = gl.convert_layout(rounded, LEFT)
        mbarrier.arrive(empty.index(last))
    total = warpgroup_mma(hidden, grad_tiles.index((count - 1) % STAGES), total, is_async=True)
    total = warpgroup_mma_wait(0, [total])
    if SCALED:
        total *= scale
    _store(dv, dv_parts, total, row, shift, in_part, SIZE, SPLIT, TOTALS)


@gluon.jit(do_not_specialize=["tokens", "whole", "parts", "tail_first", "tail_rows"])
def specialised_kernel(
    q, grad, r, k, u, v, first_grad, second_grad, first_parts, second_parts,
    gate_scale, scale, tokens, group, subnetworks, width, whole, parts, tail_first, tail_rows,
    SIZE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, ROUTED: gl.constexpr,
    SPLIT: gl.constexpr, GATE_SCALED: gl.constexpr, SCALED: gl.constexpr,
    DK: gl.constexpr, DU: gl.constexpr, DV: gl.constexpr, LOADING: gl.constexpr, MULTIPLYING: gl.constexpr,
):  # fmt: skip
    """Grid: as that of `weights_kernel`, flat. Descriptors: q, grad, r, k, u, v.

    The two gradients are dK and dU, or the first is dV. What is not ROUTED, SPLIT or made has any operand in
    its place. The registers of a thread are LOADING and, of the second group, MULTIPLYING.
    """
    blocks = tokens // BLOCK_N
    first, last = 0, group * blocks
    in_part, shift = False, 0
    tile = gl.program_id(0)
    if SPLIT:
        in_part = tile >= whole
        if in_part:
            part = (tile - whole) % parts
            tile = whole + (tile - whole) // parts
            first = part * (group * blocks) // parts
            last = (part + 1) * (group * blocks) // parts
            shift = part * tail_rows - tail_first
    count = last - first
    row = tile * 128
    hk = row // (subnetworks * width)
    e = row // width - hk * subnetworks

    k_tiles = gl.allocate_shared_memory(gl.bfloat16, [2, 64, SIZE], k.layout)
    u_tiles = gl.allocate_shared_memory(gl.bfloat16, [2, 64, SIZE], k.layout)
    q_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK_N, SIZE], q.layout)
    grad_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK_N, SIZE], grad.layout)
    r_tiles = q_tiles
    if ROUTED:
        r_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_N], r.layout)
    held = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(held, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    if not DV:
        v_tiles = gl.allocate_shared_memory(gl.bfloat16, [2, 64, SIZE], v.layout)
        mbarrier.expect(held, 6 * k.block_type.nbytes)
        for i in gl.static_range(2):
            tma.async_copy_global_to_shared(v, [row + 64 * i, 0], held, v_tiles.index(i))
    else:
        mbarrier.expect(held, 4 * k.block_type.nbytes)
    for i in gl.static_range(2):
        tma.async_copy_global_to_shared(k, [row + 64 * i, 0], held, k_tiles.index(i))
        tma.async_copy_global_to_shared(u, [row + 64 * i, 0], held, u_tiles.index(i))
    if DV:
        gl.warp_specialize([
            (_dv, (
                k_tiles.index(0), u_tiles.index(0), q_tiles, grad_tiles, r_tiles, held, full, empty,
                first_grad, first_parts, row, shift, in_part, count, gate_scale, scale,
                SIZE, BLOCK_N, STAGES, ROUTED, SPLIT, GATE_SCALED, SCALED,
            )),
            (_dv, (
                k_tiles.index(1), u_tiles.index(1), q_tiles, grad_tiles, r_tiles, held, full, empty,
                first_grad, first_parts, row + 64, shift, in_part, count, gate_scale, scale,
                SIZE, BLOCK_N, STAGES, ROUTED, SPLIT, GATE_SCALED, SCALED,
            )),
            (_load, (
                q, grad, r, q_tiles, grad_tiles, r_tiles, full, empty, first, count, blocks, hk, e, group,
                subnetworks, tokens, SIZE, BLOCK_N, STAGES, ROUTED,
            )),
        ], [4, 1], [MULTIPLYING, LOADING])  # fmt: skip
    else:
        gl.warp_specialize([
            (_dk_du, (
                k_tiles.index(0), u_tiles.index(0), v_tiles.index(0), q_tiles, grad_tiles, r_tiles, held,
                full, empty, first_grad, second_grad, first_parts, second_parts, row, shift, in_part,
                count, gate_scale, scale, SIZE, BLOCK_N, STAGES, ROUTED, SPLIT, GATE_SCALED, SCALED, DK, DU,
            )),
            (_dk_du, (
                k_tiles.index(1), u_tiles.index(1), v_tiles.index(1), q_tiles, grad_tiles, r_tiles, held,
                full, empty, first_grad, second_grad, first_parts, second_parts, row + 64, shift, in_part,
                count, gate_scale, scale, SIZE, BLOCK_N, STAGES, ROUTED, SPLIT, GATE_SCALED, SCALED, DK, DU,
            )),
            (_load, (
                q, grad, r, q_tiles, grad_tiles, r_tiles, full, empty, first, count, blocks, hk, e, group,
                subnetworks, tokens, SIZE, BLOCK_N, STAGES, ROUTED,
            )),
        ], [4, 1], [MULTIPLYING, LOADING])  # fmt: skip


def launch(
    call: Call,
    grad: Tensor,
    name: Kernel,
    wanted: Sequence[Tensor | None],
    tiles: Tiles,
    tail: Tail | None,
    partials: Sequence[Tensor | None],
) -> Launch:
    """The kernel of `dk_du` or `dv`; R is float32 with its tokens last, or None, and grad has q's layout."""
    sizes = call.sizes
    (tokens, size), rows = (sizes.tokens, sizes.head_dim), sizes.kv_heads * sizes.subnetworks * sizes.width

    def by_tokens(x: Tensor) -> TensorDescriptor:
        shape, strides = [tokens, sizes.heads * size], [token_stride(x), 1]
        return _described(x, shape, strides, [tiles.tokens, size])

    def by_rows(x: Tensor | None) -> TensorDescriptor:
        assert x is not None
        return _described(x, [rows, size], [size, 1], [ROWS, size])

    programs = rows // tiles.rows
    grid = (programs if tail is None else tail.split.programs(programs),)
    q, grads, parts = by_tokens(call.q), list(wanted[:3]), list(partials[:3])
    made = {name: x is not None for name, x in zip(("DK", "DU", "DV"), grads, strict=True)}
    first, second = grads[2:] * 2 if name == "dv" else grads[:2]
    first_parts, second_parts = parts[2:] * 2 if name == "dv" else parts[:2]
    anything = first if first is not None else second
    r = q if call.r is None else _described(call.r, [call.r.numel()], [1], [tiles.tokens])
    args = (
        q, by_tokens(grad), r, by_rows(call.k), by_rows(call.u), by_rows(call.v),
        *(anything if x is None else x for x in (first, second, first_parts, second_parts)),
        call.gate_scale, call.scale, tokens, call.group, sizes.subnetworks, sizes.width,
        *((0, 1, 0, 0) if tail is None else (*tail.split, tail.first, tail.rows)),
    )  # fmt: skip
    multiplying, loading = REGISTERS
    options: dict[str, Any] = {
        "SIZE": size,
        "BLOCK_N": tiles.tokens,
        "STAGES": tiles.stages,
        "ROUTED": call.r is not None,
        "SPLIT": tail is not None,
        "GATE_SCALED": call.gate_scale != 1,
        "SCALED": call.scale != 1,
        **made,
        "LOADING": loading,
        "MULTIPLYING": multiplying,
        "num_warps": 4,  # of the first group
    }
    return Launch(name, specialised_kernel, grid, args, options, tiles)


def _described(x: Tensor, shape: list[int], strides: list[Any], block: list[int]) -> TensorDescriptor:
    if x.dtype == torch.float32:
        layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
    else:
        layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
    return TensorDescriptor(x, shape, strides, block, layout)
