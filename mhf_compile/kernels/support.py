"""What the operators can run on: asked when a program is compiled, and by every call."""

from functools import cache

import torch
from torch.torch_version import TorchVersion

_HALF_AND_SINGLE = (torch.float16, torch.bfloat16, torch.float32)

_ALL = (*_HALF_AND_SINGLE, torch.float64)

DTYPES: dict[str, tuple[torch.dtype, ...]] = {"cuda": _HALF_AND_SINGLE, "cpu": _ALL, "meta": _ALL}
"""The dtypes of q that the operators take, by type of device."""

OLDEST_TRITON = "3.6"


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the operators do not run on a device in a dtype; None where they do.

    Of a GPU that is not in this machine, as that of a fake tensor may be, only the dtype is asked.
    """
    if device.type not in DTYPES:
        return f"the op does not run on {device.type}, but on {', '.join(DTYPES)}"
    if dtype not in DTYPES[device.type]:
        taken = ", ".join(map(str, DTYPES[device.type]))
        return f"the op does not take {dtype} on {device.type}, but {taken}"
    if device.type == "cuda" and torch.cuda.is_available():
        return without_triton() or without_kernels(device.index)
    return None


@cache
def without_triton() -> str | None:
    """Why there is no Triton to compile the kernels; None where there is."""
    try:
        import triton
    except ImportError as error:
        return f"the op needs Triton on a GPU, which cannot be imported: {error}"
    if TorchVersion(triton.__version__) < OLDEST_TRITON:
        return f"the op needs Triton {OLDEST_TRITON} or later on a GPU, and this is {triton.__version__}"
    return None


@cache
def without_kernels(index: int | None) -> str | None:
    """Why there are no kernels for a GPU of this machine; None where there are."""
    from mhf_compile.kernels.flash_mhf import config

    try:
        config.family(architecture(index))
    except ValueError as error:
        return f"the op has no kernels for {torch.cuda.get_device_name(index)}: {error}"
    return None


def architecture(index: int | None) -> str:
    """The architecture of a GPU of this machine, as `sm_90` or `gfx942`."""
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"
