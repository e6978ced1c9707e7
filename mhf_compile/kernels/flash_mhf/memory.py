"""What the Triton implementation allocates, in bytes: nothing wide beyond a workspace of a chosen size.

For contiguous operands; others may be copied, none of them wide. N = B * T, s is the bytes of an element,
and gradients count where they are wanted.
"""

import math
from collections.abc import Sequence

import triton

from mhf_compile.kernels.flash_mhf import chunked, config
from mhf_compile.kernels.flash_mhf.launch import Call


def forward_bytes(call: Call, workspace: int | None = None) -> int:
    """The most that forward holds at once, its result included.

    on the chip    s N H O + 4 P N H O, the latter where rows are split over P > 1 programs
    in chunks of C s N H O + s C H E F
    """
    sizes = call.sizes
    size = sizes.dtype.itemsize
    out = sizes.tokens * sizes.heads * sizes.out_dim
    chunk = config.forward_chunk(sizes, workspace)
    if chunk is not None:
        return size * out + chunk * sizes.wide_bytes
    name = config.forward_kernel(sizes)
    row_blocks = sizes.subnetworks * triton.cdiv(sizes.width, call.tiles(name).rows)
    parts = call.parts(name, row_blocks)
    return size * out + (4 * parts * out if parts > 1 else 0)


def backward_bytes(call: Call, needs: Sequence[bool], workspace: int | None = None) -> int:
    """The most that backward holds at once, the gradients included. W = H E F.

        on the chip    gradients + 4 P N H D + 4 N H E + 4 P' rows (2 D + O + 2)
        in chunks of C gradients + 3 s C W + 4 C H E (1 + F / rows)
                       + 8 Hk C D + 4 Hk E F (2 D + O + max(D, O) + 3)

    On the chip these are dQ where the sub-networks are split over P > 1 programs, R in another layout, and
    the last rows of the other gradients, where those are left in P' parts: see `waves.split`. With kernels of
    dK and dU, and of dV, it is the larger of the two.
    3 s C W are gate, up and the gradient of hidden, in whose place come hidden and the gradients of gate and
    up. Beside them are parts of dR, of blocks of rows.
    The last line are sums in float32: of dQ of a chunk, and of the others where there are several chunks or
    heads share weights. For operands in float32 the gradients themselves are the sums.
    """
    sizes = call.sizes
    size = sizes.dtype.itemsize
    operands = (call.q, call.k, call.u, call.v, call.r, call.gate_bias, call.up_bias)
    wanted = [x for x, need in zip(operands, needs, strict=True) if x is not None and need]
    grads = sum(math.prod(x.shape) * x.dtype.itemsize for x in wanted)
    chunk = config.backward_chunk(sizes, workspace, call.target.arch)
    if chunk is None:
        parts = call.parts("dq", sizes.subnetworks) if needs[0] else 1
        queries = parts * sizes.head_dim if parts > 1 else 0
        weights = any(
            x is not None and need for x, need in zip(operands[1:], needs[1:], strict=True) if x is not call.r
        )
        router = sizes.subnetworks if call.r is not None and weights else 0
        return grads + 4 * sizes.tokens * sizes.heads * (queries + router) + _tail_bytes(call, needs)
    q, k, u, v, r, *_ = needs
    row_blocks = sizes.subnetworks * triton.cdiv(sizes.width, chunked.block_rows(sizes))
    gradients = len(wanted) > v
    wide = chunk * sizes.wide_bytes * (1 + sizes.gated + gradients)
    router = 4 * chunk * sizes.heads * (row_blocks + sizes.subnetworks) if call.r is not None and r else 0
    sums = 0
    if size < 4 and q and sizes.gated:
        sums += 8 * sizes.kv_heads * chunk * sizes.head_dim
    if chunk < sizes.tokens or call.group > 1:
        sums += config.sum_bytes(sizes, k, u, v)
    return grads + wide + router + sums


def _tail_bytes(call: Call, needs: Sequence[bool]) -> int:
    """The largest room for rows that a kernel leaves in parts."""
    sizes = call.sizes
    operands = (call.k, call.u, call.v, call.gate_bias, call.up_bias)
    of = (needs[1], needs[2], needs[3], needs[5], needs[6])
    k, u, v, gate_bias, up_bias = (x is not None and need for x, need in zip(operands, of, strict=True))
    of_k, of_u = k * sizes.head_dim + gate_bias, u * sizes.head_dim + up_bias
    of_v = v * sizes.out_dim
    columns = {"weights": of_k + of_u + of_v, "dk_du": of_k + of_u, "dk": of_k, "du": of_u, "dv": of_v}
    tails = ((columns[name], call.tail(name)) for name in config.weight_kernels(sizes, call.target.arch))
    return max((4 * tail.split.parts * tail.rows * n for n, tail in tails if tail is not None), default=0)
