"""A ``torch.compile`` backend that finds gated multi-head feed-forwards, however written, and fuses them.

``torch.compile(model, backend="flashmhf")`` needs no import of this package; PyTorch imports it through its
entry point. A saved program that calls its operators does: they are registered here. The rest is loaded on
first use, because it takes long, and because PyTorch may import this while it is itself loading (it does so
with TORCH_LOGS).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import mhf_compile.kernels.ops  # noqa: F401  (registers the operators)

if TYPE_CHECKING:
    from mhf_compile.api import explain, rewrite
    from mhf_compile.backend import flashmhf, last_reports
    from mhf_compile.errors import FlashMHFError, NotRewritten, OptionError
    from mhf_compile.kernels.ops import flash_mhf
    from mhf_compile.report import Miss, Report, Rewrite

__version__ = "0.1.0"

__all__ = [
    "FlashMHFError",
    "Miss",
    "NotRewritten",
    "OptionError",
    "Report",
    "Rewrite",
    "explain",
    "flash_mhf",
    "flashmhf",
    "last_reports",
    "rewrite",
]

_HOMES = {
    "api": ("explain", "rewrite"),
    "backend": ("flashmhf", "last_reports"),
    "errors": ("FlashMHFError", "NotRewritten", "OptionError"),
    "kernels.ops": ("flash_mhf",),
    "report": ("Miss", "Report", "Rewrite"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
