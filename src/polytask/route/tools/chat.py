"""A planner that asks a language model, by any function of messages, such as `polytask.route.Endpoint.chat`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from polytask.errors import InputError, quoted
from polytask.route.tools.document import Document, Parameter
from polytask.route.tools.planning import Step

Chat = Callable[[Sequence[Mapping[str, str]]], str]
"""From messages, ``{"role": ..., "content": ...}``, to the answer's text."""

OUTLINE = """Split the user's request into steps, each of which one API call can do. Answer with a JSON list alone:
[{"name": "step1", "intent": "what it is to do, with all values that it needs", "needs": []}, ...]
"needs" lists the names of earlier steps whose results a step uses."""

CALL = """Write one call of one of these APIs that does what the user asks. Answer with the call alone, as in
name(parameter="text", other=3). Arguments are literals, lists, dictionaries, or the names of earlier results, also with
an index: step1["field"]. APIs:
"""


class ChatPlanner:
    """A planner that asks a chat model for the outline, and for the call of each step.

    It shows the model documents, the names and types of earlier results, and our own words for what went wrong: nothing
    that an API answered.

    Args:
        chat: the model, such as the `chat` of a `polytask.route.Endpoint`.
        documents: how many of the documents fit into a prompt.
    """

    def __init__(self, chat: Chat, documents: int = 20) -> None:
        self.chat, self.documents = chat, documents

    def outline(self, request: str, context: Sequence[str]) -> list[Step]:
        before = [{"role": "user", "content": text} for text in context]
        answer = self.chat([{"role": "system", "content": OUTLINE}, *before, {"role": "user", "content": request}])
        found = re.search(r"\[.*\]", answer, re.DOTALL)
        try:
            steps = [
                Step(str(one["name"]), str(one["intent"]), tuple(str(need) for need in one.get("needs") or ()))
                for one in json.loads(found[0] if found else answer)
            ]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"outline {quoted(answer)}: expected a JSON list of steps with name, intent and needs"
            ) from error
        if bad := next((step.name for step in steps if not step.name.isidentifier()), None):
            raise InputError(f"outline: a step is called {quoted(bad)}, expected a name such as 'step1'")
        return steps

    def call(self, step: Step, documents: Sequence[Document], results: Mapping[str, Parameter | None], problem: str) -> str:
        described = "\n\n".join(_described(document) for document in documents[: self.documents])
        earlier = "".join(f"\n{name}: {gives.type if gives else 'any'}" for name, gives in results.items())
        asked = step.intent + (f"\n\nEarlier results:{earlier}" if earlier else "")
        asked += f"\n\nThe last call gave nothing: {problem}. Write another." if problem else ""
        answer = self.chat([{"role": "system", "content": CALL + described}, {"role": "user", "content": asked}])
        fenced = re.search(r"```\w*\n(.*?)```", answer, re.DOTALL)
        return (fenced[1] if fenced else answer).strip().strip("`").strip()


def _described(document: Document) -> str:
    lines = [document.signature(), document.description]
    lines += [f"  {p.name}: {p.description}" for p in document.parameters if p.description]
    lines += [f"Composition: {document.composition}"] if document.composition else []
    lines += [f"Example: {example}" for example in document.examples[:3]]
    return "\n".join(lines)
