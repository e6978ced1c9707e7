"""The report: what was rewritten, what was left alone and why; as text, as a page, as JSON."""

from mhf_compile.report.report import Miss, Report, Rewrite

__all__ = ["Miss", "Report", "Rewrite"]
