"""What the GPU benchmark finds out, as data that goes to JSON, and as tables."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.gpu.peers import EAGER, OURS
from benchmarks.gpu.protocol import Shape
from benchmarks.gpu.timing import Race
from benchmarks.results import Requirement, number_table


@dataclass(frozen=True)
class Speed:
    """The times of one part ("forward", "backward" or "step", the two in one) of all entrants at a shape."""

    level: str
    size: str
    head_dim: int
    tokens: int
    part: str
    flop: float
    race: Race

    @classmethod
    def of(cls, shape: Shape, part: str, race: Race) -> "Speed":
        """The times at `shape`."""
        model = shape.model
        return cls(shape.level, shape.size, model.head_dim, shape.tokens, part, shape.flop(part), race)

    def tflops(self, name: str) -> float:
        """The rate of an entrant in TFLOP/s, 0 where it failed."""
        timing = self.race.timings.get(name)
        return self.flop / timing.seconds.median / 1e12 if timing else 0.0

    def __str__(self) -> str:
        columns = ["median", "p20", "p80", "TFLOP/s", "it / ours", "first, s"]
        rows = {}
        for name, timing in self.race.timings.items():
            spread = timing.seconds
            over = self.race.over.get(name)
            rows[name] = [
                *(1e3 * seconds for seconds in (spread.median, spread.p20, spread.p80)),
                self.tflops(name),
                over.median if over else math.nan,
                timing.first,
            ]
        title = f"{self.level} {self.size}, N {self.tokens}, {self.part}, ms"
        return "\n".join([number_table(title, columns, rows, digits=3), *failures(self.race.failures)])


@dataclass(frozen=True)
class Memory:
    """Peak memory of a training step in bytes over what stood before, by entrant.

    Attributes:
        peaks: None where it cannot be read.
        results: how much of it are the output and the gradients.
    """

    level: str
    size: str
    head_dim: int
    tokens: int
    peaks: dict[str, int | None]
    results: dict[str, int]
    failures: dict[str, str]

    def __str__(self) -> str:
        rows = {
            name: [peak / 2**20, self.results[name] / 2**20]
            for name, peak in self.peaks.items()
            if peak is not None
        }
        title = f"{self.level} {self.size}, N {self.tokens}, peak, MiB"
        table = number_table(title, ["peak", "results"], rows, digits=1)
        return "\n".join([table, *failures(self.failures)])


@dataclass(frozen=True)
class Decode:
    """Times of one call at few tokens.

    Attributes:
        weights: bytes of k, u and v.
        moved: bytes that a call reads and writes at least.
        layers: number of layers whose weights a cold call goes through in turn.
        cached: bytes of the cache.
        captured: the entrants whose calls were replayed as a CUDA graph.
        cold: with weights that are not in the cache.
        warm: with the weights of the call before.
    """

    size: str
    head_dim: int
    tokens: int
    weights: int
    moved: int
    layers: int
    cached: int
    captured: list[str]
    cold: Race
    warm: Race

    def bandwidth(self, name: str) -> float:
        """Bytes a second of an entrant's cold call, 0 where it failed."""
        timing = self.cold.timings.get(name)
        return self.moved / timing.seconds.median if timing else 0.0

    def __str__(self) -> str:
        rows = {}
        for name, timing in self.cold.timings.items():
            warm = self.warm.timings.get(name)
            spread = timing.seconds
            micro = [1e6 * seconds for seconds in (spread.median, spread.p20, spread.p80)]
            rows[name] = [*micro, 1e6 * warm.seconds.median if warm else math.nan, self.bandwidth(name) / 1e9]
        title = f"decode {self.size}, N {self.tokens}, us"
        table = number_table(title, ["cold", "p20", "p80", "warm", "cold GB/s"], rows, digits=2)
        return "\n".join([table, *failures({**self.warm.failures, **self.cold.failures})])


@dataclass(frozen=True)
class Errors:
    """Relative errors against float64 of output and gradients, in the Frobenius norm, by implementation.

    Attributes:
        gradient: of the output: "normal", or "sum", that of `out.sum()`, whose strides are 0.
        errors: by implementation and tensor.
        floor: what rounding alone may do, see `benchmarks.gpu.errors`.
        bit_equal: whether two runs of ours gave the same bits.
    """

    size: str
    head_dim: int
    tokens: int
    dtype: str
    gradient: str
    errors: dict[str, dict[str, float]]
    floor: float
    bit_equal: bool
    failures: dict[str, str]

    @property
    def over_allowed(self) -> float:
        """The largest of our errors over what the law allows: twice eager's own, and what rounding does."""
        if OURS not in self.errors or EAGER not in self.errors:
            return math.inf
        eager = self.errors[EAGER]
        return worst([e / (2 * eager[name] + self.floor) for name, e in self.errors[OURS].items()])

    def __str__(self) -> str:
        rows = {
            name: [1e6 * error for error in by_tensor.values()] for name, by_tensor in self.errors.items()
        }
        if OURS in self.errors and EAGER in self.errors:
            pairs = zip(self.errors[OURS].values(), self.errors[EAGER].values(), strict=True)
            rows[f"{OURS} / {EAGER}"] = [ours / eager if eager else math.inf for ours, eager in pairs]
        title = f"{self.size} {self.dtype}, N {self.tokens}, {self.gradient}, 1e-6"
        columns = list(next(iter(self.errors.values()), {}))
        table = number_table(title, columns, rows, digits=2)
        equal = "two runs bit-equal" if self.bit_equal else "two runs DIFFER"
        allowed = f"at most {self.over_allowed:.2f} of the error allowed; {equal}"
        return "\n".join([table, allowed, *failures(self.failures)])


Result = Speed | Memory | Decode | Errors


@dataclass
class Results:
    """All that a run finds out; the fields are the keys of the JSON.

    Attributes:
        left_out: what the time did not suffice for.
        failed: what could not be measured at all, with the reason.
    """

    machine: dict[str, object]
    settings: dict[str, object]
    speeds: list[Speed] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    decodes: list[Decode] = field(default_factory=list)
    errors: list[Errors] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    requirements: list[Requirement] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, result: Result) -> None:
        """Put a result where it belongs."""
        match result:
            case Speed():
                self.speeds.append(result)
            case Memory():
                self.memories.append(result)
            case Decode():
                self.decodes.append(result)
            case Errors():
                self.errors.append(result)

    def write(self, file: Path) -> None:
        """Write all of it as JSON; an interrupted run leaves the file before it whole."""
        part = file.with_name(file.name + ".part")
        part.write_text(json.dumps(asdict(self), indent=1, default=str) + "\n")
        part.replace(file)


def failures(found: dict[str, str]) -> list[str]:
    """A line for each failure."""
    return [f"{name}: {why}" for name, why in found.items()]


def worst(values: Sequence[float]) -> float:
    """The largest; NaN is larger than all."""
    return max(values, key=lambda value: (math.isnan(value), value))
