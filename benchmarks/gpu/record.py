"""The record of what each kernel takes: benchmarks/results/static.txt, a line for each row of the tables.

A spill of a few bytes may be faster than none, so what ships is not held against zero but against what it
took when it was last looked at. The numbers are those of one version of Triton; of another they cannot be
required.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

RECORD = Path(__file__).parents[1] / "results/static.txt"

HEADING = (
    f"{'arch':<7} {'kernel':<15}bits {'tiles':<37}regs  spill  shared  useful  mufu  matrix instructions\n"
    "tiles: tokens x rows x columns, warps, stages; tma: descriptors, x2 two of an operand; "
    "res, col: q, dR in registers; specialised: warps of several kinds; spill, shared: bytes"
)
WIDTH = 64  # of what names a row


class Taken(NamedTuple):
    """What a kernel takes: registers of a thread, bytes it spills, bytes of shared memory of a program."""

    registers: int
    spilled: int
    shared: int


class Unreadable(ValueError):
    """A record that is not one."""


@dataclass(frozen=True)
class Record:
    """Lines by the name of their row, and the version of Triton that compiled them."""

    triton: str
    lines: Mapping[str, str]

    def taken(self, name: str) -> Taken | None:
        """What a row took; None where it is not recorded."""
        return taken(self.lines[name]) if name in self.lines else None

    def changes(self, line: str) -> list[str]:
        """What is not as recorded, of the line of a row that was compiled by the same version of Triton."""
        before, now = self.taken(name_of(line)), taken(line)
        if before is None:
            return ["is not in the record"]
        names = {"registers": "registers", "spilled": "bytes spilled", "shared": "bytes of shared memory"}
        return [
            f"{getattr(before, field)} {what} are recorded, now {getattr(now, field)}"
            for field, what in names.items()
            if getattr(before, field) != getattr(now, field)
        ]


def name_of(line: str) -> str:
    """What names the row of a line."""
    return line[:WIDTH].rstrip()


def taken(line: str) -> Taken:
    """The numbers of a line.

    Raises:
        Unreadable: it has none.
    """
    numbers = line[WIDTH:].split()[:3]
    if len(numbers) < 3 or not all(number.isdigit() for number in numbers):
        raise Unreadable(f"no registers, spills and shared memory in {line!r}")
    return Taken(*map(int, numbers))


def read(path: Path = RECORD) -> Record:
    """Read a record.

    Raises:
        OSError: there is none.
        Unreadable: it is something else.
    """
    first, *lines = path.read_text("utf-8").splitlines()
    triton, heading = first.removeprefix("triton "), HEADING.splitlines()
    if triton == first or lines[: len(heading)] != heading:
        raise Unreadable(f"{path} does not begin with a version of Triton and the heading")
    rows = lines[len(heading) :]
    for line in rows:
        taken(line)
    return Record(triton, {name_of(line): line for line in rows})


def write(record: Record, names: Iterable[str], path: Path = RECORD) -> None:
    """Write the lines of the rows that have these names, in their order; others are dropped."""
    lines = [record.lines[name] for name in names if name in record.lines]
    path.write_text("\n".join([f"triton {record.triton}", HEADING, *lines, ""]), "utf-8")
