"""The whole loop: outline, selection, call, execution, repair; and flows of calls that are registered as one API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytask.errors import InputError, PolytaskError
from polytask.route.tools.calls import Call, bind, parse_call
from polytask.route.tools.document import Document, Parameter
from polytask.route.tools.execution import Executor, Outcome, ordered
from polytask.route.tools.functions import document_of
from polytask.route.tools.isolation import CallError
from polytask.route.tools.planning import Planner, Step
from polytask.route.tools.registry import Registry
from polytask.route.tools.selection import Selector

FINAL = ("no call", "not confirmed", "too many calls")
"""What no other call of the same step can mend."""


@dataclass(frozen=True)
class Attempt:
    """One try at a step: the ids of the documents that were offered, and what came of the call."""

    offered: tuple[int, ...]
    outcome: Outcome


@dataclass
class Completed:
    """What became of a request.

    Attributes:
        steps: the outline, in the order in which it ran.
        attempts: of each step, the last of which is its outcome.
        results: what the steps gave, by name.
        verified: whether all steps gave something, and the result was found right where that was asked.
    """

    steps: list[Step] = field(default_factory=list)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    verified: bool = False


class Platform:
    """TaskMatrix.AI's loop around a registry of APIs.

    Args:
        registry: the documents.
        selector: finds those that fit a step.
        executor: makes the calls.
        planner: makes outlines and writes calls.
        k: documents that are offered to the planner for a step.
        repairs: how often a step that failed is written anew, and an outline whose result is not right. A call that is not
            idempotent is never made again once it began.
        verify: whether results, by step, are what a request asked for.
    """

    def __init__(
        self,
        registry: Registry,
        selector: Selector,
        executor: Executor,
        planner: Planner,
        *,
        k: int = 10,
        repairs: int = 2,
        verify: Callable[[str, Mapping[str, Any]], bool] | None = None,
    ) -> None:
        self.registry, self.selector, self.executor, self.planner = registry, selector, executor, planner
        self.k, self.repairs, self.verify = k, repairs, verify

    def add(self, function: Callable[..., Any], *, isolated: bool = True, **document: Any) -> Document:
        """Register a function and its document, and let it be called; ``document`` is what `document_of` takes."""
        made = document_of(function, **document)
        self.registry.register(made)
        self.executor.register(made, function, isolated=isolated)
        return made

    def add_template(self, document: Document, calls: Sequence[str], result: str = "") -> None:
        """Register a flow of calls as one API, whose parameters the calls refer to by name.

        Args:
            document: of the flow.
            calls: texts as `parse_call` reads them, as ``'page = fetch(url=address)'``.
            result: the call whose result it gives, by default the last.

        Raises:
            InputError: where an API that it needs is not registered or cannot be called, or a call does not fit: a
                template is only there when all that it needs is.
        """
        plan = [parse_call(text) for text in calls]
        plan = [Call(c.function, c.positional, c.named, c.name or f"call{n}") for n, c in enumerate(plan, start=1)]
        used = list({call.function: self.registry.find(call.function)[1] for call in plan}.values())
        if missing := next((one.name for one in used if not self.executor.can(one)), None):
            raise InputError(f"template {document.name}: {missing} cannot be called, expected all that it needs")
        if not document.idempotent or all(one.idempotent for one in used):
            parameters = dict.fromkeys((p.name for p in document.parameters), "")
            self.executor.run(plan, used, parameters, dry=True)  # raises what does not fit
        else:
            raise InputError(f"template {document.name}: it uses what is not idempotent, expected idempotent=False")

        def flow(**arguments: Any) -> Any:
            outcomes = self.executor.run(plan, used, arguments)
            if failed := next((one for one in outcomes.values() if one.status != "done"), None):
                raise CallError(failed.kind, failed.error)
            return outcomes[result or plan[-1].name].value

        self.registry.register(document)
        self.executor.register(document, flow, isolated=False)  # each of its calls has its own limits

    def complete(self, request: str, context: Sequence[str] = (), *, dry: bool = False) -> Completed:
        """Do what a request asks for.

        Args:
            request: in words.
            context: what was said before by the user. It goes to the planner, so that nothing an API gave belongs there.
            dry: plan, select and check, and call nothing.
        """
        completed = Completed()
        for _ in range(self.repairs + 1):
            completed = self._once(request, context, dry)
            worked = all(tries and tries[-1].outcome.status in ("done", "dry") for tries in completed.attempts.values())
            checked = dry or self.verify is None or (worked and self.verify(request, completed.results))
            completed.verified = bool(completed.steps) and worked and checked
            began = any(self._began(one) for tries in completed.attempts.values() for one in tries)
            if completed.verified or began or not worked:
                break
        return completed

    def _once(self, request: str, context: Sequence[str], dry: bool) -> Completed:
        outline = {step.name: step for step in self.planner.outline(request, context)}
        order = ordered({name: step.needs for name, step in outline.items()})
        completed = Completed([outline[name] for name in order])
        gives: dict[str, Parameter | None] = {}
        for step in completed.steps:
            tries = completed.attempts.setdefault(step.name, [])
            if any(need not in gives for need in step.needs):
                outcome = Outcome(Call(""), "skipped", error=f"{step.name}: what it needs is not there", kind="skipped")
                tries.append(Attempt((), outcome))
                continue
            found = self.selector.select(step.intent, self.k).ids
            documents = self.registry.get(found)
            while len(tries) <= self.repairs:
                problem = tries[-1].outcome.kind if tries else ""
                outcome, document = self._try(step, documents, gives, completed.results, problem, dry)
                tries.append(Attempt(tuple(found), outcome))
                if document is not None and outcome.status in ("done", "failed"):
                    done = outcome.status == "done"
                    self.registry.record(found[documents.index(document)], step.intent, right=done, detail=outcome.kind)
                if outcome.status in ("done", "dry"):
                    gives[step.name] = document.returns if document else None
                    if outcome.status == "done":
                        completed.results[step.name] = outcome.value
                    break
                if self._began(tries[-1]) or outcome.kind in FINAL:
                    break
        return completed

    def _try(
        self,
        step: Step,
        documents: Sequence[Document],
        gives: Mapping[str, Parameter | None],
        results: Mapping[str, Any],
        problem: str,
        dry: bool,
    ) -> tuple[Outcome, Document | None]:
        text = self.planner.call(step, documents, gives, problem)
        if not text:
            return Outcome(Call(""), "refused", error=f"{step.name}: the planner found no call", kind="no call"), None
        try:
            call = parse_call(text)
            document = next((one for one in documents if one.name == call.function), None)
            if document is None:
                raise InputError(f"{call.function} is not among the APIs that were offered")
            bind(call, document, gives)
        except PolytaskError as error:  # about the planner's own text: it may see it
            return Outcome(Call(""), "refused", error=str(error), kind=str(error)), None
        return self.executor.call(call, document, results, dry=dry), document

    def _began(self, attempt: Attempt) -> bool:
        """Whether a call was made that must not be made again."""
        outcome = attempt.outcome
        if outcome.status not in ("done", "failed"):
            return False
        documents = {one.name: one for one in self.registry.get(list(attempt.offered))}
        return not documents[outcome.call.function].idempotent
