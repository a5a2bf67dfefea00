"""Reports: a comparison's results as one HTML page, a table for the terminal, and a picture for a README."""

from polytask.report.page import write_report
from polytask.report.picture import picture
from polytask.report.terminal import terminal_table

__all__ = ["picture", "terminal_table", "write_report"]
