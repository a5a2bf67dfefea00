"""Action code: calls in a grammar of literals, which is parsed and never evaluated."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytask.errors import InputError, quoted, suggest
from polytask.route.tools.document import Document, Parameter

LONGEST = 20_000
"""Characters of a call's text; longer ones are refused unread."""


@dataclass(frozen=True)
class Reference:
    """The result of an earlier call, or something inside it: ``step1``, ``step1["items"][0]``."""

    name: str
    path: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        return self.name + "".join(f"[{key!r}]" for key in self.path)

    def of(self, results: Mapping[str, Any]) -> Any:
        """What it stands for; `InputError` where there is nothing of that kind."""
        if self.name not in results:
            raise InputError(f"{self}: there is no result of that name")
        value = results[self.name]
        for key in self.path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                raise InputError(f"{self}: there is no {key!r} in the result of {self.name}") from error
        return value


@dataclass(frozen=True)
class Call:
    """A call of an API, not yet made.

    Attributes:
        function: the API's name.
        positional, named: its arguments: literals, lists, dictionaries and `Reference` objects.
        name: what later calls refer to its result by; empty for none.
    """

    function: str
    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def needs(self) -> set[str]:
        """The names of the results that it refers to."""
        return {found.name for found in _references([*self.positional, *self.named.values()])}

    def __str__(self) -> str:
        given = [*(_shown(value) for value in self.positional), *(f"{k}={_shown(v)}" for k, v in self.named.items())]
        return f"{self.name} = " * bool(self.name) + f"{self.function}({', '.join(given)})"


def parse_call(text: str) -> Call:
    """A call out of its text: ``open_file(path="a.txt", mode="r")``, or ``step1 = ...`` to name the result.

    Allowed are names joined by dots, positional and named arguments, constants, lists, dictionaries, tuples (which become
    lists), a sign before a number, and the names of earlier results with constant indices. Nothing is evaluated.

    Raises:
        InputError: for anything else, with what it was.
    """
    if len(text) > LONGEST:
        raise InputError(f"call of {len(text)} characters, expected at most {LONGEST}")
    try:
        body = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"call {quoted(text)}: not an expression ({getattr(error, 'msg', None) or error})") from error
    if len(body) != 1:
        raise InputError(f"call {quoted(text)}: {len(body)} statements, expected one call")
    statement, name = body[0], ""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        name = statement.targets[0].id
    elif not isinstance(statement, ast.Expr):
        raise InputError(f"call {quoted(text)}: {type(statement).__name__}, expected one call")
    node = statement.value
    if not isinstance(node, ast.Call):
        raise InputError(f"call {quoted(text)}: {type(node).__name__}, expected a call")
    named: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise InputError(f"call {quoted(text)}: **, expected named arguments")
        if keyword.arg in named:
            raise InputError(f"call {quoted(text)}: {keyword.arg!r} is given twice")
        named[keyword.arg] = _literal(keyword.value, text)
    return Call(_dotted(node.func, text), tuple(_literal(value, text) for value in node.args), named, name)


def bind(call: Call, document: Document, results: Mapping[str, Parameter | None] | None = None) -> dict[str, Any]:
    """A call's arguments by name, checked against the document; positional ones are bound in the document's order.

    An integer is accepted for a number, and not the other way round; a boolean is neither. What a reference stands for is
    checked by what the earlier call's document says, and by the executor when it is known.

    Args:
        call: the call.
        document: of the API that it names.
        results: what earlier calls give, by name, as their documents say; by default any reference is accepted.

    Raises:
        InputError: for a parameter that is missing, unknown, given twice, or of another type.
    """
    if len(call.positional) > len(document.parameters):
        raise InputError(f"{document.name}: {len(call.positional)} arguments, expected at most {len(document.parameters)}")
    given: dict[str, Any] = {}
    for parameter, value in zip(document.parameters, call.positional, strict=False):
        given[parameter.name] = value
    for name, value in call.named.items():
        if name in given:
            raise InputError(f"{document.name}: {name!r} is given twice")
        document.parameter(name)
        given[name] = value
    for parameter in document.parameters:
        if parameter.required and parameter.name not in given:
            raise InputError(f"{document.name}: {parameter.name!r} is missing, expected a {parameter.type}")
    for name, value in given.items():
        for reference in _references([value]):
            if results is not None and reference.name not in results:
                known = suggest(reference.name, results) if results else "there are no earlier results"
                raise InputError(f"{document.name}: {name}: {reference.name!r} is not an earlier result: {known}")
        parameter = document.parameter(name)
        if isinstance(value, Reference):
            gives = (results or {}).get(value.name)
            if gives is not None and not value.path and not fits(gives.type, parameter.type):
                raise InputError(f"{document.name}: {name}: {value} is of type {gives.type}, expected {parameter.type}")
        elif problem := mismatch(value, parameter):
            raise InputError(f"{document.name}: {name}{problem}")
    return given


def resolve(value: Any, results: Mapping[str, Any]) -> Any:
    """An argument with what its references stand for, which is taken as it is: text in a result is never looked into."""
    if isinstance(value, Reference):
        return value.of(results)
    if isinstance(value, list):
        return [resolve(inner, results) for inner in value]
    if isinstance(value, dict):
        return {key: resolve(inner, results) for key, inner in value.items()}
    return value


def mismatch(value: Any, parameter: Parameter) -> str:
    """What is wrong with a value, as the end of a sentence that begins with its name; empty where nothing is.

    ``None`` stands for what is left out, and is accepted where the parameter may be.
    """
    if isinstance(value, Reference) or (value is None and not parameter.required):
        return ""
    check: Callable[[Any], bool] = CHECKS[parameter.type]
    if not check(value):
        return f": {quoted(value)}, expected {_a(parameter.type)}"
    if parameter.choices and value not in parameter.choices:
        return f": {quoted(value)}, expected one of {', '.join(repr(choice) for choice in parameter.choices)}"
    if parameter.type == "array" and parameter.items:
        for place, inner in enumerate(value):
            if problem := mismatch(inner, parameter.items):
                return f"[{place}]{problem}"
    if parameter.type == "object" and parameter.fields:
        for one in parameter.fields:
            if one.name not in value and one.required:
                return f": {one.name!r} is missing, expected {_a(one.type)}"
            if one.name in value and (problem := mismatch(value[one.name], one)):
                return f"[{one.name!r}]{problem}"
    return ""


CHECKS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list | tuple),
    "object": lambda value: isinstance(value, dict),
    "any": lambda value: True,
}


def fits(given: str, wanted: str) -> bool:
    """Whether a value of one type can stand where another is expected."""
    return "any" in (given, wanted) or given == wanted or (given, wanted) == ("integer", "number")


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aio' else 'a'} {kind}" if kind != "any" else "a value"


def _dotted(node: ast.expr, text: str) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, text)}.{node.attr}"
    raise InputError(f"call {quoted(text)}: {type(node).__name__} in place of a name, expected a name")


def _literal(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None):
            return node.value
        case ast.List() | ast.Tuple():
            return [_literal(inner, text) for inner in node.elts]
        case ast.Dict():
            keys = [_literal(key, text) if key else None for key in node.keys]
            if None in node.keys or not all(isinstance(key, str | int | float | None) for key in keys):
                raise InputError(f"call {quoted(text)}: a dictionary's keys have to be constants")
            return dict(zip(keys, (_literal(inner, text) for inner in node.values), strict=True))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float() as value)) if not isinstance(
            value, bool
        ):
            return -value if isinstance(node.op, ast.USub) else value
        case ast.Name():
            return Reference(node.id)
        case ast.Subscript(value=inner, slice=ast.Constant(value=str() | int() as key)):
            before = _literal(inner, text)
            if isinstance(before, Reference):
                return Reference(before.name, (*before.path, key))
    raise InputError(f"call {quoted(text)}: {type(node).__name__} is not allowed, expected literals and earlier results")


def _references(values: Sequence[Any]) -> Iterator[Reference]:
    for value in values:
        if isinstance(value, Reference):
            yield value
        elif isinstance(value, list):
            yield from _references(value)
        elif isinstance(value, dict):
            yield from _references(list(value.values()))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_shown(inner) for inner in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_shown(inner)}' for key, inner in value.items())}}}"
    return str(value) if isinstance(value, Reference) else repr(value)
