"""Names and numbers as people read them: many paths as one, bytes as megabytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

Path = tuple[str, ...]
"""The names from the model, or an argument of the program, to what is in it."""

LISTED = 3
"""Paths that are no product of ranges are listed up to this number, else only the first and the last."""


def compact(paths: Iterable[str]) -> str:
    """Dotted paths as one: ``layers.0-6,8-31.ffn``, said so that it stands for those and no others."""
    return ", ".join(".".join(path) for path in condensed(tuple(path.split(".")) for path in paths))


def condensed(paths: Iterable[Path]) -> list[Path]:
    """Paths as few, of ranges of numbers: ``("layers", "0-6,8-31", "ffn")``."""
    families: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(paths):
        families.setdefault(tuple("0" if part.isdecimal() else part for part in path), []).append(path)
    return [path for family in families.values() for path in _ranges_of(family)]


def _ranges_of(family: Sequence[Path]) -> Sequence[Path]:
    """Paths that differ in numbers only."""
    columns = [dict.fromkeys(column) for column in zip(*family, strict=True)]
    if prod(map(len, columns)) == len(family):
        return [tuple(_ranges(list(column)) for column in columns)]
    return family if len(family) <= LISTED else [family[0], ("...",), family[-1]]


def _ranges(parts: Sequence[str]) -> str:
    """Numbers as ranges; a single part as it is."""
    if len(parts) == 1:
        return parts[0]
    runs: list[list[int]] = []
    for number in sorted(map(int, parts)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def shortest(path: Path, others: Iterable[Path]) -> str:
    """The shortest end of a path that is no other's and does not begin with a number."""
    differing = [other for other in others if other != path]
    for length in range(1, len(path)):
        end = path[-length:]
        if not end[0][:1].isdecimal() and all(other[-length:] != end for other in differing):
            return ".".join(end)
    return ".".join(path)


def megabytes(count: int | str) -> str:
    """A number of bytes."""
    if isinstance(count, str):
        return f"{count} bytes"
    return f"{count / 2**10:.1f} KiB" if 0 < count < 2**20 else f"{count / 2**20:.1f} MiB"


def total_megabytes(counts: Iterable[int | str]) -> str:
    """The sum of numbers of bytes, as far as it is known; "" for nothing."""
    counts = list(counts)
    known = sum(count for count in counts if isinstance(count, int))
    symbolic = any(isinstance(count, str) for count in counts)
    return "at least " * symbolic + megabytes(known) if known else ""
