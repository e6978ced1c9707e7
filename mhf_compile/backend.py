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

from mhf_compile.ambient import put_aside
from mhf_compile.errors import NotRewritten, OptionError
from mhf_compile.kernels.source import source_hash
from mhf_compile.options import Options, parse
from mhf_compile.report.describe import miss_of, rewrite_of
from mhf_compile.report.report import Report
from mhf_compile.rewriting.plan import carry_out, plan
from mhf_compile.rewriting.surgery import undoable
from mhf_compile.tape.recorder import record

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
        OptionError: an unknown mode, option or value, ours or of Inductor. That is at the first call of what
            ``torch.compile`` returns, before anything else: a backend is not told its options earlier.
        NotRewritten: fewer rewrites than ``flashmhf.require``.
    """
    ours, others = parse(options)
    passed = {name: value for name, value in (("mode", mode), ("options", others)) if value}
    compile_rest = inner_compiler(ours.inner, {**passed, **kwargs})
    report = analyse(module, ours)
    _reports.append(report)
    check_required(report, ours)
    return compile_rest(module, inputs)


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


@_alone()
def rewrite_graph(module: fx.GraphModule, options: Options) -> Report:
    """Record, find, check, prove; then rewrite, and tell of it."""
    tape = record(module)
    planned, left = plan(tape, options.prove, options.dense)
    with undoable(tape.scopes if planned else ()) as undo:
        done, failed = carry_out(planned, module, tape, {"workspace": options.workspace})
        if planned and not done:  # a call of the program may be written out for nothing
            undo()
        rewrites = [
            rewrite
            for one in done
            for rewrite in [rewrite_of(one.match, one.region, one.proof)] * one.match.uses
        ]
        misses = [miss for one in (*left, *failed) for miss in [miss_of(one)] * one.uses]
        notes: tuple[str, ...] = ()
        if misses and is_piece():  # what is cut apart leaves a miss
            notes = (SPLIT,)
            warn_of_split()
        report = Report(tuple(rewrites), tuple(misses), notes)
        tell(report)
    return report


def inner_compiler(inner: str, kwargs: dict[str, Any]) -> Callable[[fx.GraphModule, Sequence[Any]], Any]:
    """The compiler of rewritten graphs, with its mode and options.

    Raises:
        OptionError: it does not take them, as far as that can be told of it.
    """
    given = [f"{name} {value!r}" for name, value in kwargs.items() if name in ("mode", "options")]
    if inner in ("eager", "aot_eager") and given:
        raise OptionError(f"flashmhf.inner is {inner!r}, which takes no mode or options: {', '.join(given)}")
    if inner == "eager":
        return lambda module, inputs: module  # the minifier asks for a GraphModule
    if inner == "inductor":
        return _inductor(kwargs.get("mode"), kwargs.get("options"))

    def compile_with(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        other: Any = torch._dynamo.lookup_backend(inner)
        with _keyed():
            return other(module, inputs, **kwargs)

    return compile_with


def _inductor(mode: str | None, options: Mapping[str, Any] | None) -> Callable[..., Any]:
    try:
        config_patches = torch._TorchCompileInductorWrapper(mode, options, None).config
    except RuntimeError as error:
        raise OptionError(str(error)) from None

    def compile_with(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        from torch._inductor import compile_fx

        with _keyed() as key:  # the backward is compiled when it first runs, and its key made then
            inner_compile = key(compile_fx.compile_fx_inner)
            return compile_fx.compile_fx(
                module, list(inputs), inner_compile=inner_compile, config_patches=config_patches
            )

    return compile_with


@contextmanager
def _keyed() -> Iterator[Callable[..., Any]]:
    """Have the package in the keys of the compilers' caches; gives what does so in a function called later.

    Without it they would serve graphs compiled for the ops of an older version.
    """
    tag = f"{torch.compiler.config.cache_key_tag} {package_hash()}"
    patch = torch.compiler.config.patch(cache_key_tag=tag)  # type: ignore[attr-defined]
    with patch:
        yield patch


def package_hash() -> str:
    """A hash of this package's sources."""
    return f"mhf_compile-{source_hash(Path(__file__).parent)}"
