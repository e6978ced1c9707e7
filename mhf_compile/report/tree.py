"""The modules of a model as a tree, with repeated layers as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from mhf_compile.report.names import compact


@dataclass(frozen=True)
class Node:
    """A module, or several neighbours that differ in nothing but their number.

    Attributes:
        name: its name in its parent, such as "ffn", "3" or, of several, "0-9"; "" of the root.
        kind: its class.
        results: the rewrites and misses in it and not in a child, as numbers that the caller gave out.
        children: its modules.
        times: how many modules it stands for.
    """

    name: str
    kind: str
    results: tuple[int, ...]
    children: tuple[Node, ...]
    times: int = 1

    @property
    def has_results(self) -> bool:
        """Whether there is a rewrite or a miss in it or below."""
        return bool(self.results) or any(child.has_results for child in self.children)


def tree(modules: Sequence[tuple[str, str]], results: Mapping[str, Sequence[int]]) -> Node:
    """The tree of (path, class) of modules, parents first, with the results of each path."""
    below: dict[str, list[str]] = {}
    kinds = dict(modules)
    for path in kinds:
        if path:
            below.setdefault(path.rpartition(".")[0], []).append(path)

    def node(path: str) -> Node:
        children = _condensed([node(child) for child in below.get(path, ())])
        return Node(path.rpartition(".")[2], kinds[path], tuple(results.get(path, ())), children)

    return node("")


def _condensed(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Neighbours that differ in nothing but a number are one."""

    def without_number(node: Node) -> Node:
        return replace(node, name="") if node.name.isdecimal() else node

    runs = [list(run) for _, run in groupby(nodes, without_number)]
    return tuple(replace(run[0], name=compact(node.name for node in run), times=len(run)) for run in runs)
