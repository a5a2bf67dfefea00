"""Reports: a comparison's results as one HTML page, a table for the terminal, a picture for a README; maps of embeddings."""

from polytask.report.embedding import embedding_map
from polytask.report.page import write_report
from polytask.report.picture import picture
from polytask.report.terminal import terminal_table

__all__ = ["embedding_map", "picture", "terminal_table", "write_report"]
