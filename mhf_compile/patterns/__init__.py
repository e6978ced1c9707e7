"""Patterns: each the eager formula of an op, read by the reader that reads the user's graph."""

from mhf_compile.patterns.flash_mhf import FLASH_MHF
from mhf_compile.patterns.pattern import Pattern
from mhf_compile.patterns.ungated_mhf import UNGATED_MHF

PATTERNS: tuple[Pattern, ...] = (FLASH_MHF, UNGATED_MHF)
"""The patterns, in the order in which they are tried."""

__all__ = ["FLASH_MHF", "PATTERNS", "UNGATED_MHF", "Pattern"]
