"""The model that a factory of the user's makes, named on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _shape(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"of type {type(value).__name__} and length {len(value)}"
    return f"of type {type(value).__name__}"
