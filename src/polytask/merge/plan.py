"""What is to be merged: settled from the headers of all inputs, before a byte of data is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.checkpoint import Checkpoint, Entry
from polytask.merge.engine.source import Source as AnySource
from polytask.merge.vocabulary import Match, Vocabularies, match_vocabularies, with_rows

Missing = Literal["error", "base"]
Extra = Literal["error", "drop"]
Buffers = Literal["error", "base"]


@dataclass(frozen=True)
class Policy:
    """What becomes of tensors that not all inputs have, or that are not numbers to be averaged.

    Attributes:
        missing: a tensor of the base that a model lacks: an error, or the base's takes its place (a task vector of 0).
        extra: a tensor that only some models have: an error, or it is left out. One that repeats another tensor of its
            model, bit by bit (tied weights), is always left out.
        buffers: whole numbers and booleans that differ between inputs: an error, or the base's.
        vocabulary: tokens that not all inputs have, or not at the same row: an error, the base's tokens, or the union of
            all; see `polytask.merge.vocabulary.match_vocabularies`.
        vocabulary_tensors: patterns of the names of tensors with a row for each token, beside those that are known.
    """

    missing: Missing = "error"
    extra: Extra = "error"
    buffers: Buffers = "error"
    vocabulary: Vocabularies = "error"
    vocabulary_tensors: tuple[str, ...] = ()


@dataclass
class Plan:
    """The tensors of the output, in sorted order, and what becomes of each.

    Attributes:
        merged: tensors that are merged.
        copied: tensors that are copied from the reference: they are not floating-point numbers, or are empty.
        dropped: tensors that are left out, with the reason.
        filled: for each model the tensors that it lacks, for which the base's are taken.
        vocabulary: how rows of embeddings are matched, where vocabularies differ.
        measured: what was measured of each model, where the rule needs it.
    """

    models: list[Checkpoint]
    base: Checkpoint | None
    policy: Policy
    merged: dict[str, Entry] = field(default_factory=dict)
    copied: dict[str, Entry] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    filled: list[set[str]] = field(default_factory=list)
    vocabulary: Match | None = None
    measured: list[Checkpoint] = field(default_factory=list)

    @property
    def reference(self) -> Checkpoint:
        """The input whose names and precision the output has: the base, or the first model without one."""
        return self.models[0] if self.base is None else self.base

    @property
    def inputs(self) -> list[Checkpoint]:
        return [*([] if self.base is None else [self.base]), *self.models]

    @property
    def output(self) -> dict[str, Entry]:
        """All tensors of the output, by name."""
        return dict(sorted((self.merged | self.copied).items()))

    @property
    def elements(self) -> int:
        return sum(entry.numel for entry in self.merged.values())

    def sources(self) -> list[AnySource]:
        """The models with the output's tensors: the base stands in for what they lack, rows are matched by token."""
        models = self._filled_models()
        if self.vocabulary is None:
            return list(models)
        return [with_rows(self.vocabulary.layouts, self.base, models, k) for k in range(len(models))]

    def base_source(self) -> AnySource | None:
        """The base with the output's tensors."""
        if self.vocabulary is None or self.base is None:
            return self.base
        return with_rows(self.vocabulary.layouts, self.base, self._filled_models(), None)

    def _filled_models(self) -> list[Source]:
        return [Source(model, self.base, filled) for model, filled in zip(self.models, self.filled, strict=True)]


@dataclass(frozen=True)
class Source:
    """A model with the base's tensors in the place of those that it lacks."""

    model: Checkpoint
    base: Checkpoint | None
    filled: set[str]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        source = self.base if self.base is not None and name in self.filled else self.model
        return source.read(name, start, stop)

    def release(self, name: str) -> None:
        if name not in self.filled:
            self.model.release(name)


def make_plan(
    models: Sequence[Checkpoint],
    base: Checkpoint | None,
    policy: Policy | None = None,
    measured: Sequence[Checkpoint] = (),
) -> Plan:
    """Compare the headers of all inputs.

    Args:
        models: what is merged.
        base: what the models were fine-tuned from, if any.
        policy: what becomes of tensors that not all have.
        measured: of each model, a file that `save_measured` wrote, for rules that need it.

    Raises:
        InputError: tensors that are missing, too many, of another shape or of another kind, where the policy has no answer.
    """
    if not models:
        raise InputError("no models to merge: expected at least one")
    plan = Plan(list(models), base, policy or Policy(), measured=list(measured))
    plan.vocabulary = match_vocabularies(models, base, plan.policy.vocabulary, plan.policy.vocabulary_tensors)
    layouts = {} if plan.vocabulary is None else plan.vocabulary.layouts
    for each in measured:
        if matched := sorted(each.entries.keys() & layouts.keys()):
            raise InputError(
                f"{each.path}: tensor {matched[0]!r} has rows that are matched by token, and what was measured cannot be: "
                "expected nothing measured of it, or one vocabulary"
            )
    reference = plan.reference.entries
    for model in models:
        missing = {name for name in reference if name not in model.entries}
        if missing and (plan.policy.missing == "error" or base is None):
            hint = "; with policy missing: base, the base's would be taken" if base is not None else ""
            raise InputError(
                f"{model.path}: {_names(missing)} of {plan.reference.path} missing, expected in every model{hint}"
            )
        plan.filled.append(missing)
        _extra(plan, model, {name for name in model.entries if name not in reference})
    for name, entry in reference.items():
        there = [model for model, filled in zip(models, plan.filled, strict=True) if name not in filled]
        if name in layouts:
            plan.merged[name] = replace(entry, shape=layouts[name].shape)
            continue
        for model in there:
            _same(entry, model.entries[name], plan.reference, model, plan.policy)
        (plan.merged if entry.is_float and entry.numel else plan.copied)[name] = entry
    return plan


def check_buffers(plan: Plan) -> None:
    """Compare what is copied between all inputs: this reads it."""
    if plan.policy.buffers == "base":
        return
    for name in plan.copied:
        first = plan.reference.read(name)
        for model, filled in zip(plan.models, plan.filled, strict=True):
            if name not in filled and not torch.equal(model.read(name), first):
                raise InputError(
                    f"{model.path}: tensor {name!r} of {first.dtype} is not that of {plan.reference.path}; whole numbers "
                    "are not merged: expected equal ones, or policy buffers: base"
                )


def _extra(plan: Plan, model: Checkpoint, names: set[str]) -> None:
    for name in sorted(names):
        twin = _twin(model, name)
        if twin is not None:
            plan.dropped[name] = f"tied: repeats {twin!r} in {model.path}"
        elif plan.policy.extra == "drop":
            plan.dropped[name] = f"only in {model.path}"
        else:
            raise InputError(
                f"{model.path}: tensor {name!r} is not in {plan.reference.path}; with policy extra: drop it is left out"
            )


def _twin(model: Checkpoint, name: str) -> str | None:
    """Another tensor of the model with the same bits."""
    entry = model.entries[name]
    for other, its in model.entries.items():
        same = other != name and its.shape == entry.shape and its.dtype == entry.dtype and entry.numel > 0
        if same and _equal(model, name, other, entry.numel):
            return other
    return None


def _equal(model: Checkpoint, one: str, other: str, numel: int, step: int = 2**22) -> bool:
    return all(
        torch.equal(model.read(one, start, min(start + step, numel)), model.read(other, start, min(start + step, numel)))
        for start in range(0, numel, step)
    )


def _same(entry: Entry, other: Entry, reference: Checkpoint, model: Checkpoint, policy: Policy) -> None:
    if other.shape != entry.shape:
        matched = policy.vocabulary != "error" and other.shape[1:] == entry.shape[1:]
        hint = "; if it has a row for each token, name it by policy vocabulary_tensors" if matched else ""
        raise InputError(
            f"{model.path}: tensor {entry.name!r} has shape {list(other.shape)}, expected {list(entry.shape)} as in "
            f"{reference.path}{hint}"
        )
    if other.is_float != entry.is_float:
        raise InputError(
            f"{model.path}: tensor {entry.name!r} is of {other.dtype}, expected {entry.dtype} as in {reference.path}"
        )


def _names(names: set[str]) -> str:
    first = sorted(names)[:3]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(map(repr, first))}{more}"


def bytes_of(entries: Mapping[str, Entry], dtype: torch.dtype | None = None) -> int:
    """The bytes that these tensors take, floating-point ones in ``dtype`` if given."""
    return sum(
        entry.numel * (dtype if dtype is not None and entry.is_float else entry.dtype).itemsize for entry in entries.values()
    )
