"""Which modules a graph is of: after a graph break, Dynamo compiles parts of a model, some for several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from mhf_compile.report.report import Report
from mhf_compile.tape.source import path_in_self


class ModulePaths:
    """The paths of a model's modules and parameters.

    Args:
        model: a module, compiled or not; a function has none.
    """

    def __init__(self, model: object) -> None:
        root = getattr(model, "_orig_mod", model)  # what torch.compile(module) wraps
        modules = list(root.named_modules()) if isinstance(root, nn.Module) else []
        parameters = list(root.named_parameters()) if isinstance(root, nn.Module) else []
        self.modules = tuple((path, type(module).__name__) for path, module in modules)
        self._paths = {str(id(module)): path for path, module in modules}
        self._parameters = {id(parameter): path for path, parameter in parameters}

    def put_into(self, graph_module: fx.GraphModule) -> None:
        """Put paths in the model into a graph, where Dynamo has paths from the "self" of what it compiles."""
        for body in graph_module.modules():
            for node in body.graph.nodes if isinstance(body, fx.GraphModule) else ():
                stack = node.meta.get("nn_module_stack") or {}
                for key, (path, kind) in stack.items():  # keys are "id" or "id@calls"
                    stack[key] = self._paths.get(key.split("@")[0], path), kind

    def report_of(self, graph_module: fx.GraphModule, report: Report) -> Callable[[Sequence[Any]], Report]:
        """A function of a graph's arguments: its report, with the modules that it runs for."""
        below = [path_in_self(node) for node in graph_module.graph.find_nodes(op="placeholder")]
        first: list[str] = []

        def at(arguments: Sequence[Any]) -> Report:
            now = [self._parameters.get(id(argument), "") for argument in arguments]
            first.extend(now if not first else ())
            own = _path_of_self(below, now)

            def here(path: str) -> str:
                return _moved(path, first, now) if path else own

            return replace(
                report,
                rewrites=tuple(replace(r, module=here(r.module)) for r in report.rewrites),
                misses=tuple(replace(m, module=here(m.module)) for m in report.misses),
                others=tuple(replace(m, module=here(m.module)) for m in report.others),
            )

        return at


def _path_of_self(below: Sequence[tuple[str, ...]], paths: Sequence[str]) -> str:
    """The path of ``self`` in the model: that of one of its parameters, without the way to it from there."""
    for names, path in zip(below, paths, strict=True):
        if path and names:
            return ".".join(path.split(".")[: -len(names)])
    return ""


def _moved(path: str, first: Sequence[str], now: Sequence[str]) -> str:
    """The path of a module whose parameters had other paths."""
    for before, after in zip(first, now, strict=True):
        end = before.removeprefix(path)
        if path and end.startswith(".") and after.endswith(end):
            return after.removesuffix(end)
    return path
