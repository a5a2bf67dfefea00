"""The command ``interference``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polytask.cli.data import plain_table, show, show_json, tell

if TYPE_CHECKING:
    from rich.table import Table

    from polytask.merge.comparison import Interference


def interference(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe of 'merge', with a base_model.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where to write the findings.", show_default="nowhere"),
    ] = None,
    density: Annotated[
        float, typer.Option(min=0, max=1, help="Of each tensor what a model keeps: the largest changes.")
    ] = 0.2,
    threads: Annotated[int, typer.Option(min=1, help="Cores to use.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")] = False,
) -> None:
    """Compare fine-tuned models before they are merged.

    Says how often their changes to the base have opposite signs, hit the same weights, point the same way, and cancel out:
    for each tensor and layer, and for all. FOLDER gets interference.json and interference.png. The recipe's rule and its
    settings play no part; models are read in pieces.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from polytask.files import replacing, write_json
    from polytask.merge.comparison import interference_of
    from polytask.merge.recipe import open_inputs, read_recipe

    ready = read_recipe(recipe)
    plan = open_inputs(ready)
    torch.set_num_threads(threads)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("comparing", total=plan.elements)
        found = interference_of(
            plan, density, dtype=ready.dtype, progress=lambda name, elements: bar.advance(task, elements)
        )
    if json:
        show_json(found.to_json())
    else:
        show(f"{len(found.names)} models, {found.whole.size:,} numbers", _models(found), *_facts(found))
    if out is not None:
        write_json(out / "interference.json", found.to_json())
        with replacing(out / "interference.png") as temporary:
            found.plot().savefig(temporary, format="png", dpi=150)
        tell([f"{out}: interference.json and interference.png written"])


def _models(found: Interference) -> Table:
    """Each model beside the others."""
    whole, count = found.whole, len(found.names)
    table = plain_table("model", ">change / base", ">cosine", ">opposite signs", ">overlap")
    for k, name in enumerate(found.names):
        others = [j for j in range(count) if j != k]
        means = [_mean([matrix[k, j] for j in others]) for matrix in (whole.cosine, whole.conflicts, whole.overlap)]
        table.add_row(name, _percent(whole.relative[k]), _shown(means[0]), _percent(means[1]), _percent(means[2]))
    return table


def _facts(found: Interference) -> list[str | Table]:
    table = plain_table("", "")
    table.show_header = False
    table.add_row("kept", f"each model's largest {100 * found.density:g} % of every tensor")
    table.add_row("opposite signs", f"{_percent(found.whole.conflict)} of what any model keeps")
    table.add_row("cancelled", f"{_percent(found.whole.cancelled)} of the task vectors' lengths, in their sum")
    layers = [(part.cancelled, name) for name, part in found.layers.items() if not math.isnan(part.cancelled)]
    if len(layers) > 1:
        table.add_row("most of it", ", ".join(f"{name} {_percent(lost)}" for lost, name in sorted(layers, reverse=True)[:3]))
    return ["", table]


def _mean(values: list[float]) -> float:
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _shown(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2g} %"


def register(app: typer.Typer) -> None:
    app.command()(interference)
