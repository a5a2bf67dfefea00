"""Whether a call is a right one, by the rule of the Berkeley Function-Calling Leaderboard (Patil et al., ICML 2025)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from polytask.errors import InputError
from polytask.route.tools.calls import Call, bind
from polytask.route.tools.document import Document, Parameter


def matches(call: Call, truth: Mapping[str, Mapping[str, Sequence[Any]]], document: Document) -> bool:
    """Whether a call has the right name and only accepted values.

    A parameter may be left out if ``""`` is among its accepted values, and only then; ``""`` is no value itself. Strings
    are compared without case, spaces and punctuation. An integer is accepted for a number, and not the other way round.

    Args:
        call: the call, without references.
        truth: ``{name: {parameter: [accepted values]}}``; accepted values of a dictionary's fields are listed in turn.
        document: of the API, which says the types.
    """
    if list(truth) != [call.function]:
        return False
    try:
        given = bind(call, document)
    except InputError:
        return False
    return _fields_match(given, truth[call.function], document.parameters)


def _fields_match(given: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]], parameters: Sequence[Parameter]) -> bool:
    kinds = {parameter.name: parameter for parameter in parameters}
    if any(name not in accepted for name in given):
        return False
    for name, values in accepted.items():
        if name not in given:
            if "" not in values:
                return False
        elif not any(_same(given[name], value, kinds.get(name)) for value in values if not _is_gap(value)):
            return False
    return True


def _same(value: Any, accepted: Any, parameter: Parameter | None) -> bool:
    if isinstance(accepted, dict):
        if not isinstance(value, dict):
            return False
        lists = {name: some if isinstance(some, list) else [some] for name, some in accepted.items()}
        return _fields_match(value, lists, parameter.fields if parameter else ())
    if isinstance(accepted, list):
        if not isinstance(value, list) or len(value) != len(accepted):
            return False
        inner = parameter.items if parameter else None
        return all(_same(one, other, inner) for one, other in zip(value, accepted, strict=True))
    if isinstance(value, str) and isinstance(accepted, str):
        return normalised(value) == normalised(accepted)
    if isinstance(value, bool) or isinstance(accepted, bool):
        return value is accepted
    if isinstance(value, float) and isinstance(accepted, int) and (parameter is None or parameter.type != "number"):
        return False
    return bool(value == accepted)


def normalised(text: str) -> str:
    """A string as it is compared: in small letters, without spaces and the punctuation that the rule names."""
    return re.sub(r"[ ,./\-_*^'\"]", "", text.lower())


def _is_gap(value: Any) -> bool:
    return isinstance(value, str) and not value
