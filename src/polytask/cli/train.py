"""``polytask fit`` and ``polytask validate``: train a model and save it, or check that it could be done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polytask.cli import events
from polytask.cli.data import DataOptions, accepts, metrics_table, show, tell, tell_about
from polytask.errors import InputError

if TYPE_CHECKING:
    from polytask.fitting import Recipe


@dataclass(frozen=True, kw_only=True)
class FitOptions(DataOptions):
    """How to train, and where."""

    out: Annotated[Path, typer.Option("--out", "-o", metavar="MODEL", help="The folder to save.", show_default=False)]
    events: Annotated[
        Path | None,
        typer.Option(
            "--events",
            metavar="FILE",
            help="In place of DATA: events in time, a table with source, target and timestamp, JODIE's .csv, or .npz.",
            show_default=False,
        ),
    ] = None
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Of events: tgn, pres or nat.", show_default="tgn")
    ] = None
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="NAME", help="SHARING, BALANCER, or SHARING+BALANCER.")
    ] = "hard+equal"
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.", show_default="the data's")] = None
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.", show_default="the data's")] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows in a step.", show_default="the data's")] = None
    lr: Annotated[float | None, typer.Option(help="The learning rate.", show_default="the data's")] = None
    seed: Annotated[int, typer.Option(help="Of the initial weights and the order of rows; the split stays the same.")] = 0
    accumulate: Annotated[int, typer.Option(min=1, help="Batches whose gradients make one step.")] = 1
    clip: Annotated[float | None, typer.Option(help="The largest norm of the gradient.", show_default="the data's")] = None
    monitor: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT", help="What the best weights are best at: skill, TASK or TASK/METRIC.", show_default="skill"
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many of 20 evaluations without a better one.", show_default="the data's"),
    ] = None
    devices: Annotated[str, typer.Option(metavar="N", help="Devices on each machine; 'auto' takes all.")] = "1"
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1
    precision: Annotated[str, typer.Option(metavar="NAME", help="32-true, bf16-mixed, 16-mixed, bf16-true.")] = "32-true"
    conflicts: Annotated[bool, typer.Option("--conflicts", help="Record how often task gradients conflict.")] = False
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard files too.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no live display, only the result.")] = False

    def recipe(self) -> Recipe:
        """The recipe that the options state; what is left out is the data's."""
        from polytask.fitting import Recipe
        from polytask.method import Method

        if self.model is not None and self.events is None:
            raise InputError(f"--model {self.model} is for --events; choose a way of sharing by --method")
        names = ("steps", "epochs", "batch_size", "lr", "accumulate", "clip", "monitor", "patience", "conflicts")
        settings = {name: getattr(self, name) for name in names}
        return Recipe(Method.parse(self.method), self.seed, {k: v for k, v in settings.items() if v is not None})

    def fabric(self) -> Any:
        """The devices that the options name."""
        from polytask.training import fabric

        return fabric(
            int(self.devices) if self.devices.isdigit() else self.devices, precision=self.precision, nodes=self.nodes
        )


@accepts(FitOptions)
def fit(options: FitOptions) -> None:
    """Train a model on several targets at once.

    The same command after a kill goes on where it was: its checkpoint is in MODEL.run until the model is whole.
    """
    from polytask.fitting import fit_and_save, run_folder

    if options.events is not None:
        return events.fit(options)
    recipe, fabric = options.recipe(), options.fabric()
    data = options.load()
    fabric.launch()
    talk = fabric.is_global_zero
    if talk and not options.quiet:
        tell_about(data)
        if run_folder(options.out).exists():
            tell([f"going on from {run_folder(options.out)}"])
    fitted, test = fit_and_save(
        data, options.out, recipe, fabric=fabric, progress=talk and not options.quiet, tensorboard=options.tensorboard
    )
    if talk:
        title = f"{options.out}: {recipe.method.name}, step {fitted.step} of {fitted.steps}, on the test rows"
        show(title, metrics_table(data.tasks, test, data.test))


@accepts(FitOptions)
def validate(options: FitOptions) -> None:
    """Check all that 'fit' would need, without it.

    Takes the same options, reads the data, and rehearses a few steps whose result is thrown away.
    """
    from polytask.fitting import rehearse
    from polytask.training import fabric

    if options.events is not None:
        found, name, tasks = events.rehearse(options), options.model or "tgn", "links"
    else:
        recipe = options.recipe()
        options.fabric()  # refuses devices that are not there
        data = options.load()
        tell_about(data)
        one = fabric(precision=options.precision)
        found = rehearse(data, options.out, recipe, fabric=one, tensorboard=options.tensorboard)
        name, tasks = recipe.method.name, ", ".join(task.name for task in data.tasks)
    seconds = found.steps * found.step_seconds
    tell(
        [
            f"model: {name}, {found.parameters:,} parameters for {tasks}",
            f"steps: {found.steps:,} at {1000 * found.step_seconds:.1f} ms, about {seconds:.0f} s on one device, "
            "without evaluations",
            f"disk:  {found.disk_bytes / 1e6:,.0f} MB needed at most, {found.free_bytes / 1e6:,.0f} MB free",
        ],
        "dim",
    )
    print(f"{options.out}: everything that fit needs is there")


def register(app: typer.Typer) -> None:
    """Add this group's commands to ``app``."""
    app.command()(fit)
    app.command()(validate)
