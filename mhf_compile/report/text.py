"""A report as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from mhf_compile.report.data import Outcome, Rewrite
from mhf_compile.report.names import compact, megabytes, total_megabytes

WIDTH = 110
"""Columns of text: sentences and equations do not pass it. A table may, by the source lines at its end."""


def text(outcome: Outcome, equations: bool = False, others: bool = False) -> str:
    """All of it for a terminal: what differs in nothing but its module has one line.

    Args:
        outcome: what to show.
        equations: whether to show what was read, in index notation.
        others: whether to show activations that are in no feed-forward.
    """
    lines = [headline(outcome)]

    def add(sentence: str) -> None:
        """Add a line, below others, that may be long."""
        lines.extend(wrap(sentence, WIDTH, initial_indent="    ", subsequent_indent="    "))

    rewrites = outcome.grouped_rewrites
    if rewrites:
        lines += table(_informative([_COLUMNS, *(_row(rewrite, modules) for rewrite, modules in rewrites)]))
    if equations:
        for rewrite, modules in rewrites:
            lines.append(f"read: {count(modules) or rewrite.source}")
            add(rewrite.equation)
    told = [("not rewritten", *group) for group in outcome.grouped_misses]
    told += [("no feed-forward", *group) for group in outcome.grouped_others] if others else []
    for heading, miss, modules in told:
        lines.append(f"{heading}: " + ", ".join(filter(None, (count(modules), miss.source))))
        add(miss.reason)
        add(f"what to change: {miss.advice}" if miss.advice else "")
    for note in outcome.notes:
        lines += wrap(f"note: {note}", WIDTH, subsequent_indent="    ")
    return "\n".join(lines)


def headline(outcome: Outcome) -> str:
    """The result in one sentence."""
    if not outcome.total:  # a note says why nothing was looked for
        return "no feed-forward rewritten" if outcome.notes else "no feed-forward found"
    rewritten = f"{len(outcome.rewrites)} of {outcome.total} feed-forwards rewritten, each to one fused call"
    saved = total_megabytes(rewrite.saved_bytes for rewrite in outcome.rewrites)
    return rewritten + (f"; {saved} less kept for the backward" if saved else "")


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


def count(modules: Sequence[str]) -> str:
    """Module paths and how many there are: "layers.0-31.mlp (32 modules)"; "" outside of modules."""
    distinct = len(set(modules))
    if distinct == len(modules):
        return compact(modules) + (f" ({distinct} modules)" if distinct > 1 else "")
    return f"{compact(modules)} ({len(modules)} times)".strip()


def _informative(rows: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
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
