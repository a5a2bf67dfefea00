"""Tasks: `Task` and the kinds that come with polytask."""

from polytask.task._task import MISSING, MetricSpec, Task, check_unique
from polytask.task.dense import PixelBinary, Segmentation
from polytask.task.labels import Binary, Classification, Multilabel, Ordinal
from polytask.task.values import PixelRegression, Regression

__all__ = [
    "MISSING",
    "Binary",
    "Classification",
    "MetricSpec",
    "Multilabel",
    "Ordinal",
    "PixelBinary",
    "PixelRegression",
    "Regression",
    "Segmentation",
    "Task",
    "check_unique",
]
