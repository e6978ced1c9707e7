"""What a report holds: names, numbers and sentences, drawn as text, as a page and as JSON by others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mhf_compile.report.equation import Equation


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
        notation: what was read, in index notation.
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
    notation: Equation | None = field(default=None, repr=False)

    @property
    def equation(self) -> str:
        """What was read, as text."""
        return str(self.notation or "")


@dataclass(frozen=True)
class Miss:
    """An activation that was left alone, the reason, and what to change ("" where there is nothing)."""

    pattern: str
    module: str
    source: str
    reason: str
    advice: str = ""


@dataclass(frozen=True)
class Outcome:
    """What happened to one graph, or with ``explain`` to a model.

    Attributes:
        rewrites: what runs as one fused call, in the order of the program.
        misses: feed-forwards that were left alone, each by an activation in it.
        notes: what else explains the result, such as that DistributedDataParallel split the graph.
        modules: (path, class) of each module of an explained model, in its order; else empty.
        others: activations that are in no feed-forward: not between two products with weights.
    """

    rewrites: tuple[Rewrite, ...] = ()
    misses: tuple[Miss, ...] = ()
    notes: tuple[str, ...] = ()
    modules: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    others: tuple[Miss, ...] = field(default=(), repr=False)

    @property
    def total(self) -> int:
        """How many feed-forwards it tells of."""
        return len(self.rewrites) + len(self.misses)

    @property
    def grouped_rewrites(self) -> list[tuple[Rewrite, list[str]]]:
        """The first of each that differ in no more than module and equation; and all their modules."""
        return _grouped(self.rewrites, [replace(r, module="", notation=None) for r in self.rewrites])

    @property
    def grouped_misses(self) -> list[tuple[Miss, list[str]]]:
        """The first of each that differ in nothing but their module; and all their modules."""
        return _grouped(self.misses, [replace(miss, module="") for miss in self.misses])

    @property
    def grouped_others(self) -> list[tuple[Miss, list[str]]]:
        """The same of the others."""
        return _grouped(self.others, [replace(other, module="") for other in self.others])


Result = TypeVar("Result", Rewrite, Miss)


def _grouped(results: Sequence[Result], keys: Sequence[Result]) -> list[tuple[Result, list[str]]]:
    groups: dict[Result, tuple[Result, list[str]]] = {}
    for result, key in zip(results, keys, strict=True):
        groups.setdefault(key, (result, []))[1].append(result.module)
    return list(groups.values())
