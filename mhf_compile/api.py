"""The public functions beside the backend itself: explain a model, rewrite a graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch import fx
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo.convert_frame import compile_lock, register_bytecode_hook
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from mhf_compile.backend import analyse, check_required
from mhf_compile.options import PREFIX, parse
from mhf_compile.report.modules import ModulePaths
from mhf_compile.report.report import Report
from mhf_compile.rewriting.surgery import copied


def explain(
    model: Callable[..., Any], *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any
) -> Report:
    """What the backend would rewrite in a model, and what not and why.

    The model is run once on the arguments, as it would run compiled but without an inner compiler. A graph
    that runs for several modules is reported for each. Threads that explain take turns; none may compile or
    run compiled, at the same time, the model that another one explains.

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
    paths = ModulePaths(model)

    def collect(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        paths.put_into(module)
        report_of = paths.report_of(module, analyse(module, ours))

        def run(*arguments: Any) -> Any:
            reports.append(report_of(arguments))
            return module(*arguments)

        return run

    run_compiled(model, args, kwargs, collect)
    report = merged(reports, paths.modules)
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
    )


def rewrite(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], **options: Any
) -> tuple[fx.GraphModule, Report]:
    """Rewrite a graph of PyTorch calls.

    Args:
        graph_module: a graph from Dynamo, ``torch.export`` or ``torch.fx.symbolic_trace``; it is not changed.
        example_inputs: inputs of the graph, for their shapes and dtypes.
        **options: the backend's options without their prefix, such as ``prove="always"``.

    Returns:
        The rewritten graph, sharing parameters with the given one, and the report.

    Raises:
        OptionError: an unknown option or value.
    """
    ours, _ = parse({PREFIX + name: value for name, value in options.items()})
    result = _copied(graph_module)
    placeholders = [node for node in result.graph.nodes if node.op == "placeholder"]
    if any("example_value" not in node.meta for node in placeholders):
        mode = FakeTensorMode(shape_env=ShapeEnv())
        for node, example in zip(placeholders, example_inputs, strict=True):
            is_tensor = isinstance(example, torch.Tensor)
            node.meta["example_value"] = (
                mode.from_tensor(example, static_shapes=True) if is_tensor else example
            )
    return result, analyse(result, ours)


def _copied(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph and of the graphs in it, which shares the parameters."""
    result = fx.GraphModule(module, copied(module.graph))
    for name, child in module.named_children():
        if isinstance(child, fx.GraphModule):
            setattr(result, name, _copied(child))
    return result
