"""The time that analysing a graph takes, stage by stage, and how it grows with the number of layers.

The language model is built on the meta device and traced by Dynamo once, so that nothing heavy runs; its
graph is then analysed and rewritten as in `torch.compile`. Each measurement has a process of its own: a user
pays for first calls as well.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import wraps
from typing import ParamSpec, TypeVar
from unittest import mock

import torch
from torch import fx

from benchmarks.results import Spread, at_most, number_table, spread_table
from benchmarks.settings import Settings
from mhf_compile import backend
from mhf_compile.commands.measure import in_fresh_process, progress
from mhf_compile.models import CONFIGS, LanguageModel
from mhf_compile.options import Options
from mhf_compile.rewriting import plan
from mhf_compile.rewriting.proof import Proofs

LAYERS = (1, 2, 5, 10, 20)
STAGES = ("record", "find", "prove", "rewrite")
REQUIRED = "1.3B"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """The line through (layers, seconds) by least squares, and how far a point is from it, at most."""

    start: float
    per_layer: float
    farthest: float

    def __str__(self) -> str:
        return (
            f"A straight line through the totals: {self.start:.3f} s and {self.per_layer:.3f} s a layer; "
            f"no total is farther from it than {self.farthest:.3f} s."
        )


def run(settings: Settings) -> dict[str, object]:
    """Measure each number of layers up to the model's, print the table and whether the requirement holds."""
    model = settings.model
    print(f"Analysis of a FlashMHF language model, layers: {model.layers}; {settings}", flush=True)
    counts = [*(count for count in LAYERS if count < model.layers), model.layers]
    measured: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for number in range(1, settings.repeats + 1):
        for count in counts:
            with progress(f"  repeat {number}/{settings.repeats}, layers: {count}, tracing and analysis"):
                measured[count].append(in_fresh_process(measure, settings, count))
    print(f"\n{growth_table(measured, model.subnetworks)}", flush=True)
    line = line_through(counts, [median_total(measured[count]) for count in counts])
    if len(counts) > 2:
        print(line)

    most = measured[model.layers]
    rows = {stage: Spread.of([spent[stage] for spent in most]) for stage in STAGES}
    rows["total"] = Spread.of([sum(spent.values()) for spent in most])
    print(f"\n{spread_table(f'layers: {model.layers}, s', rows)}")
    seconds = Spread.of([analysed(spent) for spent in most]).median
    requirement = at_most("record, find and prove, s", seconds, 5)
    print(f"\nRequired of the {REQUIRED} model, {CONFIGS[REQUIRED].layers} layers:")
    if model != CONFIGS[REQUIRED]:
        print("(this model is another)")
    print(requirement, flush=True)
    return {"seconds": measured, "line": asdict(line), "requirements": [asdict(requirement)]}


def measure(settings: Settings, layers: int) -> dict[str, float]:
    """Trace a model of so many layers, rewrite its graph, and return the seconds of each stage."""
    torch.set_num_threads(settings.threads)
    graph = trace(settings, layers)
    with stopwatch() as seconds:
        start = time.perf_counter()
        report = backend.rewrite_graph(graph, Options())
        total = time.perf_counter() - start
    if len(report.rewrites) != layers:
        raise RuntimeError(f"not every layer was rewritten: {report}")
    return {**seconds, "rewrite": total - sum(seconds.values())}


def trace(settings: Settings, layers: int) -> fx.GraphModule:
    """Dynamo's graph of a model of so many layers on the meta device."""
    graphs: list[fx.GraphModule] = []

    def capture(module: fx.GraphModule, inputs: Sequence[object]) -> fx.GraphModule:
        graphs.append(module)
        return module

    with torch.device("meta"):
        model = LanguageModel(replace(settings.model, layers=layers)).to(settings.torch_dtype)
        tokens = torch.zeros(1, settings.tokens, dtype=torch.int64)
    torch.compile(model, backend=capture, fullgraph=True)(tokens)
    (graph,) = graphs
    return graph


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Measure what the backend spends in record, find (with its check of regions) and prove, in seconds."""
    seconds = {"record": 0.0, "find": 0.0, "prove": 0.0}

    def timed(stage: str, function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[stage] += time.perf_counter() - start
            return result

        return call

    with ExitStack() as stack:
        for holder, stage in ((backend, "record"), (plan, "find"), (Proofs, "prove")):
            function = timed(stage, getattr(holder, stage))
            stack.enter_context(mock.patch.object(holder, stage, function))
        yield seconds
        seconds["find"] -= seconds["prove"]  # a match is proved where it is found


def analysed(seconds: dict[str, float]) -> float:
    """Seconds of all stages before the rewrite."""
    return sum(seconds.values()) - seconds["rewrite"]


def median_total(measured: list[dict[str, float]]) -> float:
    """The median of the seconds of all stages."""
    return Spread.of([sum(spent.values()) for spent in measured]).median


def growth_table(measured: dict[int, list[dict[str, float]]], bodies: int) -> str:
    """Lay out the medians of stages and total for each number of layers, of so many loop bodies each."""
    rows = {}
    for count, spents in measured.items():
        medians = [Spread.of([spent[stage] for spent in spents]).median for stage in STAGES]
        rows[f"{count} ({count * bodies})"] = [*medians, median_total(spents)]
    return number_table("layers (loop bodies), median s", [*STAGES, "total"], rows, digits=3)


def line_through(x: Sequence[float], y: Sequence[float]) -> Line:
    """The line through points by least squares; through one point, a level one."""
    design = torch.tensor([[1.0, value] for value in x], dtype=torch.float64)
    target = torch.tensor(y, dtype=torch.float64)
    if len(x) == 1:
        return Line(y[0], 0.0, 0.0)
    start, slope = torch.linalg.lstsq(design, target).solution.tolist()
    farthest = max(abs(start + slope * a - b) for a, b in zip(x, y, strict=True))
    return Line(start, slope, farthest)
