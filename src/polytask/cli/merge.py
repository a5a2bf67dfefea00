"""The command ``merge``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polytask.cli.data import plain_table, show, tell

if TYPE_CHECKING:
    from rich.table import Table

    from polytask.merge.plan import Plan
    from polytask.merge.recipe import Ready


def merge(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file: polytask's, or mergekit's.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="The folder to make.", show_default="the recipe's name"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and what it needs; write nothing.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Cores to use.")] = 1,
) -> None:
    """Merge fine-tuned models into one.

    Models are safetensors files, folders of shards, transformers' folders, or .bin and .pt files of tensors. They are read
    in pieces: memory does not depend on their size. A run that is killed goes on where it was.
    """
    import torch

    from polytask.merge.merging import merge_checkpoints
    from polytask.merge.recipe import open_inputs, read_recipe

    ready = read_recipe(recipe)
    target = recipe.with_suffix("") if out is None else out
    if ready.adapter is not None:
        _merge_factors(ready, target, dry_run)
        return
    plan = open_inputs(ready)
    show(*_about(plan, ready, target, threads))
    if dry_run:
        return
    torch.set_num_threads(1)  # tensors are merged at once, each by one core
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("merging", total=plan.elements)
        rounding = merge_checkpoints(
            ready.settings.spread_over(plan.merged),
            plan,
            target,
            about=ready.text,
            dtype=ready.dtype,
            out_dtype=ready.out_dtype,
            threads=threads,
            progress=lambda name, elements: bar.advance(task, elements),
        )
    tell([f"{target}: {plan.elements:,} numbers merged"])
    if rounding.relative is not None:
        tell([f"rounding moved the result by {100 * rounding.relative:.2g} % of what merging changed"])


def _merge_factors(ready: Ready, target: Path, dry_run: bool) -> None:
    """Adapters into an adapter."""
    from polytask.merge.checkpoint.adapter import read_factors
    from polytask.merge.factors import merge_adapters

    assert ready.adapter is not None
    weights, rank = ready.factor_weights(), ready.adapter.rank
    table = plain_table("adapter", ">modules", ">rank", ">weight")
    for path, weight in zip(ready.models, weights, strict=True):
        factors = read_factors(path)
        table.add_row(str(path), f"{len(factors.modules):,}", str(factors.settings.r), f"{weight:g}")
    show(table, f"factors {'added up' if rank is None else f'cut to rank {rank}'} -> {target}")
    if dry_run:
        return
    cut = merge_adapters(ready.models, target, weights, rank)
    tell([f"{target}: {len(cut.ranks):,} modules merged, of rank {max(cut.ranks.values())}"])
    if rank is not None:
        tell([f"cutting to rank {rank} lost {100 * cut.lost:.2g} % of the length of the deltas"])


def _about(plan: Plan, ready: Ready, target: Path, threads: int) -> list[Table | str]:
    """The plan for a person."""
    from rich.text import Text

    from polytask.merge.engine.rule import Prepared
    from polytask.merge.merging import prepare
    from polytask.merge.plan import bytes_of

    table = plain_table("input", ">tensors", ">bytes", "")
    for checkpoint in plan.inputs:
        note = "base" if checkpoint is plan.base else ""
        table.add_row(str(checkpoint.path), f"{len(checkpoint.entries):,}", f"{bytes_of(checkpoint.entries):,}", note)
    for checkpoint in plan.measured:
        table.add_row(str(checkpoint.path), f"{len(checkpoint.entries):,}", f"{bytes_of(checkpoint.entries):,}", "measured")
    settings = ready.settings.spread_over(plan.merged)
    rule = settings(next(iter(plan.merged), ""))
    written = bytes_of(plan.output, ready.out_dtype)
    lines: list[Table | str] = [table, f"{type(rule).__name__} -> {target}"]
    facts = plain_table("", "")
    facts.add_row("merged", f"{len(plan.merged):,} tensors, {plan.elements:,} numbers")
    if plan.copied:
        facts.add_row("copied", _some(plan.copied))
    for name, reason in plan.dropped.items():
        facts.add_row("left out", f"{name}: {reason}")
    for model, filled in zip(plan.models, plan.filled, strict=True):
        if filled:
            facts.add_row("from the base", f"{_some(sorted(filled))}, which {model.path} lacks")
    if plan.vocabulary is not None:
        for k, line in enumerate(plan.vocabulary.lines()):
            facts.add_row("" if k else "vocabulary", Text(line))  # a token such as [b] is no markup
    facts.add_row("to write", f"{written:,} bytes")
    passes = 1 + sum(not isinstance(each, Prepared) for each in rule.statistics(len(plan.models)))
    facts.add_row("to read", f"{passes * sum(bytes_of(c.entries) for c in plan.inputs):,} bytes, in {passes} passes")
    if plan.measured:
        measured = sum(bytes_of(checkpoint.entries) for checkpoint in plan.measured)
        facts.add_row("", f"{measured:,} bytes that were measured, once or more")
    needed = prepare(settings, plan, ready.dtype, threads=threads).memory()
    facts.add_row("memory", f"{needed / 1e6:,.0f} MB or so, beside torch")
    return [*lines, facts]


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 3:,} more" if len(every) > 3 else ""
    return f"{len(every):,} tensor{'s' if len(every) > 1 else ''}: {', '.join(every[:3])}{more}"


def register(app: typer.Typer) -> None:
    app.command()(merge)
