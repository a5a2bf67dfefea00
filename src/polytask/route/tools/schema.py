"""JSON Schema as parameters: what OpenAPI, function-calling formats and catalogues describe values by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from polytask.errors import InputError, quoted
from polytask.route.tools.document import SYNONYMS, TYPES, Document, Parameter

DEPTH = 6
"""How deep objects in objects are read; what lies deeper is of type ``any``, and so ends a schema that holds itself."""

Resolve = Callable[[Mapping[str, Any], str], Mapping[str, Any]]
"""From a schema that may be a reference, and its place, to the schema."""


def read_schema(
    name: str,
    schema: Any,
    place: str,
    *,
    required: bool = False,
    description: str = "",
    resolve: Resolve = lambda schema, place: schema,
    depth: int = 0,
) -> Parameter:
    """The parameter that a schema describes.

    Read are ``type``, ``description``, ``default``, ``enum``, ``items``, ``properties`` and ``required``; ``allOf`` is
    merged, and ``anyOf`` and ``oneOf`` are of type ``any``. Anything else that JSON Schema has is not checked.

    Args:
        name: of the parameter.
        schema: the schema, a mapping.
        place: where it stands, for errors.
        required: whether a call must give it.
        description: in place of the schema's own.
        resolve: follows a ``$ref``.
        depth: how many objects it lies in.
    """
    if not isinstance(schema, Mapping):
        raise InputError(f"{place}: {quoted(schema)}, expected a schema, which is an object")
    schema = resolve(schema, place)
    described = description or str(schema.get("description") or "")
    if depth > DEPTH:
        return Parameter(name, "any", described, required)
    if "allOf" in schema:
        schema = _merged(schema, place, resolve)
    kind = schema.get("type", "object" if "properties" in schema else "any")
    if isinstance(kind, list):  # as ["string", "null"]
        several = [one for one in kind if one != "null"]
        kind = several[0] if len(several) == 1 else "any"
    if not isinstance(kind, str) or SYNONYMS.get(kind, kind) not in TYPES:
        raise InputError(f"{place}/type: {quoted(kind)}, expected one of {', '.join(TYPES)}")
    needed = schema.get("required") or ()
    inner = schema.get("properties") or {}
    if not isinstance(inner, Mapping):
        raise InputError(f"{place}/properties: {quoted(inner)}, expected an object")
    items = None
    if isinstance(schema.get("items"), Mapping) and schema["items"]:
        items = read_schema("item", schema["items"], f"{place}/items", resolve=resolve, depth=depth + 1)
    choices = schema.get("enum") or ()
    if not isinstance(choices, list | tuple):
        raise InputError(f"{place}/enum: {quoted(choices)}, expected a list")
    return Parameter(
        name,
        kind,
        described,
        required,
        schema.get("default"),
        tuple(choices),
        items,
        tuple(
            read_schema(key, value, f"{place}/properties/{key}", required=isinstance(needed, list) and key in needed,
                        resolve=resolve, depth=depth + 1)
            for key, value in inner.items()
        ),
    )  # fmt: skip


def read_function(function: Mapping[str, Any], module: str = "", returns: str = "response") -> Document:
    """The document of a function in the format of function calling: name, description, and ``parameters`` as a schema.

    Args:
        function: as chat endpoints are given it, ``{"name": ..., "description": ..., "parameters": {...}}``.
        module: the document's module.
        returns: the key below which the schema of what it gives is, if anywhere.
    """
    name = str(function.get("name"))
    whole = read_schema(name, function.get("parameters") or {"type": "object"}, f"{name}/parameters")
    given = read_schema("result", function[returns], f"{name}/{returns}") if function.get(returns) else None
    return Document(name, whole.fields, str(function.get("description") or ""), given, module=module)


def _merged(schema: Mapping[str, Any], place: str, resolve: Resolve) -> Mapping[str, Any]:
    """A schema with all that its ``allOf`` says."""
    merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
    if not isinstance(schema["allOf"], list):
        raise InputError(f"{place}/allOf: {quoted(schema['allOf'])}, expected a list of schemas")
    properties: dict[str, Any] = {}
    required: list[Any] = []
    schema = {**schema, "allOf": [*schema["allOf"], {k: v for k, v in schema.items() if k in ("properties", "required")}]}
    for number, part in enumerate(schema["allOf"]):
        if not isinstance(part, Mapping):
            raise InputError(f"{place}/allOf/{number}: {quoted(part)}, expected a schema, which is an object")
        part = resolve(part, f"{place}/allOf/{number}")
        inner, needed = part.get("properties") or {}, part.get("required") or []
        if not isinstance(inner, Mapping) or not isinstance(needed, list):
            raise InputError(
                f"{place}/allOf/{number}: {quoted(dict(part))}, expected properties and a list of required ones"
            )
        properties |= inner
        required += needed
        merged = {**{k: v for k, v in part.items() if k not in ("allOf", "properties", "required")}, **merged}
    return {**merged, **({"properties": properties} if properties else {}), "required": required}
