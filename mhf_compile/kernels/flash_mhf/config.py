"""Tiles of the Triton kernels: a pure function of pass, sizes, dtype and device, testable without one."""

from typing import Literal, NamedTuple

import torch

Pass = Literal["forward", "dq", "dk_du", "dv"]


class Tiles(NamedTuple):
    """Block sizes of one kernel, and how it is launched."""

    tokens: int
    rows: int  # of a sub-network
    d: int  # columns of q, k and u in a block; all of them if at least head_dim
    o: int  # columns of v and out in a block
    warps: int
    stages: int


Table = dict[tuple[Pass, int, int], tuple[int, int, int, int]]

# (pass, bytes of an element, columns of a block) -> tokens, rows, warps, stages.
# tests/kernels/aot.py compiles every row, and prints what it takes of shared memory and registers and spills.

# float32 multiplies on the plain cores, without TF32: small tiles, for the registers.
FLOAT32: Table = {
    ("forward", 4, 64): (32, 32, 8, 1),
    ("dq", 4, 64): (32, 32, 8, 1),
    ("dk_du", 4, 64): (32, 32, 8, 1),
    ("dv", 4, 64): (32, 64, 8, 1),
}

# 227 KB of shared memory; a product of warpgroups has at least 64 rows.
HOPPER: Table = {
    ("forward", 2, 64): (128, 64, 8, 3),
    ("forward", 2, 128): (128, 64, 8, 3),
    ("dq", 2, 64): (128, 32, 8, 3),
    ("dq", 2, 128): (128, 16, 8, 2),
    ("dk_du", 2, 64): (64, 128, 8, 3),
    ("dk_du", 2, 128): (64, 64, 8, 2),
    ("dv", 2, 64): (64, 128, 8, 3),
    ("dv", 2, 128): (64, 128, 8, 2),
    **FLOAT32,
}

# Within 99 KB, the least that a device from Ampere on offers.
GENERAL: Table = {
    ("forward", 2, 64): (64, 32, 4, 2),
    ("forward", 2, 128): (64, 32, 4, 2),
    ("dq", 2, 64): (64, 32, 8, 2),
    ("dq", 2, 128): (32, 32, 4, 1),
    ("dk_du", 2, 64): (32, 64, 4, 2),
    ("dk_du", 2, 128): (32, 64, 8, 1),
    ("dv", 2, 64): (32, 64, 4, 2),
    ("dv", 2, 128): (32, 64, 8, 1),
    **FLOAT32,
}


def tiles(
    kernel: Pass, head_dim: int, out_dim: int, dtype: torch.dtype, capability: tuple[int, int]
) -> Tiles:
    """Choose the tiles of one kernel.

    Args:
        kernel: which kernel.
        head_dim: D, columns of q, k and u.
        out_dim: O, columns of v.
        dtype: of q, float16, bfloat16 or float32.
        capability: (major, minor) of the device, as torch.cuda.get_device_capability gives it.
    """
    size = dtype.itemsize
    most = 128 if size == 2 else 64
    d, o = (max(16, min(most, _power_of_two(columns))) for columns in (head_dim, out_dim))
    table = HOPPER if capability[0] == 9 else GENERAL
    tokens, rows, warps, stages = table[kernel, size, max(64, d, o)]
    return Tiles(tokens, rows, d, o, warps, stages)


def _power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
