"""Names for people: many module paths as one, and the values of a graph as the user knows them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod

LISTED = 3
"""Paths that are no product of ranges are listed up to this number, else only the first and the last."""


def compact(paths: Iterable[str]) -> str:
    """Dotted paths as one: ``layers.0-6,8-31.ffn``, said so that it stands for those and no others."""
    families: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in dict.fromkeys(paths):
        parts = tuple(path.split("."))
        families.setdefault(tuple("0" if part.isdecimal() else part for part in parts), []).append(parts)
    return ", ".join(_family(members) for members in families.values())


def _family(members: Sequence[tuple[str, ...]]) -> str:
    """Paths that differ in numbers only."""
    columns = [dict.fromkeys(column) for column in zip(*members, strict=True)]
    if prod(map(len, columns)) == len(members):
        return ".".join(_ranges(list(column)) for column in columns)
    listed = [".".join(parts) for parts in members]
    return ", ".join(listed if len(listed) <= LISTED else [listed[0], "...", listed[-1]])


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


# -- values of a graph --------------------------------------------------------------------------------------

_NUMBERED = re.compile(r"_\d+$")
_OPERAND = re.compile(r"stack\((?:[^()]|\([^()]*\))*\)(?=\[)|\b[A-Za-z]\w*(?=\[)")
_MEMBER = re.compile(r"\w+(?=[,)])")
_VALUE = re.compile(r"\b[lg]_\w*[A-Za-z0-9]_\b|(?<![\w./-])[A-Za-z]\w*_\d+\b(?![./:-]\w)")


def readable(reason: str) -> str:
    """A sentence with the names that Dynamo gave to values put back to the user's.

    ``l_self_modules_mlp_parameters_keys_`` is ``mlp.keys``, the ``hidden_3`` of a fourth layer ``hidden``.
    """
    return _VALUE.sub(lambda found: ".".join(path_of(found[0])), reason)


def readable_equation(equation: str) -> str:
    """An equation with the user's names for its values: the shortest ends of their paths that differ.

    Values of one name are numbered anew, from the left.
    """
    operands = list(dict.fromkeys(_OPERAND.findall(equation)))
    paths = {operand: path_of(operand) for operand in operands}
    names = {operand: _shortest(paths[operand], list(paths.values())) for operand in operands}
    shared = Counter(names.values())
    count: Counter[str] = Counter()
    for operand, name in names.items():
        if shared[name] > 1:
            count[name] += 1
            names[operand] = f"{name}_{count[name]}"
    return _OPERAND.sub(lambda found: names[found[0]], equation).replace(", ", ",")


def path_of(value: str) -> tuple[str, ...]:
    """The path in the program of a value of Dynamo's graph, or of a stack of them."""
    if value.startswith("stack("):
        stacked = compact(".".join(path_of(member)) for member in _MEMBER.findall(value))
        return (f"stack({stacked})",) if ", " in stacked else tuple(stacked.split("."))
    if not value.startswith(("l_", "g_")):  # a local or a global; else Dynamo's own name
        return (_NUMBERED.sub("", value),)  # the same line in another layer
    parts = re.split(r"_(?:modules|parameters|buffers)_", value[2:].removesuffix("_"))
    return tuple(parts[1:] or [parts[0].removeprefix("self_")])  # without the name of the model


def _shortest(path: tuple[str, ...], all_paths: Sequence[tuple[str, ...]]) -> str:
    """The shortest end of a path that is no other's and does not begin with a number."""
    for length in range(1, len(path)):
        end = path[-length:]
        if not end[0][0].isdecimal() and sum(other[-length:] == end for other in all_paths) == 1:
            return ".".join(end)
    return ".".join(path)
