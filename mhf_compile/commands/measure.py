"""Measure what code costs, in bytes and seconds: for the demo and the benchmarks."""

import ctypes
import gc
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def saved_bytes(forward: Callable[[], Tensor], owned: list[Tensor]) -> int:
    """Bytes that `forward` keeps for its backward: each storage once, those of `owned` tensors left out."""
    ours = {tensor.untyped_storage().data_ptr() for tensor in owned}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output saved as itself would keep its own graph alive

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    del loss  # it held every storage until here, so that no address was used twice
    return sum(saved.values())


class Cost:
    """Context that measures `seconds` and `peak`, the most bytes in use inside it over those at its start.

    On CUDA these bytes are torch's allocations. On the CPU they are the resident memory of the process, which
    is read as Linux shows it: elsewhere `peak` is None. What the process freed before is given back to the
    system first, so that using it again counts.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device if device.startswith("cuda") else None
        self.peak: int | None = None

    def __enter__(self) -> "Cost":
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize(self.cuda)
            torch.cuda.reset_peak_memory_stats(self.cuda)
            self.bytes = torch.cuda.memory_allocated(self.cuda)
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what earlier steps freed is not in use
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the high-water mark: see proc(5)
            self.bytes = resident_bytes("VmRSS")
        self.start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.cuda)
        self.seconds = time.perf_counter() - self.start
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated(self.cuda) - self.bytes
        elif sys.platform == "linux":
            self.peak = resident_bytes("VmHWM") - self.bytes


def resident_bytes(field: str) -> int:
    """Resident memory of this process in bytes: VmRSS, now, or VmHWM, its high-water mark. Linux only.

    Mapped files such as libraries count. The kernel counts in batches: some hundred KiB may be missing.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in an interpreter of its own; a forked one would begin with this one's memory.

    The function, its arguments and its result are pickled. What it raises is raised here.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Print `what`, then a dot every five seconds of the block, then how long it took."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(5):
            print(".", end="", flush=True)

    print(f"{what} ..", end="", flush=True)
    start = time.perf_counter()
    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()
        print(f" {time.perf_counter() - start:.0f} s", flush=True)
