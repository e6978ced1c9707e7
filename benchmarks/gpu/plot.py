"""`python -m benchmarks.gpu.plot gpu.json --out DIR`: pictures of what `python -m benchmarks.gpu` found out.

Several files of one GPU, of which each has a part of the shapes, go into one set of pictures. Whatever a run
did not get to is not drawn. Needs matplotlib, which `pip install -e '.[bench]'` brings.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.gpu.panels import Panel, Point, Row, beside, draw, short

Json = Mapping[str, Any]

WIDEST = 52  # letters of a line about a failure
SHAPE = ("level", "size", "tokens", "part", "dtype", "gradient")  # what tells results of a kind apart
TENSORS = {"out": "out", "dq": "dQ", "dk": "dK", "du": "dU", "dv": "dV", "dr": "dR"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw all pictures that the data suffice for, and print their paths."""
    options = parser().parse_args(arguments)
    try:
        data = joined([json.loads(file.read_text()) for file in options.json])
    except ValueError as error:
        parser().error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        figure = picture(data)
        if figure is not None:
            file = options.out / f"{name}.png"
            figure.savefig(file, dpi=150)
            print(file)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.plot", description="Draw a GPU run as PNGs."
    )
    parser.add_argument(
        "json", type=Path, nargs="+", help="what python -m benchmarks.gpu wrote; several of one GPU"
    )
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where PNGs go; here")
    return parser


def joined(runs: Sequence[Json]) -> Json:
    """The results of several runs, on the machine of the first.

    Raises:
        ValueError: they are of several GPUs, or the same was measured twice.
    """
    places = {place(run) for run in runs}
    if len(places) > 1:
        raise ValueError(f"results of several machines: {', '.join(sorted(places))}")
    found: dict[str, Any] = {"machine": machine(runs[0])}
    for name in ("speeds", "memories", "decodes", "errors"):
        found[name] = [one for run in runs for one in run.get(name) or []]
        shapes = [tuple(one.get(field) for field in SHAPE) for one in found[name]]
        if twice := {shape for shape in shapes if shapes.count(shape) > 1}:
            raise ValueError(f"measured more than once: {name} of {sorted(map(str, twice))[0]}")
    return found


def throughput(data: Json) -> Figure | None:
    """TFLOP/s of the operator against tokens, a panel for each size, under what cuBLAS reaches."""
    cublas = machine(data).get("tflops")
    rows = [
        Row(
            f"{part}, TFLOP/s",
            speed_panels(data, ("op",), part, tflops),
            ceiling=line(cublas, "cuBLAS 8192³"),
        )
        for part in ("forward", "backward")
    ]
    return draw(rows, f"Operator; backward counted as 8 products of the size of Q K; {place(data)}")


def layers(data: Json) -> Figure | None:
    """Time a token of whole layers of equal parameters, and of a dense feed-forward, against tokens."""
    rows = [
        Row(f"{title}, µs a token", speed_panels(data, ("layer", "dense"), part, token_microseconds))
        for part, title in (("forward", "forward"), ("step", "training step"))
    ]
    return draw(rows, f"Layers of equal parameters, and a dense feed-forward; {place(data)}")


def memory(data: Json) -> Figure | None:
    """Peak memory of a training step against tokens, of the operator and of layers."""
    rows = []
    for level, title in (("op", "operator"), ("layer", "layer")):
        found = [one for one in data.get("memories") or [] if one.get("level") == level]
        panels = [
            Panel(head(size, group), peak_points(group), failed(group)) for size, group in by_size(found)
        ]
        rows.append(Row(f"{title}, GiB", panels, logarithmic=True))
    return draw(rows, f"Peak memory of a training step over what stood before; {place(data)}")


def decode(data: Json) -> Figure | None:
    """Time and bandwidth of the operator at a few tokens."""
    copied = machine(data).get("bandwidth")
    times, rates = [], []
    for size, group in by_size(data.get("decodes") or []):
        title = f"{head(size, group)}, {(group[0].get('weights') or 0) / 1e6:.1f} MB"
        times.append(Panel(title, race_points(group, "cold", microseconds), failed(group, "cold")))
        rates.append(Panel(title, race_points(group, "cold", bandwidth)))
    rows = [
        Row("time of a call, µs", times),
        Row("bandwidth, TB/s", rates, ceiling=line(copied and copied / 1e12, "device copy")),
    ]
    return draw(rows, f"Operator at a few tokens, weights not in the cache; {place(data)}")


def errors(data: Json) -> Figure | None:
    """Errors of output and gradients against float64, a point for each number of tokens."""
    groups: dict[str, list[Json]] = {}
    for size, group in by_size(data.get("errors") or []):
        for one in group:
            groups.setdefault(f"{head(size, group)}, {one.get('dtype')}", []).append(one)
    panels = [Panel(title, error_points(group), failed(group)) for title, group in groups.items()]
    rows = [
        Row("relative error", panels[i : i + 4], logarithmic=True, categories=list(TENSORS.values()))
        for i in range(0, len(panels), 4)
    ]
    return draw(rows, f"Error against float64, a point for each N and gradient; {place(data)}")


PICTURES: dict[str, Callable[[Json], Figure | None]] = {
    "throughput": throughput,
    "layers": layers,
    "memory": memory,
    "decode": decode,
    "errors": errors,
}


def machine(data: Json) -> Json:
    """What is known of the machine."""
    return data.get("machine") or {}


def place(data: Json) -> str:
    """The name of the GPU, or of the processor."""
    here = machine(data)
    return str(here.get("gpu") or here.get("processor") or "machine not known")


def line(value: float | None, name: str) -> tuple[float, str] | None:
    """A ceiling, where it is known."""
    return (value, name) if value else None


def tflops(speed: Json, seconds: float) -> float:
    """The rate of a run that took so long."""
    return float(speed["flop"]) / seconds / 1e12


def token_microseconds(speed: Json, seconds: float) -> float:
    """The share of a token."""
    return 1e6 * seconds / float(speed["tokens"])


def microseconds(_: Json, seconds: float) -> float:
    """The time itself."""
    return 1e6 * seconds


def bandwidth(decode: Json, seconds: float) -> float:
    """Terabytes a second of a call that took so long."""
    return float(decode["moved"]) / seconds / 1e12


Measure = Callable[[Json, float], float]


def by_size(found: Iterable[Json]) -> list[tuple[str, list[Json]]]:
    """Results by size, narrow heads first."""
    groups: dict[str, list[Json]] = {}
    for one in found:
        groups.setdefault(str(one.get("size")), []).append(one)
    ordered = sorted(groups.items(), key=lambda item: item[1][0].get("head_dim") or 0)
    return [(size, sorted(group, key=lambda one: one.get("tokens") or 0)) for size, group in ordered]


def head(size: str, group: Sequence[Json]) -> str:
    """The title of a size's panel. Some sizes are named after their head width."""
    width = group[0].get("head_dim")
    if group[0].get("level") == "dense":
        return f"dense, d {width}"
    return f"d_h {width}" if size == f"d{width}" else f"{size}, d_h {width}"


def speed_panels(data: Json, levels: Sequence[str], part: str, measure: Measure) -> list[Panel]:
    """A panel for each size of these levels."""
    found = [
        one for one in data.get("speeds") or [] if one.get("level") in levels and one.get("part") == part
    ]
    return [
        Panel(head(size, group), race_points(group, "race", measure), failed(group, "race"))
        for size, group in by_size(found)
    ]


def race_points(group: Sequence[Json], race: str, measure: Measure) -> list[Point]:
    """A point for each entrant that finished."""
    points = []
    for one in group:
        for name, timing in ((one.get(race) or {}).get("timings") or {}).items():
            y, *ends = (measure(one, timing["seconds"][at]) for at in ("median", "p20", "p80"))
            points.append(Point(name, one["tokens"], y, min(ends), max(ends)))
    return points


def peak_points(group: Sequence[Json]) -> list[Point]:
    """Peaks in GiB."""
    return [
        Point(name, one["tokens"], *[peak / 2**30] * 3)
        for one in group
        for name, peak in (one.get("peaks") or {}).items()
        if peak
    ]


def error_points(group: Sequence[Json]) -> list[Point]:
    """A point for each tensor; x is its place in `TENSORS`."""
    found = [
        Point(name, place, *[error] * 3)
        for one in group
        for name, by_tensor in (one.get("errors") or {}).items()
        for place, tensor in enumerate(TENSORS)
        if (error := by_tensor.get(tensor))
    ]
    return beside(found)


def failed(group: Sequence[Json], race: str | None = None) -> list[str]:
    """A line for each entrant that failed and each reason, with the tokens."""
    where: dict[tuple[str, str], list[str]] = {}
    for one in group:
        holder = (one.get(race) or {}) if race else one
        for name, why in (holder.get("failures") or {}).items():
            where.setdefault((name, why), []).append(short(one.get("tokens") or 0))
    lines = [f"{name}, {' '.join(dict.fromkeys(at))}: {why}" for (name, why), at in where.items()]
    return [line if len(line) <= WIDEST else f"{line[: WIDEST - 1]}…" for line in lines]


if __name__ == "__main__":
    main()
