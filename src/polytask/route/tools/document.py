"""What a tool says of itself: the document of an API, with the five fields of TaskMatrix.AI (Liang et al., 2023)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from polytask.errors import InputError, quoted, suggest

TYPES = ("string", "integer", "number", "boolean", "array", "object", "any")
"""The types of parameters, by the names of JSON Schema."""

SYNONYMS = {"dict": "object", "float": "number", "tuple": "array", "list": "array", "int": "integer", "str": "string",
            "bool": "boolean", "double": "number", "null": "any"}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """A named value that an API takes or returns.

    Args:
        name: its name.
        type: one of `TYPES`; also ``dict``, ``float``, ``tuple`` and the like, which become these.
        description: what it is.
        required: whether a call must give it.
        default: what the API takes where it is left out; for the reader, it is not filled in.
        choices: the only values allowed; none for any.
        items: what the elements of an array are.
        fields: what an object holds; none for anything.
    """

    name: str
    type: str = "any"
    description: str = ""
    required: bool = False
    default: Any = None
    choices: tuple[Any, ...] = ()
    items: Parameter | None = None
    fields: tuple[Parameter, ...] = ()

    def __post_init__(self) -> None:
        kind = SYNONYMS.get(self.type, self.type)
        if kind not in TYPES:
            raise InputError(f"parameter {self.name!r}: unknown type {self.type!r}: {suggest(str(self.type), TYPES)}")
        object.__setattr__(self, "type", kind)


@dataclass(frozen=True)
class Endpoint:
    """Where an API is reached by HTTP.

    Args:
        method: ``"GET"``, ``"POST"``, ...
        url: with the path's parameters in braces.
        places: of each parameter ``"path"``, ``"query"``, ``"header"``, ``"body"`` (a field of a JSON object) or ``"json"``
            (the whole body), and after a space what it is called there, where that is something else: ``"header X-Key"``.
    """

    method: str
    url: str
    places: Mapping[str, str]


@dataclass(frozen=True)
class Document:
    """An API as planners, selectors and executors know it.

    Args:
        name: what it is called by, as ``"math.factorial"``.
        parameters: what it takes, in the order in which positional arguments are bound.
        description: what it does, what it takes and gives, and which errors to expect.
        returns: what it gives.
        examples: requests that it answers, or calls of it.
        composition: rules of order and combination with other APIs, as "close it afterwards".
        module: the package that it belongs to; names are unique within a module.
        idempotent: whether it may be called without asking anybody: calling it twice does no harm.
        endpoint: where it is reached, if by HTTP; else it is a function that an executor is given.
    """

    name: str
    parameters: tuple[Parameter, ...] = ()
    description: str = ""
    returns: Parameter | None = None
    examples: tuple[str, ...] = ()
    composition: str = ""
    module: str = ""
    idempotent: bool = True
    endpoint: Endpoint | None = None

    def __post_init__(self) -> None:
        if not self.name or any(not part.isidentifier() for part in self.name.split(".")):
            raise InputError(f"API name {quoted(self.name)}, expected names joined by dots, as 'math.factorial'")
        seen = [parameter.name for parameter in self.parameters]
        if twice := next((name for name in seen if seen.count(name) > 1), None):
            raise InputError(f"API {self.name}: two parameters are called {twice!r}")

    def but(self, **changes: Any) -> Document:
        """This document with other values in some fields."""
        return replace(self, **changes)

    def parameter(self, name: str) -> Parameter:
        """The parameter of this name; `InputError` with the nearest name where there is none."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        known = [parameter.name for parameter in self.parameters]
        raise InputError(f"{self.name}: unknown parameter {name!r}: {suggest(name, known) if known else 'it takes none'}")

    def columns(self) -> dict[str, str]:
        """The texts that lexical search reads, by field; names are also given word by word."""
        taken = " ".join(f"{words_of(name)} {description}" for name, description in _described(self.parameters))
        given = " ".join(f"{words_of(name)} {text}" for name, text in _described([self.returns] if self.returns else []))
        return {
            "name": words_of(self.name),
            "description": words_of(f"{self.description} {self.composition}"),
            "parameters": words_of(f"{taken} {given}"),
            "module": words_of(self.module),
            "examples": words_of(" ".join(self.examples)),
        }

    def texts(self) -> list[str]:
        """The texts that are embedded: the document, then each usage example by itself."""
        found = self.columns()
        whole = ". ".join(found[name] for name in ("name", "description", "module", "parameters") if found[name])
        return [whole, *self.examples]

    def signature(self) -> str:
        """One line for a prompt: ``open_file(path: string, mode: string = "r") -> object``."""
        taken = ", ".join(_signed(parameter) for parameter in self.parameters)
        return f"{self.name}({taken})" + (f" -> {self.returns.type}" if self.returns else "")

    def to_json(self) -> str:
        """As a JSON object without what is empty; `from_json` reads it."""
        return json.dumps(_plain(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Document:
        """The document that `to_json` wrote; `InputError` for anything else."""
        try:
            found = json.loads(text)
            found["parameters"] = tuple(_parameter(value) for value in found.get("parameters", ()))
            found["examples"] = tuple(found.get("examples", ()))
            if found.get("returns"):
                found["returns"] = _parameter(found["returns"])
            if found.get("endpoint"):
                found["endpoint"] = Endpoint(**{"places": {}, **found["endpoint"]})
            return cls(**found)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(f"document {quoted(text)}: not one of an API ({error})") from error


_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_JOINTS = re.compile(r"[\s_./\\-]+")


def words_of(text: str) -> str:
    """A text with its names taken apart: ``getUserById`` and ``get_user`` become words."""
    return _JOINTS.sub(" ", text if text.islower() else _HUMPS.sub(" ", text)).strip()


def _described(parameters: Sequence[Parameter]) -> list[tuple[str, str]]:
    """Names and descriptions, those inside objects and arrays too."""
    found = []
    for parameter in parameters:
        inner = [*parameter.fields, *([parameter.items] if parameter.items else [])]
        found += [(parameter.name, parameter.description), *_described(inner)]
    return found


def _signed(parameter: Parameter) -> str:
    of = f"[{parameter.items.type}]" if parameter.items else ""
    kind = f"{parameter.type}{of}" if not parameter.choices else " | ".join(json.dumps(c) for c in parameter.choices)
    return f"{parameter.name}: {kind}" + ("" if parameter.required else f" = {json.dumps(parameter.default, default=str)}")


def _plain(value: Any) -> Any:
    """As JSON has it, without what is as it would be by default."""
    kind = type(value)
    if kind in _SIMPLE:
        return value
    if kind in _DEFAULTS:
        found = vars(value)
        changed = ((name, found[name]) for name, default in _DEFAULTS[kind] if found[name] is not default)
        return {name: _plain(inner) for name, inner in changed if name == "default" or inner not in ((), "")}
    if kind in (tuple, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


_SIMPLE = {str, int, float, bool, type(None)}
_DEFAULTS = {kind: [(one.name, one.default) for one in fields(kind)] for kind in (Document, Parameter, Endpoint)}


def _parameter(value: Mapping[str, Any]) -> Parameter:
    found = dict(value)
    found["choices"] = tuple(found.get("choices", ()))
    found["fields"] = tuple(_parameter(inner) for inner in found.get("fields", ()))
    if found.get("items"):
        found["items"] = _parameter(found["items"])
    return Parameter(**found)
