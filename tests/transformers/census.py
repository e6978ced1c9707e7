"""A census of the feed-forward classes of transformers: which of them run as fused calls.

    python -m tests.transformers.census [part of a class's name]

A candidate is a module class of a modeling file whose name says feed-forward and which contains no other such
class. Whether it is one, gated, and of which activation is found by running it (computes.py). Classes of the
same source and the same trace are one group, of which one is compiled.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel

import mhf_compile
from mhf_compile.report import Report
from mhf_compile.report.text import table
from tests.transformers.build import NotBuilt, running
from tests.transformers.computes import Computed, computed

OPTIONS = {"flashmhf.dense": "always", "flashmhf.inner": "eager", "flashmhf.strict": True}
NAME = re.compile(
    r"MLP|Mlp|FeedForward|FFN|Ffn|GLU|Glu(?!e)|Experts?\b|Dense(Gated)?Act|Feedforward|PatchMerger"
)
ACTIVATION = re.compile(r"act_?fn|activation|silu|gelu|relu|sigmoid", re.IGNORECASE)
ACTIVATIONS = {"silu", "gelu", "gelu_tanh", "relu"}
"""The activations by which a class counts for the share."""
ROUNDING = torch.finfo(torch.float32).eps / 2
"""The relative error of a result that is exact but for being stored in fp32."""


@dataclass(frozen=True)
class Specimen:
    """A class, and an instance of it with arguments, or why there is none."""

    cls: type[nn.Module]
    module: nn.Module | None = None
    given: dict[str, Tensor | int] = field(default_factory=dict)
    run: Computed | None = None
    failure: str = ""

    @property
    def model(self) -> str:
        return self.cls.__module__.split(".")[2]

    @property
    def gated(self) -> bool:
        return self.run is not None and self.run.feed_forward is not None and self.run.feed_forward.gated

    @property
    def activation(self) -> str:
        found = self.run.feed_forward if self.run is not None else None
        return "" if found is None else "+".join(sorted(found.activation)) or "none"

    @property
    def excuse(self) -> str:
        """What no fused call is for."""
        found = self.run.feed_forward if self.run is not None else None
        if found is None or self.run is None:
            return ""
        return ", ".join(sorted(found.marks | ({"routing by index"} if self.run.routed else set())))

    @property
    def counts(self) -> bool:
        """Whether the share is of this one."""
        return self.gated and not self.excuse and self.activation in ACTIVATIONS


@dataclass(frozen=True)
class Outcome:
    """What compiling a specimen gave: the report, and the errors where they are beyond the law."""

    verdict: str
    reason: str = ""
    rewrites: int = 0


@dataclass(frozen=True)
class Row:
    """Specimens of the same code, of which the first was compiled."""

    specimens: tuple[Specimen, ...]
    outcome: Outcome

    @property
    def name(self) -> str:
        return self.specimens[0].cls.__name__


def classes() -> Iterator[type[nn.Module]]:
    """The candidates of all modeling files that can be imported."""
    transformers.logging.set_verbosity_error()
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        name = f"transformers.models.{path.parent.name}.{path.stem}"
        try:
            module = import_module(name)
        except ImportError as error:  # needs what is not installed
            print(f"not imported: {name}: {error}", file=sys.stderr)
            continue
        for value in list(vars(module).values()):
            own = inspect.isclass(value) and value.__module__ == name and issubclass(value, nn.Module)
            if own and NAME.search(value.__name__) and not issubclass(value, PreTrainedModel):
                yield value


def specimens(part: str = "") -> list[Specimen]:
    """All feed-forwards among the candidates, and the candidates of which there is no running instance."""
    found = []
    for cls in classes():
        if part not in cls.__name__:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                module, given = running(cls)
                run = computed(module, given)
        except NotBuilt as error:
            if ACTIVATION.search(source(cls)):
                found.append(Specimen(cls, failure=str(error)))
            continue
        inner = any(NAME.search(type(m).__name__) for m in module.modules() if m is not module)
        if run.feed_forward is not None and not inner:
            found.append(Specimen(cls, module, given, run))
    return found


def code(specimen: Specimen) -> tuple[str, ...]:
    """The source of a specimen and of what it is made of, without names, and what ran."""
    assert specimen.module is not None and specimen.run is not None
    kinds = dict.fromkeys(
        kind
        for module in specimen.module.modules()
        for kind in type(module).__mro__
        if kind.__module__.startswith("transformers")
    )
    sources = "\n".join(source(kind) for kind in kinds)
    for number, kind in enumerate(kinds):
        sources = re.sub(rf"\b{kind.__name__}\b", f"Class{number}", sources)
    return sources, *specimen.run.text


@cache
def source(cls: type) -> str:
    """The source of a class without annotations and docstrings."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def groups(found: Sequence[Specimen]) -> list[tuple[Specimen, ...]]:
    """Specimens of the same code together, in order; those that were not built are alone."""
    same: dict[object, list[Specimen]] = {}
    for specimen in found:
        same.setdefault(specimen.cls if specimen.module is None else code(specimen), []).append(specimen)
    return [tuple(group) for group in same.values()]


def results(program: nn.Module, given: dict[str, Tensor | int]) -> list[Tensor]:
    """What a module returns, and the gradients of its input and of all its parameters."""
    tensors = {
        name: value.detach().clone().requires_grad_()
        for name, value in given.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    returned = tree_iter(program(**{**given, **tensors}))
    outputs = [value for value in returned if isinstance(value, Tensor) and value.requires_grad]
    loss = torch.stack([output.square().mean() for output in outputs]).sum()
    wanted = [*tensors.values(), *(p for p in program.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [*(output.detach() for output in outputs), *(g for g in gradients if g is not None)]


def in_double(given: dict[str, Tensor | int]) -> dict[str, Tensor | int]:
    """Arguments in float64."""
    return {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in given.items()}


def beyond(exact: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]) -> str:
    """Where a compiled program breaks the law, "" where it does not.

    Its error against float64, the root mean square over a tensor, is at most twice eager's own, plus what
    rounding the result to fp32 costs.
    """
    if len(after) != len(exact):
        return f"{len(after)} results and gradients, not {len(exact)}"
    for number, (wanted, eager, compiled) in enumerate(zip(exact, before, after, strict=True)):
        size = float(wanted.norm())
        errors = [float((found.double() - wanted).norm()) for found in (eager, compiled)]
        if not errors[1] <= 2 * errors[0] + ROUNDING * size:
            shown = f"error {errors[1]:.2g}, eager's {errors[0]:.2g}"
            return f"result {number} {tuple(wanted.shape)} of size {size:.2g}: {shown}"
    return ""


def examine(specimen: Specimen) -> Outcome:
    """Compile a specimen and compare."""
    if specimen.module is None:
        return Outcome("not built", specimen.failure)
    torch._dynamo.reset()
    exact = results(copy.deepcopy(specimen.module).double(), in_double(specimen.given))
    before = results(specimen.module, specimen.given)
    try:
        after = results(torch.compile(specimen.module, backend="flashmhf", options=OPTIONS), specimen.given)
    except Exception as error:
        return Outcome("failed", f"{type(error).__name__}: {error}".strip().splitlines()[0])
    return verdict(mhf_compile.last_reports(), beyond(exact, before, after))


def verdict(reports: Sequence[Report], wrong: str) -> Outcome:
    """What reports say; a result beyond the law says more.

    A class of which something is rewritten is "rewritten"; else one with a miss is "refused"; one whose
    activations are of no feed-forward, as the report says, "other"; one of which it says nothing "not read".
    """
    rewrites = sum(len(report.rewrites) for report in reports)
    refused = dict.fromkeys(miss.reason for report in reports for miss in report.misses)
    others = dict.fromkeys(other.reason for report in reports for other in report.others)
    if wrong:
        return Outcome("WRONG", wrong, rewrites)
    if rewrites:
        return Outcome("rewritten", rewrites=rewrites)
    return Outcome("refused" if refused else "other" if others else "not read", "; ".join(refused or others))


def census(found: Sequence[Specimen], step: int = 1) -> list[Row]:
    """Compile one of each group, or of every second one and so on."""
    with warnings.catch_warnings(action="ignore"):
        return [Row(group, examine(group[0])) for group in groups(found)[::step]]


def totals(rows: Sequence[Row]) -> str:
    """The counts, of classes."""
    all_of_them = [(specimen, row.outcome.verdict) for row in rows for specimen in row.specimens]

    def share(what: str, chosen: Callable[[Specimen], bool]) -> str:
        verdicts = [verdict for specimen, verdict in all_of_them if specimen.module and chosen(specimen)]
        return f"{what}: {verdicts.count('rewritten')} of {len(verdicts)} rewritten"

    verdicts = Counter(verdict for _, verdict in all_of_them).most_common()
    return "\n".join(
        [
            f"{len(all_of_them)} feed-forward classes of transformers {transformers.__version__}, "
            f"{len(rows)} of them different: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts),
            share(f"gated by {', '.join(sorted(ACTIVATIONS))}", lambda s: s.counts),
            share("gated by others", lambda s: s.gated and not s.excuse and not s.counts),
            share("gated, but excused", lambda s: s.gated and bool(s.excuse)),
            share("not gated", lambda s: not s.gated and not s.excuse),
            share("not gated, but excused", lambda s: not s.gated and bool(s.excuse)),
        ]
    )


def main() -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)  # the modules are tiny
    rows = census(specimens(*sys.argv[1:]))
    lines = [("class", "alike", "model", "activation", "gated", "excuse", "verdict", "reason")]
    for row in sorted(rows, key=lambda row: (not row.specimens[0].gated, -len(row.specimens))):
        one, outcome = row.specimens[0], row.outcome
        gated = "?" if one.module is None else "yes" if one.gated else "no"
        verdict = f"{outcome.verdict} {outcome.rewrites or ''}".strip()
        name, alike = one.cls.__name__, str(len(row.specimens))
        lines.append(
            (name, alike, one.model, one.activation, gated, one.excuse, verdict, outcome.reason[:160])
        )
    print(*table(lines), totals(rows), f"{time.perf_counter() - start:.0f} s", sep="\n")


if __name__ == "__main__":
    main()
