"""Planners: an outline of a request, and for each of its steps a call. One needs no model; another is given everything."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from polytask.route.tools.calls import Call, Reference, fits, mismatch
from polytask.route.tools.document import Document, Parameter, words_of


@dataclass(frozen=True)
class Step:
    """A part of a solution outline.

    Args:
        name: what its result is called.
        intent: what it is to do, in words.
        needs: the steps whose results it uses.
    """

    name: str
    intent: str
    needs: tuple[str, ...] = ()


class Planner(Protocol):
    """Turns requests into outlines and steps into calls.

    It is told what earlier steps give by their documents, and never what they gave: a result is data, and no text in it
    can reach a planner.
    """

    def outline(self, request: str, context: Sequence[str]) -> list[Step]:
        """The steps of a request, with what was said before."""
        ...

    def call(self, step: Step, documents: Sequence[Document], results: Mapping[str, Parameter | None], problem: str) -> str:
        """The text of a call (`polytask.route.tools.parse_call`) of one of the documents, the best of which comes first.

        ``problem`` says in our own words why the last call of this step gave nothing; it is empty at first.
        """
        ...


class Given:
    """A planner that was told the outline and the calls: to try selector and executor alone.

    Args:
        steps: the outline.
        calls: the text of each step's call, by the step's name.
    """

    def __init__(self, steps: Sequence[Step], calls: Mapping[str, str]) -> None:
        self.steps, self.calls = list(steps), dict(calls)

    def outline(self, request: str, context: Sequence[str]) -> list[Step]:
        return self.steps

    def call(self, step: Step, documents: Sequence[Document], results: Mapping[str, Parameter | None], problem: str) -> str:
        return self.calls[step.name]


class Rules:
    """A planner that needs no model: a request is split at its sentences, and parameters are found by their names and types.

    A step is a sentence, or what stands between ``;`` and ``then``. Its call is one of the first document for which all
    that is required was found, in this order: after the parameter's name (``city: Ghent``, ``city is "Ghent"``), a choice
    that occurs, an earlier result where the step speaks of one ("it", "the result", a step's name), and what remains in
    quotation marks or digits, by type and in order. A document for which that fails is passed over; after a problem
    the next one is taken.
    """

    SPLIT = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])|\s*;\s*(?:then\s+)?|\n+|,?\s+(?:and\s+)?then\s+", re.IGNORECASE)
    BACK = re.compile(r"\b(it|its|them|that|this|the result|the results|the output)\b", re.IGNORECASE)

    def __init__(self) -> None:
        self._tried: dict[str, int] = {}

    def outline(self, request: str, context: Sequence[str]) -> list[Step]:
        self._tried = {}
        parts = [part.strip(" .,") for part in self.SPLIT.split(request)]
        steps: list[Step] = []
        for part in (part for part in parts if part):
            named = [step.name for step in steps if re.search(rf"\b{step.name}\b", part)]
            needs = named or ([steps[-1].name] if steps and self.BACK.search(part) else [])
            steps.append(Step(f"step{len(steps) + 1}", part, tuple(needs)))
        return steps

    def call(self, step: Step, documents: Sequence[Document], results: Mapping[str, Parameter | None], problem: str) -> str:
        first = self._tried.get(step.name, 0) if problem else 0
        for place in range(first, len(documents)):
            given = fill(step, documents[place], results)
            if all(parameter.name in given for parameter in documents[place].parameters if parameter.required):
                self._tried[step.name] = place + 1
                return str(Call(documents[place].name, named=given))
        return ""


def fill(step: Step, document: Document, results: Mapping[str, Parameter | None]) -> dict[str, Any]:
    """The arguments that a step's words give for a document's parameters; those that were not found are left out."""
    text, found = step.intent, {}
    for parameter in document.parameters:
        name = r"[\s_-]+".join(re.escape(word) for word in words_of(parameter.name).split())
        value_of = r"(\"[^\"]*\"|'[^']*'|\[[^\]]*\]|[^\s,;]+)"
        said = re.search(rf"\b{name}\b\s*(?:=|:|\bis\b|\bof\b|\bto\b|\bas\b)?\s*{value_of}", text, re.IGNORECASE)
        if said and (value := _read(said[1], parameter)) is not None:
            found[parameter.name] = value
            text = text[: said.start()] + " " + text[said.end() :]
    for parameter in document.parameters:
        for choice in parameter.choices if parameter.name not in found else ():
            if re.search(rf"\b{re.escape(str(choice))}\b", text, re.I):
                found[parameter.name] = choice
                break
    wanting = [p for p in document.parameters if p.required and p.name not in found]
    for name in step.needs:
        gives = results.get(name)
        if wanting and name in results and (gives is None or fits(gives.type, wanting[0].type)):
            found[wanting.pop(0).name] = Reference(name)
    pieces = re.findall(r"\"[^\"]*\"|(?<!\w)'[^']*'|(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\w)", text)
    for parameter in [*wanting, *(p for p in document.parameters if not p.required and p.name not in found)]:
        for piece in pieces:
            value = _read(piece, parameter) if parameter.type != "any" else None
            if value is not None and (piece[0] in "\"'") == isinstance(value, str):
                found[parameter.name] = value
                pieces.remove(piece)
                break
    return found


def _read(text: str, parameter: Parameter) -> Any:
    """A value of the parameter's type out of a piece of text, or ``None``."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if parameter.type == "boolean" and isinstance(value, str):
        value = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(value.lower())
    if parameter.type in ("string", "any") and not isinstance(value, str):
        value = text if parameter.type == "string" else value
    if parameter.type == "array" and not isinstance(value, list):
        value = [value]
    return None if mismatch(value, parameter) else value
