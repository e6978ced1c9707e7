"""Files of sweeps: the time of every tiling that was tried, for each kernel and the sizes it was tried on.

`python -m mhf_compile tune --sweep FILE` writes one, `python -m benchmarks.gpu.sweep FILE` reads it. A file
may leave fields of `Tiles` out, which then have their default, or have null for one: it was not recorded.
In older ones `described` is true or false, one descriptor or none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mhf_compile.kernels.flash_mhf.config import KERNELS, Key, Sizes, Tiles

DEFAULTS = Tiles._field_defaults


class Row(NamedTuple):
    """A tiling that was tried: its fields, the seconds it took, or why it was left out."""

    fields: Mapping[str, int | bool | None]
    seconds: float | None
    why: str = ""

    @classmethod
    def of(cls, tiles: Tiles, seconds: float | None = None, why: str = "") -> "Row":
        """The row of tiles of which everything is known."""
        return cls(tiles._asdict(), seconds, why)

    @property
    def is_known(self) -> bool:
        """Whether the kernels have such tiles: flags are off or on. What is more is a variant."""
        flags = (self.fields[name] for name, default in DEFAULTS.items() if isinstance(default, bool))
        return all(flag in (None, 0, 1) for flag in flags)

    def may_be(self, tiles: Tiles) -> bool:
        """Whether all that was recorded is as in `tiles`."""
        return all(self.fields[name] in (None, value) for name, value in tiles._asdict().items())


@dataclass(frozen=True)
class Problem:
    """What one row of the tables was tried on.

    Attributes:
        key: the row.
        sizes: of the call.
        shipped: the tiles that were used when it was measured; None: the tables did without that kernel.
        rows: all that was tried, in its order.
    """

    key: Key
    sizes: Sizes
    shipped: Tiles | None
    rows: tuple[Row, ...]

    def row_of(self, tiles: Tiles) -> Row | None:
        """The row that was measured of some tiles."""
        return next((row for row in self.rows if row.seconds is not None and row.may_be(tiles)), None)

    def measured(self) -> list[Row]:
        """The rows that the kernels have and that work, the fastest first."""
        found = [(row.seconds, row) for row in self.rows if row.seconds is not None and row.is_known]
        return [row for _, row in sorted(found, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Sweep:
    """A file: where and how it was measured, and all problems."""

    machine: Mapping[str, str]
    method: str
    problems: tuple[Problem, ...]


def write(path: Path, sweep: Sweep) -> None:
    """Write a file, a line for each row.

    Raises:
        OSError: it cannot be written.
    """
    head = {"machine": sweep.machine, "method": sweep.method}
    problems = ",\n".join(map(_problem_text, sweep.problems))
    path.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "problems": [\n{problems}\n ]\n}}\n', "utf-8")


def _problem_text(problem: Problem) -> str:
    kernel, size, columns = problem.key
    sizes = {**problem.sizes._asdict(), "dtype": str(problem.sizes.dtype).removeprefix("torch.")}
    head = {
        "kernel": kernel,
        "bytes": size,
        "columns": columns,
        "sizes": sizes,
        "shipped": None if problem.shipped is None else _short(problem.shipped._asdict()),
    }
    rows = ",\n".join(f"    {json.dumps(_row(row))}" for row in problem.rows)
    return f'  {json.dumps(head)[:-1]}, "rows": [\n{rows}\n  ]}}'


def _row(row: Row) -> dict[str, object]:
    found = _short(row.fields)
    if row.seconds is None:
        return {**found, "why": row.why}
    return {**found, "ms": round(1e3 * row.seconds, 6)}


def _short(fields: Mapping[str, object]) -> dict[str, object]:
    """Without what is as by default."""
    return {name: value for name, value in fields.items() if value is None or value != DEFAULTS.get(name)}


def read(path: Path) -> Sweep:
    """Read a file.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is something else.
    """
    content = json.loads(path.read_text("utf-8"))
    try:
        problems = tuple(_problem(one) for one in content["problems"])
        return Sweep(content["machine"], content["method"], problems)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not a sweep: {type(error).__name__}: {error}") from error


def _problem(content: Mapping[str, Any]) -> Problem:
    kernel, shipped = content["kernel"], content["shipped"]
    if kernel not in KERNELS:
        raise ValueError(f"kernel: found {kernel!r}, want one of {', '.join(KERNELS)}")
    sizes = {**content["sizes"], "dtype": getattr(torch, content["sizes"]["dtype"])}
    return Problem(
        (kernel, content["bytes"], content["columns"]),
        Sizes(**sizes),
        None if shipped is None else Tiles(**_counted(shipped)),
        tuple(map(_read_row, content["rows"])),
    )


def _read_row(content: Mapping[str, Any]) -> Row:
    fields = {name: content[name] if name in content else DEFAULTS[name] for name in Tiles._fields}
    ms = content.get("ms")
    return Row(_counted(fields), None if ms is None else ms / 1e3, content.get("why", ""))


def _counted(fields: Mapping[str, Any]) -> dict[str, Any]:
    """With a number of descriptors, where it says only whether there was one."""
    return {name: int(x) if name == "described" and x is not None else x for name, x in fields.items()}
