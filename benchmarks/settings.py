"""What a benchmark is run with, and on."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from mhf_compile.models import ModelConfig


@dataclass(frozen=True)
class Settings:
    """What every benchmark takes.

    Attributes:
        model: sizes of the model or, its first numbers, of the layer.
        tokens: tokens N of a step, one sequence.
        repeats: how often each thing is measured.
        threads: threads that torch computes with.
        dtype: torch's name of the dtype of weights and activations.
    """

    model: ModelConfig
    tokens: int
    repeats: int
    threads: int = 2
    dtype: str = "float32"

    def __str__(self) -> str:
        model = self.model
        return (
            f"d {model.hidden}, H {model.ffn_heads}, d_h {model.head_dim}, E {model.subnetworks}, "
            f"d_e {model.subnetwork_width}; {self.tokens} tokens, {self.dtype}, {self.threads} threads, "
            f"{self.repeats} repeats"
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def machine() -> dict[str, object]:
    """This machine and what runs on it: processor, cores we may use, load (runnable processes), versions."""
    linux = hasattr(os, "sched_getaffinity")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if linux else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """The processor's name, where Linux or the platform tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
