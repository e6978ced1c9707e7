"""Options of the backend: keys that start with ``flashmhf.`` are ours, the others the inner compiler's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mhf_compile.errors import OptionError

PREFIX = "flashmhf."


@dataclass(frozen=True)
class Options:
    """The backend's own options.

    Attributes:
        inner: the backend that compiles the rewritten graph: "inductor", "eager", "aot_eager" or any
            registered one.
        prove: "auto" proves each distinct region once, "always" each region, "never" none.
        require: raise NotRewritten when a graph has fewer rewrites than this.
        dense: whether dense feed-forwards (one head, one sub-network) are rewritten: "auto", where the model
            of costs says that it is a gain, "always", "never".
        workspace: bytes that a call on a GPU may use for the hidden values of some tokens, where heads are
            too wide to keep them on the chip. None: a default.
        strict: raise internal errors of the analysis instead of logging them and leaving the graph alone.
    """

    inner: str = "inductor"
    prove: str = "auto"
    require: int = 0
    dense: str = "auto"
    workspace: int | None = None
    strict: bool = False


_CHOICES = {
    "prove": ("auto", "always", "never"),
    "dense": ("auto", "always", "never"),
    "strict": (True, False),
}


def parse(options: Mapping[str, Any] | None) -> tuple[Options, dict[str, Any]]:
    """Split a mapping of options into ours and the inner compiler's.

    Raises:
        OptionError: a ``flashmhf.`` key or value is unknown; the message names the valid ones.
    """
    from torch._dynamo.backends.registry import list_backends

    names = [field.name for field in fields(Options)]
    ours: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for key, value in (options or {}).items():
        if not key.startswith(PREFIX):
            inner[key] = value
            continue
        name = key.removeprefix(PREFIX)
        if name not in names:
            raise OptionError(
                f"unknown option {key!r}; the options are {', '.join(PREFIX + n for n in names)}"
            )
        if name in _CHOICES and value not in _CHOICES[name]:
            raise OptionError(f"{key} is {value!r}; it takes {', '.join(map(repr, _CHOICES[name]))}")
        if name == "require" and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise OptionError(f"{key} is {value!r}; it takes a number of rewrites, an int of 0 or more")
        if name == "workspace" and value is not None and (type(value) is not int or value < 0):
            raise OptionError(f"{key} is {value!r}; it takes a number of bytes, an int of 0 or more, or None")
        if name == "inner":
            known = sorted(set(list_backends(exclude_tags=())) - {"flashmhf"})
            if value not in known:
                raise OptionError(f"{key} is {value!r}; it takes a registered backend: {', '.join(known)}")
        ours[name] = value
    return Options(**ours), inner
