"""Documents out of an OpenAPI 3 specification: one for each operation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from keyword import iskeyword
from pathlib import Path
from typing import Any

import yaml

from polytask.errors import InputError, quoted
from polytask.route.tools.document import Document, Endpoint, Parameter
from polytask.route.tools.schema import read_schema

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
READING = ("get", "head", "options")
"""The methods that change nothing. PUT and DELETE can be repeated too, but somebody is asked before they are sent."""


def read_openapi(source: Path | str | Mapping[str, Any], *, server: str = "") -> list[Document]:
    """The documents of a specification's operations.

    The name is the ``operationId``, or method and path; the module is the first tag, or the specification's title.
    Parameters come from the path, the query, headers and the fields of a JSON body, under names that Python can have;
    cookies and other bodies are not read, and an operation whose body must be of another kind is refused. Errors that it may
    give are told in the description.

    Args:
        source: a file in JSON or YAML, or what it holds.
        server: the address of the service, in place of the first of ``servers``; needed where that is relative.

    Raises:
        InputError: in one line that names the file and the place in it.
    """
    spec, name = (source, "specification") if isinstance(source, Mapping) else (_read(Path(source)), str(source))
    return list(_Specification(spec, name, server).documents())


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    try:
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: not valid JSON ({error.msg})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {where}not valid YAML ({getattr(error, 'problem', None) or error})") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply to be read") from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: {quoted(found)}, expected an OpenAPI specification, which is an object")
    return found


class _Specification:
    """A specification, its name in errors, and its server."""

    def __init__(self, spec: Mapping[str, Any], name: str, server: str) -> None:
        self.spec, self.name = spec, name
        version = str(spec.get("openapi", "none"))
        if not version.startswith("3."):
            raise InputError(f"{name}: openapi: version {quoted(version)}, expected 3.0 or newer")
        self.paths = self._mapping(spec.get("paths", {}), "paths")
        info = self._mapping(spec.get("info", {}), "info")
        self.title = str(info.get("title") or "")
        servers = spec.get("servers") or [{"url": "/"}]
        if not isinstance(servers, list) or not isinstance(servers[0], Mapping) or "url" not in servers[0]:
            raise InputError(f"{name}: servers: {quoted(servers)}, expected a list of objects with a url")
        self.server = server or str(servers[0]["url"])
        if not re.match(r"https?://", self.server):
            raise InputError(f"{name}: servers: {quoted(self.server)} is relative, expected server='https://...'")

    def documents(self) -> Iterator[Document]:
        seen: dict[tuple[str, str], str] = {}
        for path, item in self.paths.items():
            place = f"paths/{path}"
            item = self._resolved(self._mapping(item, place), place)
            for method in METHODS:
                if method not in item:
                    continue
                where = f"{place}/{method}"
                try:
                    document = self._document(str(path), item, method, where)
                except InputError as error:
                    text = str(error)
                    raise InputError(text if text.startswith(self.name) else f"{self.name}: {where}: {text}") from error
                key = (document.module, document.name)
                if key in seen:
                    raise InputError(f"{self.name}: {where}: is called {document.name!r} like {seen[key]}")
                seen[key] = where
                yield document

    def _document(self, path: str, item: Mapping[str, Any], method: str, place: str) -> Document:
        operation = self._mapping(item[method], place)
        taken: list[Parameter] = []
        places: dict[str, str] = {}
        for parameter, at in [*self._parameters(item, operation, place), *self._body(operation, place)]:
            name = _identifier(parameter.name)
            name = f"{at}_{name}" if name in places else name
            taken.append(replace(parameter, name=name))
            places[name] = at if name == parameter.name else f"{at} {parameter.name}"
        inside = {parameter.name for parameter, at in self._parameters(item, operation, place) if at == "path"}
        if missing := next((name for name in re.findall(r"{([^}]*)}", path) if name not in inside), None):
            raise InputError(f"{self.name}: {place}: the path's {{{missing}}} is not among its parameters")
        tags = operation.get("tags") or [self.title]
        identifier = str(operation.get("operationId") or f"{method}{path}")
        returns, errors = self._responses(operation, place)
        said = ". ".join(str(operation[key]).strip(" .\n") for key in ("summary", "description") if operation.get(key))
        return Document(
            name=_name(identifier),
            parameters=tuple(taken),
            description=f"{said}. Errors: {errors}." if errors else said,
            returns=returns,
            module=str(tags[0]) if isinstance(tags, list) else str(tags),
            idempotent=method in READING,
            endpoint=Endpoint(method.upper(), self.server.rstrip("/") + path, places),
        )

    def _parameters(
        self, item: Mapping[str, Any], operation: Mapping[str, Any], place: str
    ) -> Iterator[tuple[Parameter, str]]:
        """Of path, query and headers; an operation's own replace those of its path."""
        found: dict[tuple[str, str], tuple[Parameter, str]] = {}
        for holder, where in ((item, place.rsplit("/", 1)[0]), (operation, place)):
            listed = holder.get("parameters") or []
            if not isinstance(listed, list):
                raise InputError(f"{self.name}: {where}/parameters: {quoted(listed)}, expected a list")
            for number, value in enumerate(listed):
                at = f"{where}/parameters/{number}"
                value = self._resolved(self._mapping(value, at), at)
                name, kind = value.get("name"), value.get("in")
                if not isinstance(name, str) or kind not in ("path", "query", "header", "cookie"):
                    raise InputError(
                        f"{self.name}: {at}: {quoted(dict(value))}, expected a name and one of path, query, header"
                    )
                if kind == "cookie":
                    continue
                content = self._mapping(value.get("content") or {"": {}}, f"{at}/content")
                schema = value.get("schema") or self._mapping(next(iter(content.values()), {}), at).get("schema") or {}
                described = str(value.get("description") or "")
                required = kind == "path" or bool(value.get("required"))
                found[kind, name] = (self._read(name, schema, f"{at}/schema", required, described), kind)
        yield from found.values()

    def _body(self, operation: Mapping[str, Any], place: str) -> Iterator[tuple[Parameter, str]]:
        """The fields of a JSON object, or a body of another type as one parameter."""
        if not operation.get("requestBody"):
            return
        at = f"{place}/requestBody"
        body = self._resolved(self._mapping(operation["requestBody"], at), at)
        content = self._mapping(body.get("content", {}), f"{at}/content")
        kind = next((kind for kind in content if re.match(r"application/(.*\+)?json", kind)), None)
        if kind is None:
            if body.get("required"):
                raise InputError(f"{self.name}: {at}/content: {', '.join(content) or 'nothing'}, expected application/json")
            return
        inner = f"{at}/content/{kind}/schema"
        whole = self._read(
            "body",
            self._mapping(content[kind], f"{at}/content/{kind}").get("schema") or {},
            inner,
            bool(body.get("required")),
            "",
        )
        if whole.type != "object" or not whole.fields:
            yield whole, "json"
            return
        for field in whole.fields:
            needed = field.required and bool(body.get("required"))
            yield replace(field, required=needed), "body"

    def _responses(self, operation: Mapping[str, Any], place: str) -> tuple[Parameter | None, str]:
        """What a call gives, and the errors that it may end in."""
        responses = self._mapping(operation.get("responses", {}), f"{place}/responses")
        returns, errors = None, []
        for status, value in responses.items():
            at = f"{place}/responses/{status}"
            value = self._resolved(self._mapping(value, at), at)
            described = str(value.get("description") or "")
            if re.match(r"2..$", str(status)) and returns is None:
                content = self._mapping(value.get("content") or {}, f"{at}/content")
                schema = next((v.get("schema") for k, v in content.items() if "json" in k and isinstance(v, Mapping)), None)
                returns = self._read("result", schema or {}, f"{at}/content", False, described)
            elif re.match(r"[45]..$", str(status)):
                errors.append(f"{status} {described}".strip())
        return returns, "; ".join(errors)

    def _read(self, name: str, schema: Any, place: str, required: bool, description: str) -> Parameter:
        where = f"{self.name}: {place}"
        return read_schema(name, schema, where, required=required, description=description, resolve=self._at)

    def _at(self, schema: Mapping[str, Any], place: str) -> Mapping[str, Any]:
        return self._resolved(schema, place.removeprefix(f"{self.name}: "))

    def _resolved(self, value: Mapping[str, Any], place: str) -> Mapping[str, Any]:
        """What a ``$ref`` within the specification leads to, followed to its end."""
        passed: list[str] = []
        while "$ref" in value:
            reference = value["$ref"]
            if not isinstance(reference, str) or not reference.startswith("#/"):
                raise InputError(f"{self.name}: {place}/$ref: {quoted(reference)}, expected a place in this file, '#/...'")
            if reference in passed:
                raise InputError(f"{self.name}: {place}/$ref: {quoted(reference)} leads back to itself")
            passed.append(reference)
            found: Any = self.spec
            for key in reference[2:].split("/"):
                key = key.replace("~1", "/").replace("~0", "~")
                if not isinstance(found, Mapping) or key not in found:
                    raise InputError(f"{self.name}: {place}/$ref: {quoted(reference)} leads nowhere, there is no {key!r}")
                found = found[key]
            value = self._mapping(found, reference)
        return value

    def _mapping(self, value: Any, place: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise InputError(f"{self.name}: {place}: {quoted(value)}, expected an object")
        return value


def _name(identifier: str) -> str:
    """An identifier with what Python's names cannot have replaced."""
    return ".".join(_identifier(part) for part in identifier.split(".") if part.strip("_")) or "call"


def _identifier(name: str) -> str:
    """A name that Python can have."""
    plain = re.sub(r"\W+", "_", name).strip("_") or "value"
    return f"_{plain}" if plain[0].isdigit() else f"{plain}_" if iskeyword(plain) else plain
