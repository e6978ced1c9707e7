"""Patterns: each the eager formula of an op, read by the reader that reads the user's graph."""

from mhf_compile.patterns.flash_mhf import FLASH_MHF
from mhf_compile.patterns.pattern import Pattern

PATTERNS: tuple[Pattern, ...] = (FLASH_MHF,)

__all__ = ["FLASH_MHF", "PATTERNS", "Pattern"]
