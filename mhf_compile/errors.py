"""Errors for users of the backend."""

from __future__ import annotations

import sys
from typing import Any

from torch._dynamo.exc import ShortenTraceback


class FlashMHFError(ShortenTraceback):
    """Base class of the errors that this package raises on purpose.

    Dynamo passes a ShortenTraceback on as it is, without its own frames. Any other error of a backend it
    wraps into a BackendCompilerFailed, whose message begins with something else.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, first_useful_frame=sys._getframe(1))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args  # a frame cannot be sent to another process


class OptionError(FlashMHFError, ValueError):
    """An unknown option or mode, or a value that the option does not take."""


class NotRewritten(FlashMHFError):
    """Fewer computations were rewritten than ``flashmhf.require`` asks for; the message lists the misses."""
