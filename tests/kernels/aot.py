"""Compile a Triton kernel ahead of time, for a device that need not be there, and read what it uses.

Run as a script: prints the resources of every row of the tile tables, at the sizes of the paper's models.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from mhf_compile.kernels.flash_mhf import backward, config, forward, launch

KERNELS = {
    "forward": forward.forward_kernel,
    "dq": backward.dq_kernel,
    "dk_du": backward.dk_du_kernel,
    "dv": backward.dv_kernel,
}


class Resources(NamedTuple):
    """What a program takes: bytes of shared memory, registers and bytes of local memory (spills) of a thread.

    `products` are the matrix products in its code.
    """

    shared: int
    registers: int
    local: int
    products: int


def resources(kernel, head_dim, out_dim, dtype, capability, *, biases=False, gated=True, activation="silu"):
    """Compile for contiguous operands, with the tiles that a launch would choose."""

    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    q, out, r = (
        meta(1, 4096, 8, head_dim),
        meta(1, 4096, 8, out_dim),
        meta(1, 4096, 8, 11, dtype=torch.float32),
    )
    k, v, bias = meta(8, 11, 256, head_dim), meta(8, 11, 256, out_dim), meta(8, 11, 256) if biases else None
    u, up_bias = (k, bias) if gated else (None, None)
    others = {
        "forward": (out,), "dq": (out, q, r), "dk_du": (out, k, u, bias, up_bias), "dv": (out, v)
    }[kernel]  # fmt: skip
    chosen = config.tiles(kernel, head_dim, out_dim, dtype, capability)
    operands = (q, k, u, v, r, bias, up_bias)
    args, options = launch.arguments(operands, others, activation, 1.0, 1.0, chosen)
    return compile_ahead(KERNELS[kernel], args, options, capability)


def compile_ahead(function, args, options, capability):
    """Specialise on the arguments as a launch does, and compile."""
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    backend = make_backend(target)
    bind = create_function_from_signature(function.signature, function.params, backend)
    bound, specialization, _ = bind(*args, **options, debug=False)
    _, signature, constants, attributes = function._pack_args(
        backend,
        {"num_warps": options["num_warps"], "num_stages": options["num_stages"]},
        bound,
        specialization,
        {"num_warps": options["num_warps"], "num_stages": options["num_stages"]},
    )
    source = ASTSource(function, signature, constants, attributes)
    compiled = triton.compile(
        source, target, {"num_warps": options["num_warps"], "num_stages": options["num_stages"]}
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    products = compiled.asm["ttir"].count("tt.dot ")
    return Resources(compiled.metadata.shared, registers, stack + local, products)


if __name__ == "__main__":
    for capability in ((8, 0), (9, 0), (10, 0)):
        for dtype in (torch.bfloat16, torch.float32):
            for kernel in KERNELS:
                for dim in (64, 96, 128, 256):
                    print(capability, dtype, kernel, dim, *config.tiles(kernel, dim, dim, dtype, capability),
                          resources(kernel, dim, dim, dtype, capability))  # fmt: skip
                    sys.stdout.flush()
