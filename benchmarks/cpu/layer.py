"""A FlashMHF layer as its users write it: eager, compiled by Inductor, and by `backend="flashmhf"`."""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from benchmarks.cpu.contest import Contest, Workload, contest
from benchmarks.results import Requirement, Spread, at_least, at_most, ratio
from benchmarks.settings import Settings
from mhf_compile.models import CONFIGS, FlashMHF

EAGER, INDUCTOR, OURS = "eager", "inductor", "flashmhf"
REQUIRED = "370M layer, 4096 tokens, float32, 2 threads"


def run(settings: Settings) -> dict[str, object]:
    """Compare the three, print what came of it, and say which of the requirements hold."""
    print(f"FlashMHF layer: {settings}", flush=True)
    result = contest(workload, settings)
    requirements = requirements_on(result)
    print(f"\n{result}\n\nRequired of the {REQUIRED}:")
    if not as_required(settings):
        print("(these settings are others)")
    print("\n".join(map(str, requirements)), flush=True)
    return {**asdict(result), "requirements": [asdict(requirement) for requirement in requirements]}


def workload(settings: Settings) -> Workload:
    """The layer and its compiled forms, which share their weights, and one sequence [1, N, d].

    The input takes a gradient, as it does inside of a model.
    """
    dtype = settings.torch_dtype
    layer = FlashMHF(settings.model).to(dtype)
    x = torch.randn(1, settings.tokens, settings.model.hidden, dtype=dtype, requires_grad=True)
    implementations: dict[str, Callable[..., Tensor]] = {
        EAGER: layer,
        INDUCTOR: torch.compile(layer),
        OURS: torch.compile(layer, backend="flashmhf", options={"flashmhf.require": 1}),
    }
    return Workload(implementations, [x], [x, *layer.parameters()], torch.randn(x.shape, dtype=dtype))


def requirements_on(result: Contest) -> list[Requirement]:
    """What is required of the paper's 370M layer on a CPU."""
    training, inference = (
        ratio(seconds[OURS], seconds[INDUCTOR]) for seconds in (result.times.training, result.times.inference)
    )
    return [
        at_least("peak memory, eager's over ours", result.peaks.ratio(EAGER, OURS), 5),
        at_least("peak memory, Inductor's over ours", result.peaks.ratio(INDUCTOR, OURS), 4),
        at_most(f"training time, ours over Inductor's {span(training)}", training.median, 1.1),
        at_most(f"inference time, ours over Inductor's {span(inference)}", inference.median, 1.0),
    ]


def span(spread: Spread) -> str:
    """Say how far the repeats were apart."""
    return f"(p20 {spread.p20:.2f}, p80 {spread.p80:.2f})"


def as_required(settings: Settings) -> bool:
    """Whether these are the settings that the requirements are for."""
    return (settings.model, settings.tokens, settings.threads, settings.dtype) == (
        CONFIGS["370M"],
        4096,
        2,
        "float32",
    )
