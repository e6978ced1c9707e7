"""The command `explain`: what would be rewritten in a model that a factory of the user's makes."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mhf_compile.api import explain_call
from mhf_compile.commands.demo import positive
from mhf_compile.report.report import Report

EXAMPLE = """\
example, in a file small.py:

    import torch
    from mhf_compile.models import CONFIGS, FlashMHF, LanguageModel

    def small():
        return LanguageModel(CONFIGS["128M"], FlashMHF), (torch.randint(256, (2, 512)),)

    python -m mhf_compile explain small:small
    python -m mhf_compile explain small.py:small --html small.html
"""

LEGEND = (
    "N tokens; H heads, Hk with weights of their own; E sub-networks; widths: D head, O output, F sub-network"
)


class SpecError(Exception):
    """What the command was given names no factory, or the factory returned something else."""


def made(spec: str) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The model that a factory makes, its arguments and its keyword arguments.

    Args:
        spec: "package.module:name" or "path/to/file.py:name".

    Raises:
        SpecError: there is no such factory, or it returns something else; what it raises is let through.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise SpecError(f"{spec!r} is not of the form package.module:name or path/to/file.py:name")
    factory = module_at(place)
    for part in name.split("."):
        try:
            factory = getattr(factory, part)
        except AttributeError:
            raise SpecError(f"{place} has no {name}") from None
    if not callable(factory):
        raise SpecError(f"{spec} is not callable: it is of type {type(factory).__name__}")
    result = factory()
    if not isinstance(result, tuple) or len(result) != 2:
        raise SpecError(f"{spec} returned something {_shape(result)}; it is to return (model, inputs)")
    model, inputs = result
    if not callable(model):
        raise SpecError(f"{spec} returned a model that is not callable: it is of type {type(model).__name__}")
    match inputs:
        case (tuple() as args, dict() as kwargs):
            return model, args, kwargs
        case tuple():
            return model, inputs, {}
        case dict():
            return model, (), inputs
    raise SpecError(f"{spec} returned inputs {_shape(inputs)}; they are a tuple, a dict, or (tuple, dict)")


def module_at(place: str) -> Any:
    """The module of a dotted name or a file, imported as `python -m` and `python` would, from here.

    Raises:
        SpecError: there is no such module. What its own code raises is let through.
    """
    path = Path(place)
    if path.suffix != ".py":
        sys.path[:0] = [os.getcwd()] if os.getcwd() not in sys.path else []
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise  # a module that this one imports is not there
            raise SpecError(f"there is no module {error.name}, seen from {os.getcwd()}") from None
        except TypeError:
            if place.startswith("."):
                raise SpecError(f"{place} is a relative name") from None
            raise
    if not path.is_file():
        raise SpecError(f"there is no file {place}")
    sys.path.insert(0, str(path.resolve().parent))
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    found.loader.exec_module(module)
    return module


def _shape(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"of type {type(value).__name__} and length {len(value)}"
    return f"of type {type(value).__name__}"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `explain` and its options to the command line."""
    parser = commands.add_parser(
        "explain",
        help="say what would be rewritten in a model, and what not and why",
        description="Run a model once, and print which of its feed-forwards, gated or not, the backend\n"
        "would rewrite, and why it would leave the others alone.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "factory",
        help="package.module:name or path/to/file.py:name of a function that takes nothing and returns "
        "(model, inputs); inputs: a tuple of arguments, a dict of keyword arguments, or (tuple, dict)",
    )
    parser.add_argument("--equations", action="store_true", help="show what was read, in index notation")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with all of it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--dense",
        choices=("auto", "always", "never"),
        default="auto",
        help="whether to rewrite dense feed-forwards: one head, one sub-network",
    )
    parser.add_argument(
        "--require", metavar="N", type=positive, default=0, help="status 1 if fewer were rewritten"
    )

    def run(options: argparse.Namespace) -> None:
        try:
            model, args, kwargs = made(options.factory)
        except SpecError as error:
            parser.exit(2, f"{parser.prog}: error: {error}\n")
        report = explain_call(model, args, kwargs, {"flashmhf.dense": options.dense})
        print(report.to_json() if options.json else table(report, options.equations))
        if options.html is not None:
            try:
                report.save(options.html)
            except OSError as error:
                parser.exit(2, f"{parser.prog}: error: cannot write {options.html}: {error.strerror}\n")
        if len(report.rewrites) < options.require:
            found = f"{len(report.rewrites)} of {len(report.rewrites) + len(report.misses)} were rewritten"
            parser.exit(1, f"{parser.prog}: {found}, --require asks for {options.require}\n")

    parser.set_defaults(run=run)


def table(report: Report, equations: bool) -> str:
    """The report, with a legend for its columns."""
    return report.text(equations) + f"\n{LEGEND}" * bool(report.rewrites)
