"""The backend, top to bottom: record, find, check, prove, rewrite; then the inner compiler gets the graph."""

from __future__ import annotations

import gc
import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import fx
from torch._dynamo.backends import registry
from torch._logging._internal import trace_structured_artifact

from mhf_compile.errors import NotRewritten
from mhf_compile.inner import inner_compiler
from mhf_compile.options import Options, parse
from mhf_compile.report.describe import miss_of, rewrite_of
from mhf_compile.report.notes import notes_of
from mhf_compile.report.report import Report
from mhf_compile.rewriting.plan import carry_out, plan
from mhf_compile.rewriting.surgery import undoable
from mhf_compile.tape.ambient import put_aside
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
        told = [(one, miss_of(one)) for one in (*left, *failed) for _ in range(one.uses)]
        misses = tuple(miss for one, miss in told if one.is_feed_forward)
        others = tuple(miss for one, miss in told if not one.is_feed_forward)
        report = Report(tuple(rewrites), misses, notes_of(tape, misses), others=others)
        tell(report)
    return report
