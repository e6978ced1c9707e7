"""Forward, backward, training step and peak memory of all entrants at a shape."""

from collections.abc import Iterator, Mapping

import torch

from benchmarks.gpu.peers import OURS, Entrant, makers
from benchmarks.gpu.protocol import Lab, Shape
from benchmarks.gpu.results import Memory, Speed
from benchmarks.gpu.timing import Failure, Race, Task, attempt, race, release
from mhf_compile.commands.measure import Cost

STEPS = 2  # training steps whose largest peak counts


def forward(shape: Shape, lab: Lab) -> Iterator[Speed]:
    """Measure a forward that nothing is kept of."""
    entrants, failures = enter(shape, lab)
    tasks = {name: Task(entrant.infer) for name, entrant in entrants.items()}
    yield Speed.of(shape, "forward", _joined(race(tasks, lab.clock, lab.protocol.limits, OURS), failures))


def training(shape: Shape, lab: Lab) -> Iterator[Speed | Memory]:
    """Measure a training step, its peak memory, and its backward alone.

    The backward has a new forward before each sample, and not one whose graph is retained: compiled code
    would have to give up reusing what the forward saved, Liger's overwrites it, and all that is saved by all
    peers would have to be held at once.
    """
    entrants, failures = enter(shape, lab)
    tasks = {name: Task(entrant.step) for name, entrant in entrants.items()}
    step = race(tasks, lab.clock, lab.protocol.limits, OURS)
    yield Speed.of(shape, "step", _joined(step, failures))
    entrants = {name: entrant for name, entrant in entrants.items() if name in step.timings}
    failures = {**failures, **step.failures}
    yield memory(shape, lab, entrants, failures)
    tasks = {name: Task(entrant.backward, prepare=entrant.forward) for name, entrant in entrants.items()}
    if tasks:
        yield Speed.of(
            shape, "backward", _joined(race(tasks, lab.clock, lab.protocol.limits, OURS), failures)
        )


def memory(
    shape: Shape,
    lab: Lab,
    entrants: Mapping[str, Entrant],
    failures: Mapping[str, str],
) -> Memory:
    """Measure the peak of a training step of entrants that have run before."""
    peaks: dict[str, int | None] = {}
    results: dict[str, int] = {}
    failed = dict(failures)
    for name, entrant in entrants.items():
        with lab.turn(name):
            found = attempt(lab.clock, peak, entrant, lab.protocol.device)
        match found:
            case Failure(why):
                failed[name] = why
            case found:
                peaks[name] = found
                results[name] = entrant.gradient.nbytes + sum(tensor.nbytes for tensor in entrant.trained)
    model = shape.model
    return Memory(shape.level, shape.size, model.head_dim, shape.tokens, peaks, results, failed)


def peak(entrant: Entrant, device: str) -> int | None:
    """The most bytes in use during a step over those before it; None where it cannot be read."""
    peaks = []
    for _ in range(STEPS):
        with Cost(device) as cost:
            entrant.step()
        peaks.append(cost.peak)
    return max((peak for peak in peaks if peak is not None), default=None)


def enter(shape: Shape, lab: Lab) -> tuple[dict[str, Entrant], dict[str, str]]:
    """Make the entrants of a shape, on a device and a compiler with nothing left from the last one."""
    torch.compiler.reset()  # so many shapes of one function would go past the limit of recompilations
    release()
    torch.manual_seed(0)
    entrants: dict[str, Entrant] = {}
    failures: dict[str, str] = {}
    for name, maker in makers(shape, lab).items():
        if name in lab.lost:
            failures[name] = lab.lost[name]
            continue
        with lab.turn(name):
            made = attempt(lab.clock, maker)
        match made:
            case Failure(why):
                failures[name] = why
            case entrant:
                entrants[name] = entrant
    return entrants, failures


def _joined(race: Race, failures: Mapping[str, str]) -> Race:
    """The race with the failures of those that could not take part."""
    return Race(race.timings, race.over, {**failures, **race.failures})
