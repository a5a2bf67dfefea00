"""Documents out of Python functions: the signature gives names and types, the docstring what they mean."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from polytask.errors import InputError
from polytask.route.tools.document import Document, Parameter

SIMPLE: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", tuple: "array",
                          set: "array", dict: "object", type(None): "any"}  # fmt: skip


def document_of(
    function: Callable[..., Any], *, name: str = "", module: str = "", idempotent: bool = True, composition: str = ""
) -> Document:
    """The document of a function.

    The docstring's sections ``Args``, ``Returns`` and ``Example`` are read as Google's style has them, anything else is the
    description. Types come from annotations: without one, or with one that JSON has no word for, a value of any type is
    taken. ``Literal`` gives the choices.

    Args:
        function: takes named arguments; ``*args``, ``**kwargs`` and positional-only ones are refused, as no call by names
            can give them.
        name: by default the function's.
        module: by default none.
        idempotent: whether it may be called without asking anybody.
        composition: rules of order and combination with other APIs.
    """
    name = name or function.__name__
    described, args, returns, examples = _sections(inspect.getdoc(function) or "")
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # an annotation that cannot be evaluated says nothing
        hints = {}
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InputError(f"{name}: parameter {parameter.name!r} has no name to call it by, expected named parameters")
        needed = parameter.default is parameter.empty
        default = None if needed else parameter.default
        text = args.get(parameter.name, "")
        parameters.append(_typed(parameter.name, hints.get(parameter.name, Any), text, needed, default))
    gives = _typed("result", hints.get("return", Any), returns, False, None)
    return Document(name, tuple(parameters), described, gives, tuple(examples), composition, module, idempotent)


def _typed(name: str, hint: Any, description: str, required: bool, default: Any) -> Parameter:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        several = [one for one in inner if one is not type(None)]
        if len(several) > 1:
            return Parameter(name, "any", description, required, default)
        return _typed(name, several[0], description, required, default)
    if origin is Literal:
        kinds = {SIMPLE.get(type(choice), "any") for choice in inner}
        return Parameter(name, kinds.pop() if len(kinds) == 1 else "any", description, required, default, inner)
    plain = origin or hint
    if isinstance(plain, type) and plain not in SIMPLE and not issubclass(plain, str):
        if issubclass(plain, Mapping):
            plain = dict
        elif issubclass(plain, Sequence):
            plain = list
    kind = SIMPLE.get(plain, "any") if isinstance(plain, type) else "any"
    items = _typed("item", inner[0], "", False, None) if kind == "array" and inner else None
    return Parameter(name, kind, description, required, default, items=items)


def _sections(text: str) -> tuple[str, dict[str, str], str, list[str]]:
    """Description, arguments, returns and examples of a docstring."""
    parts = re.split(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?):\s*$", text, flags=re.MULTILINE)
    described, args, returns, examples = " ".join(parts[0].split()), {}, "", []
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        body = inspect.cleandoc("\n" + body)
        if title in ("Args", "Arguments", "Parameters"):
            for found in re.finditer(r"^(\w+)[^:\n]*:\s*((?:.*\n?)(?:[ \t]+.*\n?)*)", body, re.MULTILINE):
                args[found[1]] = " ".join(found[2].split())
        elif title in ("Returns", "Yields"):
            returns = " ".join(body.split())
        elif title == "Raises":
            described += f" Errors: {' '.join(body.split())}"
        else:
            examples += [line.removeprefix(">>> ").strip() for line in body.splitlines() if line.strip()]
    return described, args, returns, examples
