"""The graphs that a mutant is judged by: programs of many kinds, as Dynamo captures them.

They are captured without ``mhf_compile``, which is imported once for each mutant.
"""

from __future__ import annotations

import linecache
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from hypothesis import Phase, given, settings
from torch import Tensor, fx

TESTS = Path(__file__).parent.parent

DRAWN = 16
"""How many right programs are drawn, and half as many that are subtly wrong."""
EVERY = 2
"""Of the near misses, and of the spellings, one of so many."""


@dataclass(frozen=True)
class Program:
    """A program in float64, its arguments, and the options it is analysed with."""

    name: str
    run: Callable[..., Any]
    arguments: Sequence[Any]
    options: Mapping[str, object] = field(default_factory=dict)
    dynamic: bool = False


@dataclass(frozen=True)
class Graph:
    """A graph of a program, and what it was captured with."""

    name: str
    module: fx.GraphModule
    inputs: tuple[Any, ...]
    options: Mapping[str, object]


def programs() -> Iterator[Program]:
    """All programs, small ones of few kinds first."""
    from tests.programs import SPELLINGS

    for spelling in SPELLINGS:
        yield Program(f"programs.{spelling}", spelling.program, spelling.tensors(torch.float64))
    yield from _near_misses()
    yield from _drawn()
    yield from _kept()
    yield from _spellings()


def _near_misses() -> Iterator[Program]:
    from tests.near_misses import NEAR_MISSES

    for near in NEAR_MISSES[::EVERY]:
        if near.without is None:
            options = {name.removeprefix("flashmhf."): value for name, value in near.options.items()}
            yield Program(f"near.{near}", near.program, near.tensors(0), options, near.dynamic)


def _drawn() -> Iterator[Program]:
    """Programs that are drawn: the same ones each time."""
    from tests.strategies import draw

    fixed = settings(derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    for name, strategy, number in (("right", draw.programs(), DRAWN), ("wrong", draw.mutants(), DRAWN // 2)):
        texts: list[str] = []
        settings(fixed, max_examples=number)(given(strategy)(lambda p: texts.append(p.text)))()  # noqa: B023
        for number, text in enumerate(dict.fromkeys(texts)):
            yield Program(f"drawn.{name}_{number}", *_made(text, f"{name}_{number}.py"))


def _kept() -> Iterator[Program]:
    for path in sorted((TESTS / "regressions").glob("*.py")):
        text = path.read_text()
        if "\ndef make(" in text:
            yield Program(f"regressions.{path.stem}", *_made(text, str(path)))


def _made(text: str, file: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The model and the inputs of a program that is given as text."""
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module = sys.modules["drawn"] = ModuleType("drawn")
    exec(compile(text, file, "exec"), module.__dict__)
    model, inputs = module.make()
    return model, inputs


def _spellings() -> Iterator[Program]:
    from tests.spellings.case import converted

    numbers = count()
    for path in sorted((TESTS / "spellings").glob("*.py")):
        for case in getattr(import_module(f"tests.spellings.{path.stem}"), "CASES", ()):
            if case.context is None and not next(numbers) % EVERY:
                torch.manual_seed(0)
                yield Program(f"spellings.{case}", *converted(*case.make(), torch.float64))


def captured(program: Program) -> list[Graph]:
    """The graphs of a program."""
    found: list[Graph] = []

    def keep(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if not any(graph.module is module for graph in found):
                name = program.name + (f".{len(found)}" if found else "")
                found.append(Graph(name, module, tuple(map(_own, arguments)), program.options))
            return module(*arguments)

        return run

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(program.run, backend=keep, dynamic=program.dynamic)(*program.arguments)
    return found


def _own(given: Any) -> Any:
    """An argument of which nothing else knows."""
    if not isinstance(given, Tensor):
        return given
    return given.detach().clone().requires_grad_(given.requires_grad)


def outcome(graph: fx.GraphModule, inputs: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor | None]]:
    """The results of a graph, and the gradients of what requires one; none where eager has none."""
    torch.manual_seed(0)
    inputs = tuple(map(_own, inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = graph(*inputs)
        results = [
            r for r in (found if isinstance(found, (tuple, list)) else (found,)) if isinstance(r, Tensor)
        ]
        wanted = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
        losses = [r.square().mean() for r in results if r.requires_grad]
        try:
            gradients = torch.autograd.grad(sum(losses), wanted, allow_unused=True) if losses else ()
        except RuntimeError:  # as the program says, in eager too
            gradients = ()
    return [r.detach() for r in results], list(gradients)
