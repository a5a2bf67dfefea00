"""``polytask shrink``: a saved model made smaller, with no task below its floor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polytask.cli.data import DATA_HELP, plain_table, show, show_json, tell
from polytask.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from polytask.data import Examples
    from polytask.shrink import Shrinking
    from polytask.store import Saved


def shrink(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that 'fit' saved.", show_default=False)],
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP, show_default=False)],
    budget: Annotated[
        str,
        typer.Option(
            "--budget", "-b", metavar="WHAT=N", help="macs, parameters or activation_bytes: 0.5x for a share, or a number."
        ),
    ] = "macs=0.5x",
    floor: Annotated[
        list[str] | None,
        typer.Option(
            "--floor",
            "-f",
            metavar="TASK=N",
            help="The worst value of a task's metric, or a change such as -1%; repeat for each.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="SMALL", help="The folder to save.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="A PNG of the table to write.", show_default=False)
    ] = None,
    shares: Annotated[
        str, typer.Option("--shares", metavar="LIST", help="Further budgets of the table, as shares.")
    ] = "0.75,0.5,0.35,0.25",
    closer: Annotated[
        int, typer.Option(min=0, help="Where floors forbid the budget: how many more, between what they allow and forbid.")
    ] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Of fine-tuning each smaller model.")] = 200,
    lr: Annotated[float, typer.Option(help="The learning rate of fine-tuning.")] = 3e-4,
    seed: Annotated[int, typer.Option(help="Of the order and the division of rows.")] = 0,
    separator: Annotated[
        str | None, typer.Option(metavar="CHAR", help="Between a text file's fields.", show_default="comma, or tab for .tsv")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")] = False,
) -> None:
    """Make a saved model smaller, with no task below its floor.

    Channels are removed where every task's own loss allows it, then the model is fine-tuned. Prints the tasks' metrics over
    budgets, on rows that were used for neither. With --out it saves the model within the budget, which 'predict' takes like
    any other; the exit code is 2 when the floors forbid the budget.
    """
    from polytask.shrink import Budget
    from polytask.shrinking import plot as draw
    from polytask.shrinking import save_shrunk, shrink_saved
    from polytask.store import load

    saved, asked = load(model), Budget.parse(budget)
    floors = dict(_pair(text, "--floor", "TASK=N") for text in floor or [])
    try:
        parts = [float(share) for share in shares.split(",") if share.strip()]
    except ValueError:
        raise InputError(f"--shares {shares!r}: expected numbers with commas between, such as 0.75,0.5") from None
    train, validation = _divided(saved, data, separator, seed)
    found = shrink_saved(
        saved,
        train,
        validation,
        budget=asked,
        floors=floors,
        shares=parts,
        closer=closer,
        steps=steps,
        lr=lr,
        seed=seed,
        progress=lambda text: tell([text], "dim"),
    )
    if json:
        rows = [{"cost": r.cost, "share": r.share, "metrics": r.metrics, "below": r.below} for r in found.rows]
        show_json({"cost": found.whole, "metrics": found.metrics, "rows": rows})
    else:
        show(f"{model} on {len(validation):,} rows of {data}: {asked.quantity}", _table(found))
    if plot is not None:
        draw(found, plot)
    row = found.within(asked.target(found.whole))
    if out is not None:
        save_shrunk(saved, row, out, {"budget": budget, "floors": floors, "steps": steps, "lr": lr, "seed": seed})
        tell([f"{out}: {row.share:.2f}x of the {asked.quantity}"])


def register(app: typer.Typer) -> None:
    """Add this group's commands to ``app``."""
    app.command()(shrink)


def _divided(saved: Saved, data: str, separator: str | None, seed: int) -> tuple[Examples, Examples]:
    """Rows to shrink with, and rows to judge by: the training and validation splits of image data, four and one of five rows
    of a table."""
    import torch

    from polytask.data import multi_images, multidigits
    from polytask.predicting import read_examples

    if data == "multidigits" or Path(data).is_dir():
        tasks = list(saved.model.tasks)
        images = multidigits(tasks) if data == "multidigits" else multi_images(data, tasks)
        return images.train, images.validation
    examples = read_examples(saved, data, separator=separator)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    cut = len(examples) * 4 // 5
    if cut < 4:
        raise InputError(f"{data}: {len(examples)} rows, expected at least five")
    return examples.subset(order[:cut]), examples.subset(order[cut:])


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"{option} {text!r}: expected {form}")
    return name, value


def _table(found: Shrinking) -> Table:
    table = plain_table(">cost", ">share", *(f">{task}" for task in found.metrics), "below its floor")
    table.add_row(f"{found.whole:,.0f}", "1.00x", *(f"{value:.4f}" for value in found.metrics.values()), "")
    for row in found.rows:
        values = (f"{row.metrics[task]:.4f}" for task in found.metrics)
        table.add_row(f"{row.cost:,.0f}", f"{row.share:.2f}x", *values, ", ".join(row.below))
    return table
