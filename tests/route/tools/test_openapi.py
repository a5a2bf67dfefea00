"""OpenAPI specifications: what is read, and where an error is."""

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from polytask.errors import InputError
from polytask.route.tools import Document, read_openapi

SPEC: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "Shop", "version": "1"},
    "servers": [{"url": "https://shop.example/v1/"}],
    "paths": {
        "/orders/{order-id}": {
            "parameters": [{"$ref": "#/components/parameters/Order"}],
            "get": {
                "operationId": "getOrder",
                "summary": "Look an order up.",
                "tags": ["orders"],
                "parameters": [
                    {"name": "page[size]", "in": "query", "schema": {"type": "integer", "default": 10}},
                    {"name": "X-Key", "in": "header", "required": True, "schema": {"type": "string"}},
                    {"name": "session", "in": "cookie", "schema": {"type": "string"}},
                ],
                "responses": {
                    "200": {
                        "description": "It.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}},
                    },
                    "404": {"description": "No such order"},
                },
            },
            "put": {
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}},
                },
                "responses": {},
            },
        },
        "/names": {
            "post": {
                "operationId": "names",
                "requestBody": {"content": {"application/json": {"schema": {"type": "array", "items": {"type": "string"}}}}},
            }
        },
    },
    "components": {
        "parameters": {"Order": {"name": "order-id", "in": "path", "required": True, "schema": {"type": "string"}}},
        "schemas": {
            "Order": {
                "type": "object",
                "required": ["count"],
                "properties": {
                    "count": {"type": "integer", "enum": [1, 2]},
                    "class": {"type": ["string", "null"]},
                    "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Order"}},
                },
            }
        },
    },
}


def by_name(documents: list[Document]) -> dict[str, Document]:
    return {document.name: document for document in documents}


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_operations_become_documents(tmp_path: Path, name: str) -> None:
    text = json.dumps(SPEC) if name.endswith("json") else yaml.safe_dump(SPEC, sort_keys=False)
    (tmp_path / name).write_text(text)
    found = by_name(read_openapi(tmp_path / name))
    assert list(found) == ["getOrder", "put_orders_order_id", "names"]
    got = found["getOrder"]
    assert got.endpoint and got.endpoint.url == "https://shop.example/v1/orders/{order-id}" and got.endpoint.method == "GET"
    assert dict(got.endpoint.places) == {
        "order_id": "path order-id",
        "page_size": "query page[size]",
        "X_Key": "header X-Key",
    }
    assert [(p.name, p.type, p.required) for p in got.parameters] == [
        ("order_id", "string", True),
        ("page_size", "integer", False),
        ("X_Key", "string", True),
    ]
    assert got.description == "Look an order up. Errors: 404 No such order." and got.module == "orders" and got.idempotent
    assert got.returns and [field.name for field in got.returns.fields] == ["count", "class", "parts"]
    put = found["put_orders_order_id"]
    assert not put.idempotent and put.module == "Shop"
    assert [(p.name, p.type, p.required, p.choices) for p in put.parameters] == [
        ("order_id", "string", True, ()),
        ("count", "integer", True, (1, 2)),
        ("class_", "string", False, ()),
        ("parts", "array", False, ()),
    ]
    assert found["names"].endpoint and dict(found["names"].endpoint.places) == {"body": "json"}


def at(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The specification with another value at a place, whose keys are joined by blanks."""
    spec = copy.deepcopy(spec)
    *keys, last = path.split(" ")
    inner = spec
    for key in keys:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[last] = value
    return spec


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("openapi", "2.0", "openapi: version '2.0'"),
        ("paths", [], "paths: .*expected an object"),
        ("paths /names", 3, "paths//names: 3, expected an object"),
        ("paths /names post", "x", "paths//names/post: 'x'"),
        ("servers", [{}], "servers: "),
        ("servers", [{"url": "/v1"}], "servers: '/v1' is relative"),
        ("components parameters Order", {"name": "order-id"}, "paths//orders.*parameters/0: .*path, query"),
        ("components parameters Order name", "id", "path's {order-id} is not among"),
        ("components parameters Order schema", "text", "schema: 'text', expected a schema"),
        ("components schemas Order properties", [1], "properties: .*expected an object"),
        ("components schemas Order type", "thing", "type: 'thing', expected one of"),
        ("components schemas Order", {"$ref": "#/components/schemas/Order"}, "leads back to itself"),
        ("components schemas Order", {"$ref": "#/nowhere"}, "leads nowhere, there is no 'nowhere'"),
        ("components schemas Order", {"$ref": "other.yaml#/a"}, "expected a place in this file"),
        ("paths /names post operationId", "getOrder", "ok"),
        ("paths /names post tags", ["orders"], "ok"),
        (
            "paths /names post requestBody",
            {"required": True, "content": {"text/plain": {}}},
            "text/plain, expected application/json",
        ),
    ],
)
def test_an_error_names_the_place(path: str, value: Any, says: str) -> None:
    spec = at(SPEC, path, value)
    if says == "ok":
        assert read_openapi(spec)
        return
    with pytest.raises(InputError, match=says) as raised:
        read_openapi(spec)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("specification: ")


def test_two_operations_of_one_name_in_a_module_are_refused() -> None:
    spec = at(at(SPEC, "paths /names post operationId", "getOrder"), "paths /names post tags", ["orders"])
    with pytest.raises(InputError, match="is called 'getOrder' like"):
        read_openapi(spec)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, text, says in [
        ("a.json", '{"openapi": "3.0.0",\n', "line 2: not valid JSON"),
        ("a.yaml", "openapi: [3\npaths: }", "line 2: not valid YAML"),
        ("b.yaml", "just words", "expected an OpenAPI specification"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=says):
            read_openapi(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_openapi(tmp_path / "none.yaml")


def test_any_part_may_be_of_any_kind() -> None:
    """Whatever stands in place of a part, there are documents or one clear error."""

    def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
        if path:
            yield path
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            yield from places(inner, (*path, key))

    for path in places(SPEC):
        for wrong in (None, 3, "x", [], {}, [None], {"a": None}, True):
            spec = copy.deepcopy(SPEC)
            inner: Any = spec
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = wrong
            with contextlib.suppress(InputError):
                read_openapi(spec)
