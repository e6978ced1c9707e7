"""Compile kernels ahead of time, for a device that need not be here, into Triton's cache."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from mhf_compile.kernels.flash_mhf.launch import Launch

_lock = threading.Lock()  # the active driver is one for the process


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
    with _compiling_for(arch):
        return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)


@contextmanager
def _compiling_for(arch: str) -> Iterator[None]:
    with _lock:
        before = driver._active
        driver.set_active(_AheadDriver(arch))
        try:
            yield
        finally:
            driver._active = before
