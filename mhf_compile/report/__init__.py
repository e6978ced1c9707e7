"""The report: what was rewritten, what was left alone and why; as text, as a page, as JSON."""

from mhf_compile.report.data import Miss, Rewrite
from mhf_compile.report.report import Report

__all__ = ["Miss", "Report", "Rewrite"]
