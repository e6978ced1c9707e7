"""What was rewritten, what was not, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import fx

from mhf_compile.notation import Size


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
    """What happened to one graph. ``str(report)`` is a table."""

    rewrites: tuple[Rewrite, ...] = ()
    misses: tuple[Miss, ...] = ()

    def to_json(self) -> str:
        """The report as a JSON object with the lists ``rewrites`` and ``misses``."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        total = len(self.rewrites) + len(self.misses)
        lines = [f"{len(self.rewrites)} of {total} gated feed-forwards rewritten, each to one fused call"]
        if self.rewrites:
            head = ("module", "source", "op", "N", "H", "Hk", "E", "D", "F", "O", "dtype", "proof", "saved")
            rows = [
                (
                    r.module,
                    r.source,
                    r.pattern,
                    r.tokens,
                    r.heads,
                    r.kv_heads,
                    r.subnetworks,
                    r.head_dim,
                    r.width,
                    r.out_dim,
                    r.dtype,
                    r.proof,
                    megabytes(r.saved_bytes),
                )
                for r in self.rewrites
            ]
            lines += table([head, *rows])
        lines += [
            f"not rewritten: {miss.module or '(no module)'} {miss.source}: {miss.reason}"
            for miss in self.misses
        ]
        return "\n".join(lines)


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
    return f"{count / 2**20:.1f} MiB" if isinstance(count, int) else f"{count} bytes"


def plain(size: Size) -> int | str:
    """A size as a number, or the text of a symbolic one."""
    return size if isinstance(size, int) else str(size)


def module_of(node: fx.Node | None) -> str:
    """The path of the module that a node comes from, "" outside of modules."""
    stack = node.meta.get("nn_module_stack") if node is not None else None
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    path = path.removeprefix("L['self']").removeprefix("L['").removeprefix("G['")  # a local, a global
    for old, new in (("._modules['", "."), ("']", ""), ("[", "."), ("]", ""), ("'", "")):
        path = path.replace(old, new)
    return path.strip(".")


def source_of(node: fx.Node | None) -> str:
    """The user's line that a node comes from: "file.py:123"."""
    frames = (
        [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
        if node is not None
        else []
    )
    lines = [frame for frame in frames if frame.startswith("File ")]
    own = [line for line in lines if "/torch/" not in line] or lines
    if not own:
        return ""
    name, number = own[-1].split(", ")[:2]
    path = Path(name[6:-1])
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{number.removeprefix('line ')}"
