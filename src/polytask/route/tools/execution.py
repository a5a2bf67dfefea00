"""The action executor: runs checked calls in the order of their dependencies, within limits, and shows what came of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from polytask.errors import InputError, quoted
from polytask.route.tools.calls import Call, bind, mismatch, resolve
from polytask.route.tools.document import Document
from polytask.route.tools.http import call_http, host_of
from polytask.route.tools.isolation import CallError, in_process, in_thread

Status = Literal["done", "dry", "failed", "refused", "skipped"]


@dataclass(frozen=True)
class Limits:
    """What calls may take.

    Args:
        seconds: of each call; then it is stopped.
        calls: of an executor, over its life or since `Executor.restart`; failed ones count.
        output: bytes of a result, as JSON.
    """

    seconds: float = 10.0
    calls: int = 50
    output: int = 1_000_000


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Attributes:
        call: the call.
        status: ``"done"``; ``"dry"`` where it was only checked; ``"refused"`` before it began, ``"failed"`` after, and
            ``"skipped"`` where an earlier call that it needs gave nothing.
        value: what it gave, as JSON has it. It is data: nothing in it is ever taken as an instruction.
        error: why it gave nothing, for a person.
        kind: the same in our own words alone, for a planner.
        seconds: it took.
    """

    call: Call
    status: Status
    value: Any = None
    error: str = ""
    kind: str = ""
    seconds: float = 0.0


class Executor:
    """Runs calls of registered functions, and of HTTP APIs on allowed hosts; nothing else.

    Args:
        limits: of time, calls and output.
        hosts: ``"api.example.com"`` or ``"127.0.0.1:8000"``, which HTTP APIs may be called on.
        headers: sent to a host besides, by host.
        confirm: asked before a call whose document does not say that it is idempotent, with the document and the arguments;
            without it such a call is refused.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        hosts: Collection[str] = (),
        headers: Mapping[str, Mapping[str, str]] | None = None,
        confirm: Callable[[Document, Mapping[str, Any]], bool] | None = None,
    ) -> None:
        self.limits, self.hosts, self.headers, self.confirm = limits or Limits(), set(hosts), dict(headers or {}), confirm
        self.made = 0
        self._functions: dict[tuple[str, str], tuple[Callable[..., Any], bool]] = {}

    def register(self, document: Document, function: Callable[..., Any], *, isolated: bool = True) -> None:
        """Let a function be called for a document.

        Args:
            document: its document; `polytask.route.tools.document_of` makes one.
            function: takes its parameters by name, and gives a value that JSON has.
            isolated: in a process of its own, which is killed when its time is over, and whose changes in memory are lost;
                else in a thread of this one, which is then only left alone.
        """
        self._functions[document.module, document.name] = (function, isolated)

    def can(self, document: Document) -> bool:
        """Whether a document's API can be called at all."""
        key = (document.module, document.name)
        return key in self._functions or (document.endpoint is not None and host_of(document) in self.hosts)

    def restart(self) -> None:
        """Count calls from 0 again."""
        self.made = 0

    def run(
        self,
        plan: Sequence[Call],
        documents: Sequence[Document],
        results: Mapping[str, Any] | None = None,
        *,
        dry: bool = False,
    ) -> dict[str, Outcome]:
        """Run a plan: every call once, after those whose results it refers to.

        All is checked before the first call is made. A call that fails takes those with it that need its result.

        Args:
            plan: the calls; those without a name are called ``call1``, ``call2``, ... by their place.
            documents: of the APIs that may be called; other names are refused.
            results: values that the calls may refer to besides.
            dry: check everything, and call nothing.

        Returns:
            Outcomes by the calls' names, in the order in which they ran.

        Raises:
            InputError: before anything has run: for a cycle, a name that is not there or there twice, or arguments that
                do not fit their document.
        """
        given = dict(results or {})
        calls: dict[str, Call] = {}
        for place, call in enumerate(plan, start=1):
            name = call.name or f"call{place}"
            if name in calls or name in given:
                raise InputError(f"plan: two results are called {name!r}")
            calls[name] = call
        by_name = _by_name(documents)
        order = ordered({name: call.needs() - set(given) for name, call in calls.items()})
        known: dict[str, Any] = dict.fromkeys(given)
        for name in order:
            bind(calls[name], _document(calls[name], by_name), known)
            known[name] = by_name[calls[name].function].returns
        outcomes: dict[str, Outcome] = {}
        for name in order:
            call = calls[name]
            there = {one for one, outcome in outcomes.items() if outcome.status in ("done", "dry")} | set(results or {})
            if lacking := sorted(call.needs() - there):
                outcomes[name] = Outcome(call, "skipped", error=f"needs the result of {lacking[0]}", kind="skipped")
                continue
            outcomes[name] = self.call(call, by_name[call.function], given, dry=dry)
            if outcomes[name].status == "done":
                given[name] = outcomes[name].value
        return outcomes

    def call(self, call: Call, document: Document, results: Mapping[str, Any], *, dry: bool = False) -> Outcome:
        """Make one call whose document is known, with the results that it may refer to."""
        try:
            arguments = bind(call, document)
            if not dry:
                arguments = {name: resolve(value, results) for name, value in arguments.items()}
                for name, value in arguments.items():
                    if problem := mismatch(value, document.parameter(name)):
                        raise InputError(f"{document.name}: {name}{problem}")
        except InputError as error:
            return Outcome(call, "refused", error=str(error), kind="arguments that do not fit the document")
        if not self.can(document):
            reason = f"the host {host_of(document)} is not allowed" if document.endpoint else "no function is registered"
            return Outcome(call, "refused", error=f"{document.name}: {reason}", kind="not available")
        if dry:
            return Outcome(call, "dry")
        if self.made >= self.limits.calls:
            reason = f"{self.made} calls were made, expected at most {self.limits.calls}"
            return Outcome(call, "refused", error=f"{document.name}: {reason}", kind="too many calls")
        if not document.idempotent and not (self.confirm and self.confirm(document, arguments)):
            return Outcome(call, "refused", error=f"{document.name}: was not confirmed", kind="not confirmed")
        self.made += 1
        started = time.monotonic()
        try:
            value = self._perform(document, arguments)
        except CallError as error:
            return Outcome(call, "failed", None, f"{document.name}: {error}", error.kind, time.monotonic() - started)
        return Outcome(call, "done", value, seconds=time.monotonic() - started)

    def _perform(self, document: Document, arguments: Mapping[str, Any]) -> Any:
        key = (document.module, document.name)
        if key not in self._functions:
            headers = self.headers.get(host_of(document), {})
            return call_http(document, arguments, headers, self.limits.seconds, self.limits.output)
        function, isolated = self._functions[key]
        return (in_process if isolated else in_thread)(function, arguments, self.limits.seconds, self.limits.output)


def ordered(needs: Mapping[str, Collection[str]]) -> list[str]:
    """Names so that each comes after those that it needs, else as they came; `InputError` for a cycle or a name that is not
    there."""
    for name, needed in needs.items():
        if missing := next((one for one in sorted(needed) if one not in needs), None):
            raise InputError(f"plan: {name} refers to {missing!r}, which no call gives")
    try:
        sorter = TopologicalSorter(needs)
        sorter.prepare()
    except CycleError as error:
        raise InputError(f"plan: {' needs '.join(error.args[1])}, a cycle") from error
    place, order = {name: i for i, name in enumerate(needs)}, []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=lambda name: place[name])
        first = ready.pop(0)
        order.append(first)
        sorter.done(first)
    return order


def _by_name(documents: Sequence[Document]) -> dict[str, Document]:
    """Documents by the name that calls have, which only one of them may have."""
    found: dict[str, Document] = {}
    for document in documents:
        if document.name in found and found[document.name] != document:
            raise InputError(f"{document.name!r} is offered by two modules, expected one of them")
        found[document.name] = document
    return found


def _document(call: Call, documents: Mapping[str, Document]) -> Document:
    if call.function not in documents:
        raise InputError(f"{quoted(call.function)} is not among the APIs that may be called")
    return documents[call.function]
