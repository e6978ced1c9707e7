"""The report that a user gets: its data, with the ways to draw it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mhf_compile.report.data import Outcome
from mhf_compile.report.page import page
from mhf_compile.report.text import text


@dataclass(frozen=True)
class Report(Outcome):
    """What happened to one graph, or with ``explain`` to a model. ``str(report)`` is a table.

    Attributes:
        rewrites: what runs as one fused call, in the order of the program.
        misses: feed-forwards that were left alone, each by an activation in it.
        notes: what else explains the result, such as that DistributedDataParallel split the graph.
        modules: (path, class) of each module of an explained model, in its order; else empty.
        others: activations that are in no feed-forward: not between two products with weights.
    """

    def __str__(self) -> str:
        return text(self)

    def text(self, equations: bool = False, others: bool = False) -> str:
        """The report for a terminal: what differs in nothing but its module has one line.

        Args:
            equations: whether to show what was read, in index notation.
            others: whether to show activations that are in no feed-forward.
        """
        return text(self, equations, others)

    def save(self, path: str | Path) -> None:
        """Write the report as an HTML page that needs no other file and no network."""
        Path(path).write_text(page(self), encoding="utf-8")

    def to_json(self) -> str:
        """The report as a JSON object.

        ``rewrites``, ``misses`` and ``others`` are lists of objects with the attributes of :class:`Rewrite`
        and, the two others, :class:`Miss`; ``notes`` a list of strings, ``modules`` of pairs [path, class].
        A rewrite has its ``equation`` as text, and in parts as ``notation`` (null where there is none):

        - an equation is {result: entry, terms: [term], phi: "gate * tanh(gate)"}, a sum; the function phi in
          it is that of gate and up, its first argument and its second ("" where there is none);
        - a term {coefficient: "1/2", summed: [axis], factors: [entry or function]}, a product that is summed
          over axes;
        - a function {name: "silu", arguments: [[term]]}, of sums, with the name "" one sum itself;
        - an entry {tensor: "mlp.keys", index: [position]};
        - a position {digits: [[stride, axis]], offset}, along one dimension: offset + sum of stride * axis;
        - an axis {role: "t", number}, where number counts from 1 the axes of a role that has several, else 0.

        A stride, an offset, a size or a number of bytes that is symbolic is a string.
        """
        content = asdict(self)
        for rewrite, shown in zip(self.rewrites, content["rewrites"], strict=True):
            shown["equation"] = rewrite.equation
        return json.dumps(content, indent=1, default=str)  # a coefficient is a Fraction
