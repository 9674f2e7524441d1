"""One self-contained HTML page, or a folder of CSV and PNG files, from the record of a run."""

from pullback.report.run.figures import write_figures
from pullback.report.run.page import write_report

__all__ = ["write_figures", "write_report"]
