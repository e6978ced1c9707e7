"""Implementations of one computation, compared: peak memory, and time of training and of inference.

A training step is a forward and a backward, with gradients of weights and inputs; inference is a forward in
inference mode. What is compiled is compiled, and everything has run once, before anything is measured; to
compile again while measuring is an error.

Peak memory is measured in a process for each implementation, so that nothing else counts in it. Times are
measured in one process, in rounds: each implementation once a round, another one first in each.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.compiling import no_compiling
from benchmarks.results import Spread, number_table, ratio, spread_table
from benchmarks.settings import Settings
from mhf_compile.commands.measure import Cost, in_fresh_process, progress

STEPS = 3  # training steps whose largest peak counts
COUNTED = f"""Counted: the highest resident memory of the process during a step less that before it, when
weights, inputs and compiled code are in place, freed memory is given back and there are no gradients yet;
the largest of {STEPS} steps."""


@dataclass(frozen=True)
class Workload:
    """One computation, implemented in several ways, and the tensors to run it on.

    Attributes:
        implementations: by name, functions of `inputs`; the plain one comes first and ours last.
        inputs: what they are called with.
        trained: the tensors that a training step makes gradients of.
        gradient: gradient of the output, which the backward starts from.
    """

    implementations: dict[str, Callable[..., Tensor]]
    inputs: list[Tensor]
    trained: list[Tensor]
    gradient: Tensor

    def train(self, name: str) -> None:
        """Run a training step; the gradients stay in `trained`."""
        self.implementations[name](*self.inputs).backward(self.gradient)

    def infer(self, name: str) -> Tensor:
        """Run a forward that nothing is kept of."""
        with torch.inference_mode():
            return self.implementations[name](*self.inputs)

    def clear(self) -> None:
        """Drop the gradients of the last step."""
        for tensor in self.trained:
            tensor.grad = None


Make = Callable[[Settings], Workload]
"""Builds a workload; a function of a module, which another process can import."""


@dataclass(frozen=True)
class Peaks:
    """Memory of a training step, in bytes.

    Attributes:
        peaks: for each implementation, the most that the process held over what it held before the step;
            None: not known.
        results: how much of it are the output and the gradients, which every implementation has to make.
    """

    peaks: dict[str, int | None]
    results: int

    def ratio(self, name: str, ours: str) -> float | None:
        """How far ours is below another's peak, as a factor."""
        over, under = self.peaks[name], self.peaks[ours]
        return None if over is None or under is None else over / max(under, 1)


@dataclass(frozen=True)
class Times:
    """Seconds of each implementation, round by round, and how far its results are from the first one's.

    `differences` are norms of the difference over norms of the first one's: the largest of output and
    gradients.
    """

    training: dict[str, list[float]]
    inference: dict[str, list[float]]
    differences: dict[str, float]


@dataclass(frozen=True)
class Contest:
    """What came of a contest; the names are in order, ours last."""

    names: list[str]
    peaks: Peaks
    times: Times

    def __str__(self) -> str:
        others, ours = self.names[:-1], self.names[-1]
        parts = [self._peak_table(others, ours)]
        for title, seconds in (
            ("training step, s", self.times.training),
            ("inference forward, s", self.times.inference),
        ):
            rows = {name: Spread.of(seconds[name]) for name in self.names}
            for name in others:
                rows[f"{ours} / {name}"] = ratio(seconds[ours], seconds[name])
            parts.append(spread_table(title, rows))
        parts.append("Ratios are taken round by round: their median is not the ratio of the medians.\n")
        for name, difference in self.times.differences.items():
            parts.append(f"{name} differs from {self.names[0]} by {difference:.1e} of the norm, at most.")
        return "\n".join(parts)

    def _peak_table(self, others: list[str], ours: str) -> str:
        known = {name: peak for name, peak in self.peaks.peaks.items() if peak is not None}
        if len(known) < len(self.names):
            return "peak memory of a training step: not known, it is read as Linux shows it"
        rows = {name: [known[name] / 2**20] for name in self.names}
        for name in others:
            rows[f"{name} / {ours}"] = [known[name] / max(known[ours], 1)]
        table = number_table("peak memory of a training step, MiB", ["peak"], rows, digits=2)
        return f"{table}\n{COUNTED} {self.peaks.results / 2**20:.2f} MiB of it are output and gradients.\n"


def contest(make: Make, settings: Settings) -> Contest:
    """Compare the implementations of a workload, printing progress."""
    times = in_fresh_process(measure_times, make, settings)
    names = list(times.training)
    peaks: dict[str, int | None] = {}
    results = 0
    for name in names:
        with progress(f"  {name}: peak memory, in a process of its own"):
            peaks[name], results = in_fresh_process(measure_peak, make, settings, name)
    return Contest(names, Peaks(peaks, results), times)


def measure_peak(make: Make, settings: Settings, name: str) -> tuple[int | None, int]:
    """Measure the peak of a training step in bytes, and how much of it are output and gradients."""
    workload = prepare(make, settings)
    workload.train(name)
    results = workload.gradient.nbytes + sum(tensor.nbytes for tensor in workload.trained)
    peaks = []
    with no_compiling():
        for _ in range(STEPS):
            workload.clear()
            with Cost("cpu") as cost:
                workload.train(name)
            peaks.append(cost.peak)
    return max((peak for peak in peaks if peak is not None), default=None), results


def measure_times(make: Make, settings: Settings) -> Times:
    """Measure the time of training steps and of inference forwards, in rounds, printing progress."""
    workload = prepare(make, settings)
    names = list(workload.implementations)
    results = {}
    for name in names:
        with progress(f"  {name}: compiling, first results"):
            results[name] = first_results(workload, name)
    differences = {name: difference(results[name], results[names[0]]) for name in names[1:]}
    results.clear()
    workload.clear()
    with no_compiling():
        training = rounds("training", workload, workload.train, settings.repeats)
        inference = rounds("inference", workload, workload.infer, settings.repeats)
    return Times(training, inference, differences)


def prepare(make: Make, settings: Settings) -> Workload:
    """Build the workload, from seed 0, for as many threads as `settings` says."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    return make(settings)


def first_results(workload: Workload, name: str) -> list[Tensor]:
    """Run a forward and a training step: output and gradients."""
    workload.clear()
    output = workload.infer(name)
    workload.train(name)
    return [output, *(tensor.grad for tensor in workload.trained if tensor.grad is not None)]


def difference(results: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference of any tensor, in the norm."""
    pairs = [(a.double(), b.double()) for a, b in zip(results, expected, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def rounds(
    what: str, workload: Workload, work: Callable[[str], object], repeats: int
) -> dict[str, list[float]]:
    """Time `work` on every implementation in each of `repeats` rounds, after one that does not count."""
    names = list(workload.implementations)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeats + 1):
        first = number % len(names)
        gc.collect()
        for name in names[first:] + names[:first]:
            workload.clear()
            start = time.perf_counter()
            work(name)
            seconds[name].append(time.perf_counter() - start)
        if number:
            took = ", ".join(f"{name} {seconds[name][-1]:.3f} s" for name in names)
            print(f"  {what}, round {number}/{repeats}: {took}", flush=True)
    return {name: times[1:] for name, times in seconds.items()}
