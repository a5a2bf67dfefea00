"""Tables: files read, columns' kinds inferred, targets made tasks, preprocessing fitted, leaks named."""

from polytask.data.table.columns import Category, Number, Text
from polytask.data.table.kinds import KINDS, infer_kind
from polytask.data.table.leaks import find_leaks
from polytask.data.table.load import load_table
from polytask.data.table.read import Chunk, Reads, first_fields, read_rows, read_table, readable
from polytask.data.table.schema import Schema
from polytask.data.table.split import SPLITS, split_rows
from polytask.data.table.targets import FEW, TARGET_KINDS, check_classes, describe, labels, target_task

__all__ = [
    "FEW",
    "KINDS",
    "SPLITS",
    "TARGET_KINDS",
    "Category",
    "Chunk",
    "Number",
    "Reads",
    "Schema",
    "Text",
    "check_classes",
    "describe",
    "find_leaks",
    "first_fields",
    "infer_kind",
    "labels",
    "load_table",
    "read_rows",
    "read_table",
    "readable",
    "split_rows",
    "target_task",
]
