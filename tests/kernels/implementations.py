"""What computes a call of the operator, each implementation where it can.

The Triton kernels run in the interpreter, which is chosen when Triton is imported: it has its own process.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from torch import Tensor

from mhf_compile.kernels.flash_mhf import blocked
from tests.kernels.drawn import (
    BLOCKED,
    Call,
)


@contextmanager
def implementation(way: str) -> Iterator[Any]:
    """A module, or what is like one, with `forward` and `backward`."""
    if way == "blocked":
        yield blocked
    elif way == "small blocks":  # that end inside batches and inside sub-networks
        with patch.object(blocked, "TOKENS", 5), patch.object(blocked, "block_limit", lambda: 5 * 6):
            yield blocked
    else:
        from mhf_compile.kernels.flash_mhf import backward, config, forward, waves

        arch, _, how = way.partition(" in ")
        processors, adding = (3, 0) if how == "parts" else (8, waves.ADDING)
        options = {"target": config.Target(arch, processors)}
        chunk = _by_five if how == "chunks" else config.backward_chunk
        with patch.object(config, "backward_chunk", chunk), patch.object(waves, "ADDING", adding):
            yield SimpleNamespace(
                forward=functools.partial(forward.forward, **options),
                backward=functools.partial(backward.backward, **options),
            )


def _by_five(sizes: Any, workspace: int | None, arch: str) -> int:
    """As `config.backward_chunk`: five tokens at a time."""
    return min(5, sizes.tokens)


@functools.cache
def interpreter() -> ProcessPoolExecutor:
    """A process whose Triton is interpreted, and silent where its arithmetic overflows."""
    silent = {"initializer": warnings.simplefilter, "initargs": ("ignore", RuntimeWarning)}
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), **silent)


def close() -> None:
    """End that process, if there is one: a process of multiprocessing's would wait for it."""
    if interpreter.cache_info().currsize:
        interpreter().shutdown()
        interpreter.cache_clear()


def placed(check: Callable[[Call], None]) -> Callable[[Call], None]:
    """The check, in the process that has what computes the call."""

    @functools.wraps(check)
    def run(call: Call) -> None:
        if call.way in BLOCKED or os.environ.get("TRITON_INTERPRET") == "1":
            check(call)
            return
        try:
            with patch.dict(os.environ, TRITON_INTERPRET="1"):
                interpreter().submit(run, call).result()
        except BrokenProcessPool:
            interpreter.cache_clear()
            raise

    return run


def computed(call: Call, operands: tuple[Tensor | None, ...], grad: Tensor) -> dict[str, Tensor]:
    """The result and all gradients, by name."""
    needs = [x is not None for x in operands]
    with implementation(call.way) as kernels:
        out = kernels.forward(*operands, *call.constants)
        grads = kernels.backward(grad, *operands, *call.constants, needs)
    return dict(zip(["out", *call.given], [out, *grads], strict=True))
