"""Time on a device: what a sample is, and rounds in which several implementations take turns.

A clock measures in seconds. `CudaClock` reads events of the device, `WallClock` the time of the process: it
stands in where there is no GPU.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch

from benchmarks.compiling import no_compiling
from benchmarks.results import Spread, ratio

P = ParamSpec("P")
T = TypeVar("T")

AHEAD = 2.0  # how many times as long as the host needs to launch the work the device is kept busy before it
MOST_AHEAD = 0.05  # s


class DeviceLost(Exception):
    """The device answers no more: an illegal access, say. Nothing can be measured in this process."""


@dataclass(frozen=True)
class Failure:
    """Something that could not be done, and why."""

    why: str


@dataclass(frozen=True)
class Task:
    """What is timed.

    Attributes:
        run: is timed, called with what `prepare` made.
        prepare: is called before each sample, and not timed.
        warm: whether `run` is called once more right before, not timed. Otherwise the cache is cold.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    warm: bool = False


Alarm = Callable[[str, float], object]
"""Is told who is at work from now on, "" for nobody in particular, and how many seconds that may take."""


class Budget:
    """Seconds that a run may take, from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seconds = seconds
        self.start = clock()

    def spent(self) -> float:
        """Seconds until now."""
        return self.clock() - self.start

    def over(self) -> bool:
        """Whether the time is up."""
        return self.spent() >= self.seconds


class WallClock:
    """The time of this process. Flushes no cache. By its alarm another process knows when to end this one."""

    def __init__(self) -> None:
        self.alarm: Alarm = lambda who, seconds: None

    @contextmanager
    def turn(self, who: str, seconds: float) -> Iterator[None]:
        """Give an entrant so much time. An error that leaves it is still the entrant's."""
        self.alarm(who, seconds)
        yield
        self.alarm("", seconds)

    def wait(self) -> None:
        """Return when the device has done all its work."""

    def allocations(self) -> int:
        """How often memory was asked of the device so far."""
        return 0

    def captured(self, work: Callable[[], object]) -> Callable[[], object]:
        """A function that does the work again at the least cost to the host."""
        return work

    def sample(self, task: Task, host: float) -> float:
        """Time one run. `host` is how long the host takes to launch it."""
        state = task.prepare()
        if task.warm:
            task.run(state)
        start = time.perf_counter()
        task.run(state)
        return time.perf_counter() - start


class CudaClock(WallClock):
    """Events of the current CUDA device.

    Before each sample a buffer of several times the L2 cache is written. That flushes the cache, and goes on
    until the host has launched the work behind it: what is timed is the device, never the host.
    """

    def __init__(self) -> None:
        super().__init__()
        cache = torch.cuda.get_device_properties().L2_cache_size
        self.buffer = torch.empty(max(4 * cache, 2**28), dtype=torch.int8, device="cuda")
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush_seconds = 0.0
        write = Task(lambda _: self.buffer.zero_())
        self.flush_seconds = min(self.sample(write, host=0.0) for _ in range(5))

    def wait(self) -> None:
        """Return when the device has done all its work."""
        torch.cuda.synchronize()

    def allocations(self) -> int:
        """How often memory was asked of the device so far."""
        return int(torch.cuda.memory_stats().get("num_device_alloc", 0))

    def captured(self, work: Callable[[], object]) -> Callable[[], object]:
        """Capture the work in a CUDA graph and return what replays it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what happens at a first call must not happen in the graph
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def sample(self, task: Task, host: float) -> float:
        """Time one run between two events."""
        state = task.prepare()
        ahead = min(AHEAD * host, MOST_AHEAD)
        writes = math.ceil(ahead / self.flush_seconds) if self.flush_seconds else 1
        for _ in range(max(writes, 1)):
            self.buffer.zero_()
        if task.warm:
            task.run(state)
        self.start.record()
        task.run(state)
        self.end.record()
        self.end.synchronize()
        return float(self.start.elapsed_time(self.end)) / 1e3


@dataclass(frozen=True)
class Limits:
    """How often a race measures.

    Attributes:
        repeats: samples of each entrant.
        least: samples of each entrant where `repeats` would take longer than `seconds`.
        seconds: of a race, after first calls.
        slowest: seconds that `least` samples of one entrant may take; a slower one is left out.
        turn: seconds that one entrant may take at a time, compiling included; then its process is ended.
    """

    repeats: int = 30
    least: int = 10
    seconds: float = 6.0
    slowest: float = 20.0
    turn: float = 60.0


@dataclass(frozen=True)
class Timing:
    """What was measured of one entrant.

    Attributes:
        seconds: of a run.
        repeats: number of samples.
        first: seconds of the first call, which compiles.
        grew: samples during which memory was asked of the device, which takes time.
    """

    seconds: Spread
    repeats: int
    first: float
    grew: int


@dataclass(frozen=True)
class Race:
    """What came of a race: timings and failures by name, and each entrant's time over the reference's.

    Ratios are taken round by round, see `benchmarks.results.ratio`.
    """

    timings: dict[str, Timing]
    over: dict[str, Spread]
    failures: dict[str, str]


@dataclass
class _Runner:
    """An entrant on its way: seconds of the first call, of its launch by the host, of a sample in all."""

    task: Task
    first: float
    host: float
    cost: float
    grew: int = 0


def race(tasks: Mapping[str, Task], clock: WallClock, limits: Limits, reference: str = "") -> Race:
    """Time tasks in rounds: each once a round, another one first in each. What fails is left out."""
    runners: dict[str, _Runner] = {}
    failures: dict[str, str] = {}
    for name, task in tasks.items():
        with clock.turn(name, limits.turn):
            runner = attempt(clock, _warm_up, task, clock, limits)
        if isinstance(runner, Failure):
            failures[name] = runner.why
        else:
            runners[name] = runner
    samples: dict[str, list[float]] = {name: [] for name in runners}
    with no_compiling(), _collecting_by_hand():
        for number in range(_repeats(runners, limits)):
            gc.collect(1)  # the young: what the last round left
            for name in _rotated([name for name in runners if name not in failures], number):
                with clock.turn(name, limits.turn):
                    taken = attempt(clock, _sample, runners[name], clock)
                if isinstance(taken, Failure):
                    failures[name] = taken.why
                else:
                    samples[name].append(taken)
    return _result(runners, samples, failures, reference)


def _result(
    runners: dict[str, _Runner], samples: dict[str, list[float]], failures: dict[str, str], reference: str
) -> Race:
    finished = {name: taken for name, taken in samples.items() if name not in failures}
    timings = {
        name: Timing(Spread.of(taken), len(taken), runners[name].first, runners[name].grew)
        for name, taken in finished.items()
    }
    ours = finished.get(reference)
    over = {name: ratio(taken, ours) for name, taken in finished.items()} if ours else {}
    return Race(timings, over, failures)


def _warm_up(task: Task, clock: WallClock, limits: Limits) -> _Runner:
    """Compile, and measure roughly what a sample takes.

    Raises:
        TimeoutError: it takes too long.
    """
    start = time.perf_counter()
    task.run(task.prepare())
    clock.wait()
    first = time.perf_counter() - start
    state = task.prepare()
    clock.wait()
    start = time.perf_counter()
    task.run(state)
    host = time.perf_counter() - start
    clock.wait()
    seconds = time.perf_counter() - start
    if seconds * limits.least > limits.slowest:
        raise TimeoutError(f"a run takes {seconds:.1f} s, which is too long to be repeated")
    del state
    start = time.perf_counter()
    clock.sample(task, host)
    return _Runner(task, first, host, time.perf_counter() - start)


def _sample(runner: _Runner, clock: WallClock) -> float:
    before = clock.allocations()
    seconds = clock.sample(runner.task, runner.host)
    runner.grew += clock.allocations() > before
    return seconds


def _repeats(runners: dict[str, _Runner], limits: Limits) -> int:
    cost = sum(runner.cost for runner in runners.values())
    affordable = int(limits.seconds / cost) if cost else limits.repeats
    return max(limits.least, min(limits.repeats, affordable))


def _rotated(names: list[str], number: int) -> list[str]:
    first = number % max(len(names), 1)
    return names[first:] + names[:first]


@contextmanager
def _collecting_by_hand() -> Iterator[None]:
    """Keep the garbage collector out of samples."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def attempt(clock: WallClock, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Failure:
    """Call a function, and make what it raises a `Failure`.

    Raises:
        DeviceLost: after it, the device does not answer.
    """
    try:
        return function(*args, **kwargs)
    except torch.OutOfMemoryError:
        why = "out of memory"
    except Exception as error:  # peers are code of others: whatever they raise is a result
        why = message(error)
    release()
    try:
        clock.wait()
    except RuntimeError:  # a late word of what failed; a device that is lost says it again
        try:
            clock.wait()
        except RuntimeError as error:
            raise DeviceLost(f"{why}; then {message(error)}") from error
    return Failure(why)


def message(error: Exception) -> str:
    """The type and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def release() -> None:
    """Give unused memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
