"""Where the time goes in which a whole model is compiled for training, with caches that are not used."""

import contextlib
import time
from collections.abc import Iterator
from unittest import mock

import torch
from torch import fx
from torch._dynamo.utils import compilation_time_metrics

from benchmarks.results import number_table
from benchmarks.settings import Settings
from mhf_compile import backend
from mhf_compile.commands.measure import in_fresh_process, progress
from mhf_compile.models import FlashMHF, LanguageModel
from mhf_compile.options import Options
from mhf_compile.report import Report

TOKENS = 128  # of the step that is compiled; compiling takes as long for more

STAGES = {
    "Dynamo": ("bytecode_tracing",),
    "AOTAutograd: trace": ("aot_collect_metadata", "aot_trace_joint_graph"),
    "AOTAutograd: partition": ("min_cut_rematerialization_partition",),
    "Inductor: forward": ("compile_fx.<locals>.fw_compiler_base",),
    "Inductor: backward": ("compile_fx.<locals>.bw_compiler",),
}
"""PyTorch's names of what it times, which are not nested in each other."""


def run(settings: Settings) -> dict[str, object]:
    """Compile a language model forward and backward, and print what took how long."""
    print(f"Compiling a FlashMHF language model, {settings.model.layers} layers: {settings}", flush=True)
    with progress("  compiling"):
        seconds = in_fresh_process(spent, settings)
    print("\n" + number_table("s", [""], {name: [taken] for name, taken in seconds.items()}, digits=1))
    return {"seconds": seconds}


def spent(settings: Settings) -> dict[str, float]:
    """Seconds of each stage, and in all."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    config = settings.model
    model = LanguageModel(config, FlashMHF).to(settings.torch_dtype)
    tokens = torch.randint(config.vocabulary, (1, TOKENS))
    run = torch.compile(model, backend="flashmhf", options={"flashmhf.require": config.layers})
    with torch._inductor.config.patch(force_disable_caches=True), _timed() as analysis:
        start = time.perf_counter()
        run(tokens).float().logsumexp(-1).mean().backward()
        whole = time.perf_counter() - start
        start = time.perf_counter()
        run(tokens).float().logsumexp(-1).mean().backward()
        whole -= time.perf_counter() - start
    taken = compilation_time_metrics
    stages = {name: sum(sum(taken.get(one, ())) for one in ones) for name, ones in STAGES.items()}
    stages["mhf_compile: analysis"] = sum(analysis)
    return {**stages, "rest": whole - sum(stages.values()), "in all": whole}


@contextlib.contextmanager
def _timed() -> Iterator[list[float]]:
    """The seconds of each analysis in the block."""
    seconds: list[float] = []
    analyse = backend.analyse

    def timed(module: fx.GraphModule, options: Options) -> Report:
        start = time.perf_counter()
        try:
            return analyse(module, options)
        finally:
            seconds.append(time.perf_counter() - start)

    with mock.patch.object(backend, "analyse", timed):
        yield seconds
