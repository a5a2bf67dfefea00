"""polytask: one model, many tasks.

Importing this package imports neither torch nor any of the verbs: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Claim": "polytask.claim",
    "DataSet": "polytask.data",
    "Evidence": "polytask.claim",
    "Examples": "polytask.data",
    "InputError": "polytask.errors",
    "Mixture": "polytask.data",
    "Model": "polytask.model",
    "Paper": "polytask.paper",
    "PolytaskError": "polytask.errors",
    "Task": "polytask.task",
    "compare": "polytask.comparison",
    "evaluate": "polytask.training",
    "fit": "polytask.training",
    "load": "polytask.store",
    "load_table": "polytask.data.table",
    "multidigits": "polytask.data",
    "save": "polytask.store",
    "task_scope": "polytask.scope",
}
_MODULES = ("balance", "data", "measure", "merge", "nn", "papers", "route", "share", "shrink", "testing")

__all__ = ["__version__", *_HOMES, *_MODULES]

if TYPE_CHECKING:
    from polytask import balance as balance
    from polytask import data as data
    from polytask import measure as measure
    from polytask import merge as merge
    from polytask import nn as nn
    from polytask import papers as papers
    from polytask import route as route
    from polytask import share as share
    from polytask import shrink as shrink
    from polytask.claim import Claim as Claim
    from polytask.claim import Evidence as Evidence
    from polytask.comparison.compare import compare as compare
    from polytask.data import DataSet as DataSet
    from polytask.data import Examples as Examples
    from polytask.data import Mixture as Mixture
    from polytask.data import multidigits as multidigits
    from polytask.data.table import load_table as load_table
    from polytask.errors import InputError as InputError
    from polytask.errors import PolytaskError as PolytaskError
    from polytask.model import Model as Model
    from polytask.paper import Paper as Paper
    from polytask.scope import task_scope as task_scope
    from polytask.store import load as load
    from polytask.store import save as save
    from polytask.task import Task as Task
    from polytask.training import evaluate as evaluate
    from polytask.training import fit as fit


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"polytask.{name}")
    else:
        raise AttributeError(f"module 'polytask' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
