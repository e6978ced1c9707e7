"""What was rewritten, what was not, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import wrap
from typing import TypeVar

from mhf_compile.notation import Size
from mhf_compile.report.names import compact, readable, readable_equation

WIDTH = 110
"""Columns of text: sentences and equations do not pass it. A table may, by the source lines at its end."""


@dataclass(frozen=True)
class Rewrite:
    """A computation that runs as one fused call.

    Attributes:
        pattern: the op.
        module: path of the module it was in, "" outside of modules.
        source: "file.py:123", the line of its activation; relative to the working directory if below it.
        tokens: N; here and below, a size that Dynamo keeps symbolic is a string such as "s0*s1".
        heads: H.
        kv_heads: Hk, heads of the weights.
        subnetworks: E.
        head_dim: D.
        width: F, of a sub-network.
        out_dim: O.
        dtype: the dtype it is computed in, such as "bfloat16".
        proof: "exact", "exact, 8 tokens", or "not proved".
        saved_bytes: what autograd would have kept of the activations for the backward and now does not, in
            bytes; 0 without gradients; a string where it depends on a symbolic size.
        equation: what was read, in index notation.
    """

    pattern: str
    module: str
    source: str
    tokens: int | str
    heads: int | str
    kv_heads: int | str
    subnetworks: int | str
    head_dim: int | str
    width: int | str
    out_dim: int | str
    dtype: str
    proof: str
    saved_bytes: int | str
    equation: str = field(default="", repr=False)


@dataclass(frozen=True)
class Miss:
    """An activation that was left alone, the reason, and what to change ("" where there is nothing)."""

    pattern: str
    module: str
    source: str
    reason: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """What happened to one graph, or with ``explain`` to a model. ``str(report)`` is a table.

    Attributes:
        rewrites: what runs as one fused call, in the order of the program.
        misses: activations that were left alone.
        notes: what else explains the result, such as that DistributedDataParallel split the graph.
        modules: (path, class) of each module of an explained model, in its order; else empty.
    """

    rewrites: tuple[Rewrite, ...] = ()
    misses: tuple[Miss, ...] = ()
    notes: tuple[str, ...] = ()
    modules: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def to_json(self) -> str:
        """The report as a JSON object with the lists ``rewrites``, ``misses``, ``notes`` and ``modules``."""
        return json.dumps(asdict(self), indent=1)

    def save(self, path: str | Path) -> None:
        """Write the report as an HTML page that needs no other file and no network."""
        from mhf_compile.report.page import page  # only who wants a page loads it

        Path(path).write_text(page(self), encoding="utf-8")

    def __str__(self) -> str:
        return self.text()

    def text(self, equations: bool = False) -> str:
        """The report for a terminal: what differs in nothing but its module has one line.

        Args:
            equations: whether to show what was read, in index notation.
        """
        lines = [headline(self)]

        def add(text: str) -> None:
            """Add a line, below others, that may be long."""
            lines.extend(wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    "))

        rewrites = grouped_rewrites(self)
        if rewrites:
            lines += table(_telling([_COLUMNS, *(_row(rewrite, modules) for rewrite, modules in rewrites)]))
        if equations:
            for rewrite, modules in rewrites:
                lines.append(f"read: {count(modules) or rewrite.source}")
                add(rewrite.equation)
        for miss, modules in grouped_misses(self):
            lines.append("not rewritten: " + ", ".join(filter(None, (count(modules), miss.source))))
            add(miss.reason)
            add(f"what to change: {miss.advice}" if miss.advice else "")
        for note in self.notes:
            lines += wrap(f"note: {note}", WIDTH, subsequent_indent="    ")
        return "\n".join(lines)


def headline(report: Report) -> str:
    """The result in one sentence."""
    total = len(report.rewrites) + len(report.misses)
    if not total:  # a note says why nothing was looked for
        return "no feed-forward rewritten" if report.notes else "no feed-forward found"
    saved = total_bytes(report.rewrites)
    return f"{len(report.rewrites)} of {total} feed-forwards rewritten, each to one fused call" + (
        f"; {saved} less kept for the backward" if saved else ""
    )


def total_bytes(rewrites: Sequence[Rewrite]) -> str:
    """What rewrites save together, for people; "" for nothing."""
    known = sum(r.saved_bytes for r in rewrites if isinstance(r.saved_bytes, int))
    symbolic = any(isinstance(r.saved_bytes, str) for r in rewrites)
    return "at least " * symbolic * bool(known) + megabytes(known) if known else ""


_COLUMNS = ("module", "N", "H", "Hk", "E", "D", "F", "O", "dtype", "saved", "proof", "op", "source")
_IMPLIED = {"Hk": "H", "O": "D"}
"""Columns that are shown where they differ from another."""


def _row(rewrite: Rewrite, modules: Sequence[str]) -> tuple[object, ...]:
    times = f"{len(modules)} x " if len(modules) > 1 else ""
    return (
        count(modules),
        rewrite.tokens,
        rewrite.heads,
        rewrite.kv_heads,
        rewrite.subnetworks,
        rewrite.head_dim,
        rewrite.width,
        rewrite.out_dim,
        rewrite.dtype,
        times + megabytes(rewrite.saved_bytes),
        rewrite.proof,
        rewrite.pattern,
        rewrite.source,  # last: a long path then moves nothing
    )


def grouped_rewrites(report: Report) -> list[tuple[Rewrite, list[str]]]:
    """The first of each that differ in no more than module and equation, readable; and all their modules."""
    keys = [replace(r, module="", equation="") for r in report.rewrites]
    return [
        (replace(first, equation=readable_equation(first.equation)), modules)
        for first, modules in _grouped(report.rewrites, keys)
    ]


def grouped_misses(report: Report) -> list[tuple[Miss, list[str]]]:
    """The first of each that differ in nothing but their module, readable; and all their modules."""
    said = [replace(m, reason=readable(m.reason), advice=readable(m.advice)) for m in report.misses]
    return _grouped(said, [replace(m, module="") for m in said])


Found = TypeVar("Found", Rewrite, Miss)


def _grouped(found: Sequence[Found], keys: Sequence[Found]) -> list[tuple[Found, list[str]]]:
    groups: dict[Found, tuple[Found, list[str]]] = {}
    for one, key in zip(found, keys, strict=True):
        groups.setdefault(key, (one, []))[1].append(one.module)
    return list(groups.values())


def count(modules: Sequence[str]) -> str:
    """Module paths and how many there are: "layers.0-31.mlp (32 modules)"; "" outside of modules."""
    distinct = len(set(modules))
    if distinct == len(modules):
        return compact(modules) + (f" ({distinct} modules)" if distinct > 1 else "")
    return f"{compact(modules)} ({len(modules)} times)".strip()


def _telling(rows: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
    """Rows without the columns that say nothing; the first row are their heads."""
    columns = {column[0]: column for column in zip(*rows, strict=True) if any(column[1:])}
    for name, like in _IMPLIED.items():
        if columns[name][1:] == columns[like][1:]:
            del columns[name]
    if len(set(columns["op"][1:])) == 1:
        del columns["op"]
    return list(zip(*columns.values(), strict=True))


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows as lines with aligned columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def megabytes(count: int | str) -> str:
    """A number of bytes for people."""
    if isinstance(count, str):
        return f"{count} bytes"
    return f"{count / 2**10:.1f} KiB" if 0 < count < 2**20 else f"{count / 2**20:.1f} MiB"


def plain(size: Size) -> int | str:
    """A size as a number, or the text of a symbolic one."""
    return size if isinstance(size, int) else str(size)
