"""The GPU, the software on it, and its two ceilings: a large matrix product and a large copy."""

import importlib.metadata
import shutil
import subprocess
from dataclasses import asdict, dataclass

import torch

from benchmarks.gpu.peers import has_liger
from benchmarks.gpu.protocol import Lab, Protocol
from benchmarks.gpu.timing import Task, race
from benchmarks.settings import machine

QUERY = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches: TFLOP/s of a square matrix product, and bytes a second, read and written."""

    tflops: float
    bandwidth: float


def facts(protocol: Protocol) -> dict[str, object]:
    """The machine, and the versions of what runs on it."""
    found: dict[str, object] = {**machine(), "cuda": torch.version.cuda, "triton": version("triton")}
    found["liger_kernel"] = version("liger_kernel") if has_liger() else None
    if protocol.device == "cuda":
        properties = torch.cuda.get_device_properties()
        found["gpu"] = properties.name
        found["multiprocessors"] = properties.multi_processor_count
        found["memory"] = properties.total_memory
        found["cache"] = protocol.cache_bytes()
    return found


def version(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def state() -> dict[str, str] | None:
    """Driver, clocks, power and temperature as nvidia-smi shows them now; None where it does not."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--id=0", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (subprocess.SubprocessError, OSError):
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    names = QUERY.split(",")
    return dict(zip(names, values, strict=True)) if len(names) == len(values) else None


def ceilings(lab: Lab) -> Ceilings:
    """Measure both: cuBLAS on random numbers, which draw more power than zeros, and a copy."""
    protocol = lab.protocol
    n = protocol.matmul
    a, b = (torch.randn(n, n, dtype=protocol.dtype, device=protocol.device) for _ in range(2))
    source = torch.randint(256, (protocol.copied,), dtype=torch.uint8, device=protocol.device)
    target = torch.empty_like(source)
    tasks = {"product": Task(lambda _: a @ b), "copy": Task(lambda _: target.copy_(source))}
    times = race(tasks, lab.clock, protocol.limits).timings
    product, copy = times["product"].seconds.median, times["copy"].seconds.median
    return Ceilings(2 * n**3 / product / 1e12, 2 * source.nbytes / copy)


def describe(lab: Lab) -> dict[str, object]:
    """All of it, with the state before and after the two ceilings were measured."""
    before = state()
    measured = asdict(ceilings(lab))
    return {**facts(lab.protocol), "state": before, **measured, "state_after": state()}
