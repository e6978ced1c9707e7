"""Faults are planted by edits of the source, in the one place where it has what is edited."""

from __future__ import annotations

import inspect
import linecache
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from types import CodeType, FunctionType
from typing import Any

import torch

from mhf_compile.matching import search
from mhf_compile.reading import expression
from mhf_compile.rewriting import field


@dataclass(frozen=True)
class Edit:
    """Another text in the place of one that is just once in the source of a function."""

    function: str
    old: str
    new: str


@contextmanager
def planted(edits: tuple[Edit, ...]) -> Iterator[None]:
    """With edits made to the code of functions, which are then edited wherever they are called from."""
    with ExitStack() as stack:
        stack.callback(_forget, edits)
        for edit in edits:
            function = _function(edit.function)
            stack.callback(setattr, function, "__code__", function.__code__)
            function.__code__ = _edited(function, edit)
        _forget(edits)
        yield


def _function(name: str) -> FunctionType:
    """A function by its module and its name there; of a property, and of a Triton kernel, the one inside."""
    module, _, path = name.partition(":")
    found: Any = reduce(getattr, path.split("."), import_module(f"mhf_compile.{module}"))
    found = found.fget if isinstance(found, property) else getattr(found, "fn", found)
    function: FunctionType = inspect.unwrap(found)
    return function


def _edited(function: FunctionType, edit: Edit) -> CodeType:
    """The code of a function after an edit, its source where inspect looks for it: so Triton has it too."""
    source = textwrap.dedent(inspect.getsource(function))
    times = source.count(edit.old)
    assert times == 1, f"{edit.function} has {times} times: {edit.old}"
    source = source.replace(edit.old, edit.new)
    file = f"<{edit}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module = compile(source, file, "exec")
    codes = (item for item in module.co_consts if isinstance(item, CodeType))
    return next(code for code in codes if code.co_name == function.__name__)


def _forget(edits: tuple[Edit, ...]) -> None:
    """Forget what functions made before they were edited."""
    torch._dynamo.reset()
    search.normal_pattern.cache_clear()
    expression.identify.cache_clear()
    if any(edit.function.startswith("rewriting.field:") for edit in edits):
        field.table.cache_clear()  # which takes a second to fill
