"""Reports of an evaluation: one gathering of its figures, and what is written of it as JSON, as Markdown and as a page."""

from .writing import FIGURES_FILE, MARKDOWN_FILE, PAGE_FILE, ReportFiles, told_of_report, write_report

__all__ = ["FIGURES_FILE", "MARKDOWN_FILE", "PAGE_FILE", "ReportFiles", "told_of_report", "write_report"]
