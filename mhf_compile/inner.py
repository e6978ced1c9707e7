"""The inner compiler, which gets the rewritten graph: checked before the analysis, keyed by this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import fx

from mhf_compile.errors import OptionError
from mhf_compile.kernels.source import source_hash


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
        with _keyed(_tag()):
            return other(module, inputs, **kwargs)

    return compile_with


def _inductor(mode: str | None, options: Mapping[str, Any] | None) -> Callable[..., Any]:
    try:
        config_patches = torch._TorchCompileInductorWrapper(mode, options, None).config
    except RuntimeError as error:
        raise OptionError(str(error)) from None

    def compile_with(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        from torch._inductor import compile_fx

        tag = _tag()

        @wraps(compile_fx.compile_fx_inner)
        def inner_compile(*args: Any, **kwargs: Any) -> Any:
            with _keyed(tag):  # the backward is compiled when it first runs, and its key made then
                return compile_fx.compile_fx_inner(*args, **kwargs)

        with _keyed(tag):
            return compile_fx.compile_fx(
                module, list(inputs), inner_compile=inner_compile, config_patches=config_patches
            )

    return compile_with


def _tag() -> str:
    """What has the package in the keys of the compilers' caches.

    Without it they would serve graphs compiled for the ops of an older version.
    """
    return f"{torch.compiler.config.cache_key_tag} {package_hash()}"


def _keyed(tag: str) -> AbstractContextManager[None]:
    """Key the compilers' caches by a tag. Each is entered once: torch 2.11's are not reentrant."""
    patch: AbstractContextManager[None] = torch.compiler.config.patch(cache_key_tag=tag)  # type: ignore[attr-defined]
    return patch


def package_hash() -> str:
    """A hash of this package's sources."""
    return f"mhf_compile-{source_hash(Path(__file__).parent)}"
