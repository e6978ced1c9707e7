"""The operator `flash_mhf` alone: against its formula, eager and compiled by Inductor."""

from dataclasses import asdict

import torch

from benchmarks.cpu.contest import Workload, contest
from benchmarks.formula import formula
from benchmarks.settings import Settings
from mhf_compile.kernels.ops import flash_mhf


def run(settings: Settings) -> dict[str, object]:
    """Compare the three and print what came of it."""
    print(f"flash_mhf: {settings}", flush=True)
    result = contest(workload, settings)
    print(f"\n{result}", flush=True)
    return asdict(result)


def workload(settings: Settings) -> Workload:
    """Random operands that keep the variance: q [1, N, H, D], k, u, v [H, E, F, D], r [1, N, H, E]."""
    model, dtype = settings.model, settings.torch_dtype
    queries = (1, settings.tokens, model.ffn_heads, model.head_dim)
    weights = (model.ffn_heads, model.subnetworks, model.subnetwork_width, model.head_dim)
    routing = (1, settings.tokens, model.ffn_heads, model.subnetworks)
    operands = [
        (torch.randn(shape, dtype=dtype) * fan_in**-0.5).requires_grad_()
        for shape, fan_in in (
            (queries, 1),
            (weights, model.head_dim),
            (weights, model.head_dim),
            (weights, model.subnetwork_width),
            (routing, model.subnetworks),
        )
    ]
    implementations = {"eager": formula, "inductor": torch.compile(formula), "flash_mhf": flash_mhf}
    return Workload(implementations, operands, operands, torch.randn(queries, dtype=dtype))
