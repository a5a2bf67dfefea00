"""A whole merge: inputs opened and compared, the rule run, the output and its card written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge._models import same_tensors
from polytask.merge.checkpoint import Checkpoint
from polytask.merge.engine.measured import Measured
from polytask.merge.engine.rule import Rule
from polytask.merge.engine.run import CHUNK, Merge
from polytask.merge.engine.source import InMemory
from polytask.merge.output import SHARD, Output
from polytask.merge.plan import Plan, check_buffers

Rules = Rule | Callable[[str], Rule]


@dataclass
class Rounding:
    """What storing the result in fewer bits costs: sums of squares of what was lost, and of what merging changed."""

    lost: float = 0.0
    changed: float = 0.0

    def add(self, exact: Tensor, stored: Tensor, base: Tensor) -> None:
        """Take in merged values, ``(n,)``, as they are stored, and the base's."""
        self.lost += _square(stored.to(exact) - exact)
        self.changed += _square(base.to(exact) - exact)

    @property
    def relative(self) -> float | None:
        """The length of what was lost over that of the merged delta; ``None`` where nothing is known to have changed."""
        return (self.lost / self.changed) ** 0.5 if self.changed > 0 else None


def _square(vector: Tensor) -> float:
    return float(vector.dot(vector))


def merge_state_dicts(
    rule: Rules,
    models: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    measured: Measured | None = None,
) -> dict[str, Tensor]:
    """Merge models that are in memory.

    Args:
        rule: for all tensors, or from a tensor's name to its own.
        models: state dicts with the same names and shapes.
        base: what they were fine-tuned from; not every rule needs it.
        dtype: of the arithmetic, float32 or float64.
        measured: of each model, where the rule needs it.

    Returns:
        A state dict in the precision of the base, or of the first model. Whole numbers are those of the base.

    Raises:
        InputError: names or shapes differ, or there are no models.
    """
    if not models:
        raise InputError("no models, expected at least one")
    reference = models[0] if base is None else base
    same_tensors(models, reference)
    shapes = {name: tuple(t.shape) for name, t in sorted(reference.items()) if t.is_floating_point() and t.numel()}
    merged = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in reference.items()}
    flat = {name: merged[name].view(-1) for name in shapes}
    sources = [InMemory(model) for model in models]

    def write(name: str, start: int, values: Tensor) -> None:
        flat[name][start : start + len(values)] = values.to(flat[name].dtype)

    Merge(rule, sources, None if base is None else InMemory(base), shapes, dtype, measured=measured).run(write)
    return merged


def prepare(rule: Rules, plan: Plan, dtype: torch.dtype = torch.float32, chunk: int = CHUNK, threads: int = 1) -> Merge:
    """The merge of a plan's tensors, checked from the headers alone; see `merge_checkpoints`."""
    shapes = {name: entry.shape for name, entry in plan.merged.items()}
    measured = Measured(plan.measured) if plan.measured else None
    return Merge(rule, plan.sources(), plan.base_source(), shapes, dtype, chunk, threads, measured)


def merge_checkpoints(
    rule: Rules,
    plan: Plan,
    out: Path | str,
    *,
    about: str,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
    chunk: int = CHUNK,
    shard: int = SHARD,
    threads: int = 1,
    progress: Callable[[str, int], None] = lambda name, elements: None,
) -> Rounding:
    """Merge checkpoints on disk into a folder of safetensors, in memory that does not depend on their size.

    Args:
        rule: for all tensors, or from a tensor's name to its own.
        plan: the inputs, compared.
        out: the folder to make.
        about: what is merged and how, for the card; with the inputs it decides whether a run that was killed goes on.
        dtype: of the arithmetic.
        out_dtype: of floating-point tensors in the output; by default that of the base, or of the first model.
        chunk: elements of one model that are read at a time.
        shard: bytes of a file, at most.
        threads: tensors that are merged at once; what is written does not depend on it.
        progress: told of each tensor that is done, and how many elements it has.
    """
    merge = prepare(rule, plan, dtype, chunk, threads)
    check_buffers(plan)
    tensors = {
        name: (out_dtype if out_dtype is not None and entry.is_float else entry.dtype, entry.shape)
        for name, entry in plan.output.items()
    }
    output = Output(out, tensors, _digest(plan, about, str(dtype), tensors), shard)
    roundings = {name: Rounding() for name in plan.merged}
    base = merge.base
    try:
        for name in plan.copied:
            if name not in output.done:
                output.write(name, 0, plan.reference.read(name))
                output.complete(name)

        def write(name: str, start: int, values: Tensor) -> None:
            stored = values.to(tensors[name][0])
            output.write(name, start, stored)
            if base is not None and stored.dtype != values.dtype:
                roundings[name].add(values, stored, base.read(name, start, start + len(values)))
            if start + len(values) == plan.merged[name].numel:
                output.complete(name)
                progress(name, plan.merged[name].numel)

        done = set(output.done)
        merge.run(write, [name for name in plan.merged if name not in done])
        rounding = Rounding(sum(r.lost for r in roundings.values()), sum(r.changed for r in roundings.values()))
        files = beside(plan.reference) if plan.vocabulary is None else {**beside(plan.reference), **plan.vocabulary.files}
        output.finish(files | {"README.md": card(plan, about, rounding, tensors)})
    finally:
        output.close()
    return rounding


def _digest(plan: Plan, about: str, dtype: str, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> str:
    read = [file for checkpoint in [*plan.inputs, *plan.measured] for file in checkpoint.files]
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in read]
    what = [about, dtype, files, [(name, str(kind), shape) for name, (kind, shape) in tensors.items()], repr(plan.policy)]
    what.append("" if plan.vocabulary is None else plan.vocabulary.digest())
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


KEPT = (".json", ".txt", ".model", ".jinja", ".spm", ".tiktoken", ".vocab")
"""Endings of the files that a model folder has beside its weights: configuration and tokenizer."""


def beside(checkpoint: Checkpoint) -> dict[str, str | Path]:
    """The files of a model folder that are not weights, to be carried over."""
    folder = checkpoint.path
    if not folder.is_dir():
        return {}
    return {
        file.name: file
        for file in sorted(folder.iterdir())
        if file.is_file()
        and file.suffix in KEPT
        and not file.name.endswith(".index.json")
        and not file.name.startswith(("adapter_", "trainer_", "training_", "optimizer", "merge.part"))
    }


def card(plan: Plan, about: str, rounding: Rounding, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> str:
    """The model card: what was merged, how, and at what cost in precision."""
    names = [str(model.path) for model in plan.models]
    lines = ["---", "library_name: transformers", "tags:", "- merge", "- polytask", "---", "", "# A merged model", ""]
    if plan.base is not None:
        lines += [f"Base: `{plan.base.path}`", ""]
    lines += ["Merged by polytask:", "", *(f"- `{name}`" for name in names)]
    if plan.measured:
        lines += ["", "By what was measured of them:", "", *(f"- `{each.path}`" for each in plan.measured)]
    lines += ["", "## Recipe", "", "```yaml", about.strip(), "```"]
    merged = sum(entry.numel for entry in plan.merged.values())
    lines += ["", "## Tensors", "", f"- {len(plan.merged)} merged, {merged:,} numbers"]
    if plan.copied:
        lines.append(f"- {len(plan.copied)} copied from `{plan.reference.path}`, as they are no floating-point numbers")
    for name, reason in plan.dropped.items():
        lines.append(f"- `{name}` left out: {reason}")
    for name, filled in zip(names, plan.filled, strict=True):
        if filled:
            lines.append(f"- `{name}` lacks {len(filled)}, for which the base's were taken")
    if plan.vocabulary is not None:
        lines += ["", "## Vocabulary", "", *(f"- {line}" for line in plan.vocabulary.lines())]
    kinds = sorted({str(kind).removeprefix("torch.") for name, (kind, _) in tensors.items() if name in plan.merged})
    lines += ["", "## Precision", "", f"Stored as {', '.join(kinds)}."]
    if rounding.relative is not None:
        lines.append(f"Rounding moved the result by {100 * rounding.relative:.2g} % of the length of what merging changed.")
    return "\n".join(lines) + "\n"
