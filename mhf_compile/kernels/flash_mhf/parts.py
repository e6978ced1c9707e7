"""The sum of the parts that programs leave where what they walk over is split over them, in their order."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhf_compile.kernels.flash_mhf.launch import Launch
from mhf_compile.kernels.flash_mhf.waves import Tail

BLOCK, SMALL = 1024, 128  # numbers that a program of the sum makes; the latter where there are few
MANY = 2**18  # numbers, which are enough programs of the larger block
AT_ONCE = 8  # parts that are on their way at a time


@triton.jit(do_not_specialize=["count"])
def sum_kernel(parts, out, size, count, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr):
    """Grid: blocks of the `size` numbers of `out`; `parts` has `count` times as many."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, AT_ONCE):
        loaded = ()
        for i in tl.static_range(AT_ONCE):
            part = parts + (first + i) * tl.cast(size, tl.int64)
            loaded = loaded + (tl.load(part + at, mask=inside & (first + i < count), other=0.0),)
        for i in tl.static_range(AT_ONCE):
            total += loaded[i]
    tl.store(out + at, total, mask=inside)


def in_parts(out: Tensor, parts: int) -> tuple[Tensor, list[Launch]]:
    """Where the programs leave so many parts of `out`, the first of them; and what adds them afterwards."""
    if parts == 1:
        return out, []
    partial = out.new_empty(parts, *out.shape, dtype=torch.float32)
    return partial[0], [_sum(partial, out, parts)]


def tail_numbers(grads: Sequence[Tensor | None], tail: Tail | None) -> int:
    """How many numbers the parts of the tail of some gradients are."""
    if tail is None:
        return 0
    return sum(tail.split.parts * len(_last_rows(x, tail)) for x in grads if x is not None)


def tail_in_parts(
    grads: Sequence[Tensor | None], tail: Tail | None, room: Tensor
) -> tuple[list[Tensor | None], list[Launch]]:
    """Where in `room` the parts of the tail of each gradient go, and what adds them afterwards.

    Gradients are contiguous [Hk, E, F, ...], or None where one is not wanted; `room` has `tail_numbers` or
    more of float32.
    """
    partials: list[Tensor | None] = []
    adding = []
    for grad in grads:
        if grad is None or tail is None:
            partials.append(None)
            continue
        rows, parts = _last_rows(grad, tail), tail.split.parts
        partial, room = room.tensor_split([parts * len(rows)])
        partials.append(partial)
        adding.append(_sum(partial, rows, parts))
    return partials, adding


def _last_rows(grad: Tensor, tail: Tail) -> Tensor:
    """The rows of a tail, flat."""
    return grad.view(-1, *grad.shape[3:])[tail.first :].view(-1)


def _sum(partial: Tensor, out: Tensor, parts: int) -> Launch:
    block = BLOCK if out.numel() >= MANY else SMALL
    at_once = min(AT_ONCE, triton.next_power_of_2(parts))
    options: dict[str, Any] = {"BLOCK": block, "AT_ONCE": at_once, "num_warps": 4, "num_stages": 2}
    grid = (triton.cdiv(out.numel(), block),)
    return Launch("sum", sum_kernel, grid, (partial, out, out.numel(), parts), options)
