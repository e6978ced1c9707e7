"""Compile ahead of time, into Triton's cache as a launch would, for a device that need not be here."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from mhf_compile.kernels.flash_mhf import config
from mhf_compile.kernels.flash_mhf.config import Target
from mhf_compile.kernels.flash_mhf.launch import Launch, target_of, watcher

_lock = threading.Lock()  # the active driver is one for the process

# Multiprocessors of A100, A40, RTX 4090, H100, B200, RTX 5090; MI210, MI300X, MI350X: from their data sheets.
PROCESSORS = {
    "sm_80": 108, "sm_86": 84, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_120": 170,
    "gfx90a": 104, "gfx942": 304, "gfx950": 256,
}  # fmt: skip


def target_for(arch: str) -> Target:
    """The device of this machine that is of an architecture; where there is none, one as they are sold.

    Raises:
        ValueError: there are no kernels for it.
    """
    family = config.family(arch)
    here = (target_of(torch.device("cuda", index)) for index in range(torch.cuda.device_count()))
    sold = Target(arch, PROCESSORS.get(arch, PROCESSORS[family]))
    return next((target for target in here if target.arch == arch), sold)


class Compiled(NamedTuple):
    """What came of compiling a launch ahead of time.

    Attributes:
        kernel: Triton's compiled kernel: `.asm` and `.metadata`.
        cached: whether Triton's cache had it already; None where this process did it before.
        seconds: that it took.
    """

    kernel: Any
    cached: bool | None
    seconds: float


class _AheadDriver:
    """All that Triton asks a driver when it compiles without launching."""

    def __init__(self, arch: str) -> None:
        amd = arch.startswith("gfx")
        self.arch = arch
        self.target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch[3:]), 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return self.arch  # a key of the kernels' caches in this process, never that of a real device

    def get_current_stream(self, device: str) -> int:
        return 0


def compile_ahead(launch: Launch, arch: str) -> Any:
    """Compile a launch for an architecture as `sm_90`; its tensors may be on the meta device.

    Returns:
        Triton's compiled kernel: `.asm` and `.metadata`.
    """
    return compile_or_find(launch, arch).kernel


def compile_or_find(launch: Launch, arch: str) -> Compiled:
    """As `compile_ahead`, with what was to be done for it."""
    heard: list[bool] = []

    def listen(*, cache_hit: bool, **_: Any) -> None:
        heard.append(cache_hit)

    with _compiling_for(arch), knobs.compilation.scope():
        knobs.compilation.listener = listen
        start = time.perf_counter()
        kernel = launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
        return Compiled(kernel, heard[-1] if heard else None, time.perf_counter() - start)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """What the block launches, in its order. Nothing is run: the tensors may be on the meta device."""
    launches: list[Launch] = []
    token = watcher.set(launches.append)
    try:
        yield launches
    finally:
        watcher.reset(token)


@contextmanager
def _compiling_for(arch: str) -> Iterator[None]:
    with _lock:
        before = driver._active
        driver.set_active(_AheadDriver(arch))
        try:
            yield
        finally:
            driver._active = before
