"""The public functions beside the backend itself: explain a model, rewrite a graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any, overload

import torch
from torch import fx
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo.convert_frame import compile_lock, register_bytecode_hook
from torch._dynamo.utils import counters
from torch.export import ExportedProgram

from mhf_compile.backend import analyse, check_required
from mhf_compile.graphs import Exported, copied_module, give_examples, take_examples_back
from mhf_compile.options import PREFIX, Options, parse
from mhf_compile.report.modules import ModulePaths
from mhf_compile.report.notes import notes_of_model
from mhf_compile.report.report import Report
from mhf_compile.tape.ambient import put_aside


def explain(
    model: Callable[..., Any], *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any
) -> Report:
    """What the backend would rewrite in a model, and what not and why.

    The model is run once on the arguments, as it would run compiled but without an inner compiler. A graph
    that runs for several modules is reported for each. Threads that explain take turns; none may compile or
    run compiled, at the same time, the model that another one explains. A model with collectives runs them:
    explained on one rank only, it waits for the others for ever. Explain it on all.

    Args:
        model: a module or function.
        *args: its arguments.
        options: the backend's own options, such as ``{"flashmhf.dense": "always"}``. A model with a keyword
            argument of this name can be called in a ``lambda``.
        **kwargs: the model's keyword arguments.

    Returns:
        One report over all graphs of the model.

    Raises:
        OptionError: an unknown ``flashmhf.`` option or value.
        NotRewritten: fewer rewrites, in all graphs together, than ``flashmhf.require``.
    """
    return explain_call(model, args, kwargs, options)


def explain_call(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> Report:
    """As :func:`explain`, of a call whose keyword arguments may have any name."""
    ours, _ = parse({PREFIX + "strict": True, **(options or {})})
    reports: list[Report] = []
    graphs = 0
    paths = ModulePaths(model)

    def collect(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        paths.put_into(module)
        report_of = paths.report_of(module, analyse(module, ours))

        def run(*arguments: Any) -> Any:
            reports.append(report_of(arguments))
            return module(*arguments)

        return run

    before = dict(counters["graph_break"])
    run_compiled(model, args, kwargs, collect)
    breaks = [words for words, times in counters["graph_break"].items() if times > before.get(words, 0)]
    report = merged([*reports, Report(notes=notes_of_model(graphs, breaks))], paths.modules)
    check_required(report, ours)
    return report


def run_compiled(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    backend: Callable[..., Any],
    dynamic: bool | None = None,
) -> None:
    """Run a model once, as `torch.compile` has it with a backend; nothing stays compiled."""
    # A module that was compiled in place would run what it was compiled to.
    compiled_in_place = getattr(model, "_compiled_call_impl", None) is not None
    program = model._call_impl if compiled_in_place else model  # type: ignore[attr-defined]
    with _lock, _thrown_away():
        torch.compile(program, backend=backend, dynamic=dynamic)(*args, **kwargs)


_lock = threading.RLock()
"""What is thrown away may not be what another thread runs."""


@contextmanager
def _thrown_away() -> Iterator[None]:
    """Throw away what this thread compiles: it is not to count against the limit of recompiles."""
    codes: set[CodeType] = set()
    thread = threading.get_ident()

    def watch(code: CodeType, new_code: CodeType) -> None:
        if threading.get_ident() == thread:
            codes.add(code)

    with compile_lock:  # Dynamo goes through its hooks, and resets codes, under it
        hook = register_bytecode_hook(watch)
    try:
        yield
    finally:
        with compile_lock:
            hook.remove()
            for code in codes:
                reset_code(code)


def merged(reports: Sequence[Report], modules: tuple[tuple[str, str], ...] = ()) -> Report:
    """One report over the graphs of a model with these modules."""
    return Report(
        tuple(rewrite for report in reports for rewrite in report.rewrites),
        tuple(miss for report in reports for miss in report.misses),
        tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        modules,
        tuple(other for report in reports for other in report.others),
    )


@overload
def rewrite(
    program: fx.GraphModule, example_inputs: Sequence[Any] | None = None, **options: Any
) -> tuple[fx.GraphModule, Report]: ...
@overload
def rewrite(
    program: ExportedProgram, example_inputs: Sequence[Any] | None = None, **options: Any
) -> tuple[ExportedProgram, Report]: ...
def rewrite(
    program: fx.GraphModule | ExportedProgram, example_inputs: Sequence[Any] | None = None, **options: Any
) -> tuple[fx.GraphModule | ExportedProgram, Report]:
    """Rewrite a graph of PyTorch calls.

    Args:
        program: a graph from Dynamo, ``torch.fx.symbolic_trace`` or ``ExportedProgram.module()``, or an
            ``ExportedProgram``; it is not changed. Modules that a graph calls are taken to stay in the mode,
            of training or evaluation, that they are in.
        example_inputs: inputs of the graph, for their shapes and dtypes. What has been exported knows them.
        **options: the backend's options without their prefix, such as ``prove="always"``.

    Returns:
        The rewritten graph or program, sharing parameters with the given one, and the report. A program that
        calls our operators can be saved; the process that loads it must have imported ``mhf_compile``, and an
        AOTInductor package of it runs only in a process with Python.

    Raises:
        OptionError: an unknown option or value.
        TypeError: the program is of another kind.
        ValueError: the example inputs are not those that the graph takes.
    """
    ours, _ = parse({PREFIX + name: value for name, value in options.items()})
    if isinstance(program, ExportedProgram):
        return _rewrite_exported(program, ours)
    if not isinstance(program, fx.GraphModule):
        raise TypeError(
            f"rewrite takes a torch.fx.GraphModule or an ExportedProgram, and this is a "
            f"{type(program).__name__}; "
            'to rewrite what a model runs, compile it: torch.compile(model, backend="flashmhf")'
        )
    with put_aside():
        result = copied_module(program)
        give_examples(result, example_inputs)
        report = analyse(result, ours)
        take_examples_back(result, program)
    return result, report


def _rewrite_exported(program: ExportedProgram, options: Options) -> tuple[ExportedProgram, Report]:
    with put_aside():
        exported = Exported(program)
        report = analyse(exported.module, options)
        return exported.rewritten() if report.rewrites else program, report
