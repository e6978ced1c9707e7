"""The sum of the parts that programs leave where the rows are split over them, in their order."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhf_compile.kernels.flash_mhf.launch import Launch

BLOCK = 1024


@triton.jit(do_not_specialize=["count"])
def sum_kernel(parts, out, size, count, BLOCK: tl.constexpr):
    """Grid: blocks of the `size` numbers of `out`; `parts` has `count` times as many."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(count):
        total += tl.load(parts + i * tl.cast(size, tl.int64) + at, mask=inside, other=0.0)
    tl.store(out + at, total, mask=inside)


def in_parts(out: Tensor, parts: int) -> tuple[Tensor, list[Launch]]:
    """Where the programs leave so many parts of `out`, the first of them; and what adds them afterwards."""
    if parts == 1:
        return out, []
    partial = out.new_empty(parts, *out.shape, dtype=torch.float32)
    options: dict[str, Any] = {"BLOCK": BLOCK, "num_warps": 4, "num_stages": 2}
    grid = (triton.cdiv(out.numel(), BLOCK),)
    return partial[0], [Launch("sum", sum_kernel, grid, (partial, out, out.numel(), parts), options)]
