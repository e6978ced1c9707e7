"""Errors for users of the backend."""

from __future__ import annotations


class FlashMHFError(Exception):
    """Base class of the errors that this package raises on purpose."""


class OptionError(FlashMHFError, ValueError):
    """An unknown ``flashmhf.`` option, or a value that the option does not take."""


class NotRewritten(FlashMHFError):
    """Fewer computations were rewritten than ``flashmhf.require`` asks for; the message lists the misses."""
