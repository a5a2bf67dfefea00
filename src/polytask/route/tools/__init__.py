"""The tool platform of TaskMatrix.AI (Liang et al., 2023): documented APIs, found for a request, and called safely.

`Registry` keeps documents, selectors find those that fit (`Lexical`, `Embedding`, `Hybrid`, `ModuleFirst`), a planner
writes calls (`Rules`, `ChatPlanner`, `Given`), an `Executor` makes them; `Platform` is all of it in one loop.
"""

from polytask.route.tools.calls import Call, Reference, bind, mismatch, parse_call
from polytask.route.tools.chat import Chat, ChatPlanner
from polytask.route.tools.document import Document, Endpoint, Parameter
from polytask.route.tools.embedding import Centroids, Embedding, sentence_embedder
from polytask.route.tools.execution import Executor, Limits, Outcome, ordered
from polytask.route.tools.feedback import fit_weights, learn_from_failures, reciprocal_rank
from polytask.route.tools.functions import document_of
from polytask.route.tools.isolation import CallError
from polytask.route.tools.lexical import Lexical
from polytask.route.tools.matching import matches
from polytask.route.tools.openapi import read_openapi
from polytask.route.tools.planning import Given, Planner, Rules, Step
from polytask.route.tools.platform import Attempt, Completed, Platform
from polytask.route.tools.registry import Registry
from polytask.route.tools.schema import read_function, read_schema
from polytask.route.tools.selection import Hit, Hybrid, ModuleFirst, Selection, Selector
from polytask.route.tools.vectors import VectorIndex

__all__ = [
    "Attempt", "Call", "CallError", "Centroids", "Chat", "ChatPlanner", "Completed", "Document",
    "Embedding", "Endpoint", "Executor", "Given", "Hit", "Hybrid", "Lexical", "Limits", "ModuleFirst", "Outcome",
    "Parameter", "Planner", "Platform", "Reference", "Registry", "Rules", "Selection", "Selector", "Step", "VectorIndex",
    "bind", "document_of", "fit_weights", "learn_from_failures", "matches", "mismatch", "ordered", "parse_call",
    "read_function", "read_openapi", "read_schema", "reciprocal_rank", "sentence_embedder",
]  # fmt: skip
