"""The backend, top to bottom: record, find, check, prove, rewrite; then the inner compiler gets the graph."""

from __future__ import annotations

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends import registry
from torch._logging._internal import trace_structured_artifact

import mhf_compile.kernels.ops  # noqa: F401  (registers the ops that the rewritten graphs call)
from mhf_compile import notation
from mhf_compile.ambient import put_aside
from mhf_compile.errors import NotRewritten
from mhf_compile.kernels.source import source_hash
from mhf_compile.matching.reasons import NoMatch, Refusal
from mhf_compile.matching.search import Match, Unmatched, find
from mhf_compile.options import Options, parse
from mhf_compile.report.report import Miss, Report, Rewrite
from mhf_compile.rewriting.proof import Proofs
from mhf_compile.rewriting.region import Region
from mhf_compile.rewriting.surgery import Surgeon, copied, describe
from mhf_compile.tape.recorder import record
from mhf_compile.tape.source import module_of, source_of
from mhf_compile.tape.tape import Scope

log = logging.getLogger(__name__)

_reports: deque[Report] = deque(maxlen=1000)


def flashmhf(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Compile a Dynamo graph: ``torch.compile(model, backend="flashmhf", mode=..., options={...})``.

    Every gated multi-head feed-forward of the graph (FlashMHF, arXiv 2512.06989) becomes one fused call; then
    the inner compiler gets the graph, with ``mode`` and all options that are not ours.

    Args:
        module: the graph as Dynamo made it; it is changed in place.
        inputs: example inputs, passed on.
        mode: a mode of ``torch.compile``, for an inner compiler that takes one.
        options: ``flashmhf.*`` options (see :class:`mhf_compile.options.Options`), and the inner compiler's.
        **kwargs: passed on.

    Returns:
        What the inner compiler returns.

    Raises:
        OptionError: an unknown ``flashmhf.`` option or value.
        NotRewritten: fewer rewrites than ``flashmhf.require``.
    """
    ours, others = parse(options)
    report = analyse(module, ours)
    _reports.append(report)
    check_required(report, ours)
    passed = {name: value for name, value in (("mode", mode), ("options", others)) if value}
    return compile_inner(module, inputs, ours.inner, {**passed, **kwargs})


class _Functions(dict[str, Any]):
    """PyTorch's backends by name, among which this one may be registered again.

    All threads that look up an entry point at first register what they have loaded, which for PyTorch is an
    error of all but one. Each has imported this module before.
    """

    def __contains__(self, name: object) -> bool:
        return name != flashmhf.__name__ and super().__contains__(name)


registry._COMPILER_FNS = _Functions(registry._COMPILER_FNS)
flashmhf.reset = _reports.clear  # type: ignore[attr-defined]  # torch._dynamo.reset() calls it


def last_reports() -> list[Report]:
    """The reports of the graphs compiled since ``torch._dynamo.reset()``, the newest last (at most 1000)."""
    return list(_reports)


def check_required(report: Report, options: Options) -> None:
    """Raise NotRewritten, with the report, where it has fewer rewrites than ``options.require``."""
    if len(report.rewrites) < options.require:
        raise NotRewritten(f"flashmhf.require is {options.require}, but {report}")


def analyse(module: fx.GraphModule, options: Options) -> Report:
    """Rewrite a Dynamo graph in place, and say what was done and what was not.

    An internal error is logged and leaves the graph as it was, unless ``options.strict``.
    """
    try:
        return rewrite_graph(module, options)
    except Exception as error:
        if options.strict:
            raise
        log.warning(
            "the analysis failed and the graph is compiled as it is; please report this", exc_info=True
        )
        report = Report(notes=(f"the analysis failed, with {type(error).__name__}: {error}",))
        tell(report)
        return report


def tell(report: Report) -> None:
    """Put a report into the log and into the structured trace."""
    log.info("%s", report)
    for rewrite in report.rewrites:
        log.debug("%s: %s", rewrite.source, rewrite.equation)
    trace_structured_artifact("flashmhf_rewrites", "json", report.to_json)


SPLIT = (
    "DistributedDataParallel's gradient buckets cut this model's graph into pieces, and a feed-forward that "
    "is cut apart is not found; torch._dynamo.config.optimize_ddp = False keeps it whole (a larger "
    "bucket_cap_mb only cuts in fewer places)"
)


def is_piece() -> bool:
    """Whether Dynamo's DDPOptimizer split the graph that is being compiled: then it compiles each piece."""
    context = torch._guards.TracingContext.try_get()
    return context is not None and context.ddp_optimizer_ctx is not None


@cache
def warn_of_split() -> None:
    """Warn of it, once a process."""
    log.warning("%s", SPLIT)


_lock = threading.RLock()


@contextmanager
def _alone() -> Iterator[None]:
    """Let one thread at a time analyse: graphs may share fake tensors, and all share the garbage collector.

    Nothing that is around the program looks on. The collector is off meanwhile: to walk a growing tape again
    and again took a quarter of the time.
    """
    with _lock, put_aside():
        enabled = gc.isenabled()
        try:
            gc.disable()
            yield
        finally:
            if enabled:
                gc.enable()


@contextmanager
def _undoable(scopes: Sequence[Scope]) -> Iterator[Callable[[], None]]:
    """Change graphs; where something fails after all, or on demand, they are as they came."""
    graphs = [(scope.module, copied(scope.module.graph)) for scope in scopes]

    def undo() -> None:
        for module, graph in graphs:
            module.graph = graph

    try:
        yield undo
    except BaseException:
        undo()
        raise


@_alone()
def rewrite_graph(module: fx.GraphModule, options: Options) -> Report:
    """Record, find, check, prove; then rewrite, and tell of it."""
    tape = record(module)
    proofs = Proofs(options.prove)
    accepted: dict[Match, tuple[Region, str]] = {}

    def accept(match: Match) -> None:
        region = Region(tape, match)
        region.check()
        size = match.unification.size
        if options.refuses(heads=notation.times(size("h"), size("g")), subnetworks=size("e")):
            raise Refusal(
                f"a dense feed-forward is left to the inner compiler: flashmhf.dense is {options.dense!r}",
                advice='set "flashmhf.dense" to "always" to rewrite it all the same',
            )
        accepted[match] = region, proofs.prove(match, region)

    plan: list[Match] = []
    misses: list[Miss] = []
    for found in find(tape, accept):
        if isinstance(found, Match):
            plan.append(found)
        else:
            misses += _missed(found)
    inside = {value for match in plan for value in accepted[match][0].computed if value is not match.root}
    for match in [match for match in plan if not inside.isdisjoint(accepted[match][0].leaves)]:
        plan.remove(match)
        misses += _refused(match, NoMatch("an operand is inside another match"))
    rewrites: list[Rewrite] = []
    with _undoable(tape.scopes if plan else ()) as undo:
        if plan:
            surgeon = Surgeon(module, tape, {"workspace": options.workspace})
            for match in plan:
                region, proof = accepted[match]
                try:
                    surgeon.replace(match, region)
                    rewrites += [describe(match, region, proof)] * match.scope.uses
                except NoMatch as error:
                    misses += _refused(match, error)
            surgeon.finish()
        if plan and not rewrites:  # a call of the program may be written out for nothing
            undo()
        notes: tuple[str, ...] = ()
        if misses and is_piece():  # what is cut apart leaves a miss
            notes = (SPLIT,)
            warn_of_split()
        report = Report(tuple(rewrites), tuple(misses), notes)
        tell(report)
    return report


def _refused(match: Match, error: NoMatch) -> list[Miss]:
    return [miss for anchor in match.anchors for miss in _missed(Unmatched(match.pattern, anchor, error))]


def _missed(found: Unmatched) -> list[Miss]:
    """A miss for each time that the program runs the graph it is in."""
    op = found.anchor.op
    node = op.node if op is not None else None
    miss = Miss(found.pattern.name, module_of(node), source_of(node), found.why.reason, found.why.advice)
    return [miss] * (op.scope.uses if op is not None and op.scope is not None else 1)


def compile_inner(module: fx.GraphModule, inputs: Sequence[Any], inner: str, kwargs: dict[str, Any]) -> Any:
    """Compile a rewritten graph with another backend."""
    if inner == "eager":
        return module  # the minifier asks for a GraphModule
    tag = f"{torch.compiler.config.cache_key_tag} {package_hash()}"
    with torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
        if inner == "inductor":
            compiler = torch._TorchCompileInductorWrapper(
                kwargs.pop("mode", None), kwargs.pop("options", None), None
            )
            return compiler(module, list(inputs))
        other: Any = torch._dynamo.lookup_backend(inner)
        return other(module, inputs, **kwargs)


def package_hash() -> str:
    """A hash of this package's sources, which keys the inner compiler's caches.

    Without it they would serve graphs compiled for the ops of an older version.
    """
    return f"mhf_compile-{source_hash(Path(__file__).parent)}"
