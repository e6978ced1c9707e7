"""What a module computes, as far as feed-forwards are concerned: run it once and follow values from op to op.

A *source* is the result of a product with a weight, or a proper part of one. A module is a feed-forward if
what an activation makes of a source is contracted again, and gated if it is multiplied with another source
before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import count
from operator import or_

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CONTRACTIONS = {"mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "dot", "mv", "_grouped_mm"}
ACTIVATIONS = {
    *("silu", "gelu", "relu", "sigmoid", "tanh", "mish", "leaky_relu", "elu", "softplus"),
    *("hardswish", "hardsigmoid", "hardtanh", "erf", "glu", "_prelu_kernel"),
}
OWN = {"sigmoid": "quick_gelu", "tanh": "gelu_tanh", "erf": "gelu"}
"""What an activation times its own argument is."""
CLAMPS = {"clamp", "clamp_min", "clamp_max", "minimum", "maximum"}
NORMS = {
    *("mean", "var_mean", "rsqrt", "linalg_vector_norm"),
    *("native_layer_norm", "native_group_norm", "_fused_rms_norm"),
}
ROUTING = {
    *("index", "index_select", "gather", "nonzero", "_grouped_mm"),
    *("index_add", "index_put", "scatter", "scatter_add"),
}
INPUT = 0


@dataclass(frozen=True)
class Fact:
    """How a value came to be, since the last product with a weight."""

    sources: frozenset[int]
    activation: frozenset[str] = frozenset()
    gated: bool = False
    marks: frozenset[str] = frozenset()

    def __or__(self, other: Fact) -> Fact:
        return Fact(
            self.sources | other.sources,
            self.activation | other.activation,
            self.gated or other.gated,
            self.marks | other.marks,
        )


@dataclass
class Computed(TorchDispatchMode):
    """Follows the values of one run. ``text`` says what ran, with the numbers of values for their names."""

    facts: dict[int, Fact] = field(default_factory=dict)
    names: dict[int, int] = field(default_factory=dict)
    alive: list[object] = field(default_factory=list)
    fresh: Iterator[int] = field(default_factory=lambda: count(1))
    contracted: list[Fact] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    routed: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def feed_forward(self) -> Fact | None:
        """What was activated and contracted: gated, if something was."""
        found = [fact for fact in self.contracted if fact.activation or fact.gated]
        return next((fact for fact in found if fact.gated), found[0] if found else None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        made = [value for value in tree_iter(result) if isinstance(value, Tensor)]
        self.alive += [*given, *made]
        self._write(name, args, kwargs or {}, made)
        self.routed |= name in ROUTING
        facts = [self.facts[id(value)] for value in given if id(value) in self.facts]
        if facts:
            for value in made:
                self.facts[id(value)] = self._follow(name, kwargs or {}, given, facts, value)
        return result

    def _follow(
        self, name: str, kwargs: dict[str, object], given: list[Tensor], facts: list[Fact], made: Tensor
    ) -> Fact:
        if name in CONTRACTIONS:
            self.contracted += facts
            return Fact(frozenset({next(self.fresh)}))
        fact = _product(*facts) if name == "mul" and len(facts) == 2 else reduce(or_, facts)
        if INPUT in fact.sources:
            return fact
        if name in ACTIVATIONS:
            label = "gelu_tanh" if kwargs.get("approximate") == "tanh" else name
            return replace(fact, activation=fact.activation | {label}, gated=fact.gated or name == "glu")
        if name in ("pow", "square") and fact.activation == {"relu"}:
            return replace(fact, activation=frozenset({"relu2"}))
        if name in CLAMPS:
            return replace(fact, marks=fact.marks | {"clamp"})
        if name in NORMS and fact.activation:
            return replace(fact, marks=fact.marks | {"norm"})
        if name == "native_dropout":
            return replace(fact, marks=fact.marks | {"dropout"})
        if len(given) == 1 and made.numel() < given[0].numel():  # a chunk
            return replace(fact, sources=frozenset({next(self.fresh)}))
        return fact

    def _write(self, name: str, args: object, kwargs: object, made: list[Tensor]) -> None:
        def show(value: object) -> str:
            if isinstance(value, Tensor):
                return f"%{self.names.setdefault(id(value), len(self.names))}"
            return str(value)

        values = " ".join(show(value) for value in tree_iter((args, kwargs)))
        results = " ".join(f"{show(value)}:{tuple(value.shape)}" for value in made)
        self.text.append(f"{results} = {name} {values}")


def _product(a: Fact, b: Fact) -> Fact:
    both = a | b
    if INPUT in both.sources:
        return both
    if a.sources == b.sources:  # such as x * sigmoid(x)
        return replace(both, activation=frozenset(OWN.get(name, name) for name in both.activation))
    alone = not (a.sources & b.sources) and (not a.activation or not b.activation)
    return replace(both, gated=both.gated or alone)


def computed(module: nn.Module, given: dict[str, Tensor | int]) -> Computed:
    """Follow one run of a module on some arguments; the first tensor is its input."""
    first = next(value for value in given.values() if isinstance(value, Tensor))
    run = Computed()
    run.facts[id(first)] = Fact(frozenset({INPUT}))
    run.names.update({id(p): number for number, p in enumerate(module.parameters())})
    with torch.no_grad(), run:
        module(**given)
    return run
