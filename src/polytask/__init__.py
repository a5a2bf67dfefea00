"""polytask: one model, many tasks."""

__version__ = "0.1.0"
