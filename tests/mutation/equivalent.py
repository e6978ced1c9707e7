"""Mutations that change no result, and why."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {}
"""The reason for each, by the key of the mutation."""
