"""The rich tasks' adapters: trained once, as adapters that one finds on a hub were, and kept for all seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from polytask.data.examples import Inputs
from polytask.data.mixture import Mixture
from polytask.files import cache_folder
from polytask.model import Model
from polytask.papers._experts.experts import cached, digest
from polytask.papers.scalearn import texts
from polytask.papers.scalearn.texts import FILES, RICH, WHERE, LastBlocks, Split, rich
from polytask.scope import task_scope
from polytask.share import Adapter, Inserted, insert
from polytask.training import fit

STEPS, BATCH, RATE = 180, 32, 3e-3
"""Of a rich task."""

HEAD_RATE, EVALUATIONS = 1e-2, 3
"""Of all runs: the learning rate of heads, and how often validation looks for the best weights."""


def task_adapter(width: int) -> Adapter:
    """A task's adapter in an encoder of this width, as the paper has it: for the normalisation behind each feed-forward
    network, a bottleneck of a sixteenth of the width."""
    return Adapter(width // 16, "norm", "relu", start="bert")


def rich_adapters(folder: Path) -> dict[str, Tensor]:
    """The tensors of trained adapters, by their names in an insertion of `task_adapter`: one of each rich task, and ``all``.

    The latter has learnt all rich tasks in one run, of as many steps as the three took.
    """
    files = [Path(texts.__file__), *(folder / name for name in FILES)]
    name = f"scalearn-adapters-{digest(files, rich_adapters, {})}.safetensors"  # type: ignore[arg-type]  # a function with code

    def make() -> dict[str, Tensor]:
        splits = rich(folder)
        made: dict[str, Tensor] = {}
        for tasks, name in [*(([task], task) for task in RICH), (list(RICH), "all")]:
            torch.manual_seed(0)
            encoder = As(name, LastBlocks())
            adapters = insert(encoder.encoder, task_adapter(encoder.width), [name], WHERE).freeze()
            own = {task: splits[task] for task in tasks}
            train(Model(encoder, [split.task for split in own.values()]), own, STEPS * len(own), BATCH, RATE)
            made |= adapters.state_dict()
        return made

    return cached(cache_folder() / "features" / name, make)


def load_adapters(adapters: Inserted, tensors: Mapping[str, Tensor]) -> None:
    """Copy into an insertion those of ``tensors`` that it has."""
    with torch.no_grad():
        for name, tensor in adapters.state_dict().items():
            if name in tensors:
                tensor.copy_(tensors[name])


class As(nn.Module):
    """The encoder, as it is for the task called ``name``, whatever task is asked for."""

    def __init__(self, name: str, encoder: LastBlocks) -> None:
        super().__init__()
        self.name, self.encoder, self.width = name, encoder, encoder.width

    def forward(self, inputs: Inputs) -> Tensor:
        with task_scope(self.name):
            features: Tensor = self.encoder(inputs)
        return features


def train(
    model: Model,
    splits: Mapping[str, Split],
    steps: int,
    batch: int,
    rate: float,
    seed: int = 0,
    held: Mapping[str, Split] | None = None,
) -> None:
    """Fit to all tasks of ``splits``, each as often; the validation data of ``held``, by default of all, selects weights."""
    mixture = Mixture({task: split.train for task, split in splits.items()}, sampling="uniform", batch_size=batch)
    validation = {task: split.validation for task, split in (held or splits).items()}
    rates = {"heads.*": HEAD_RATE, "*": rate}
    fit(model, mixture, validation, steps=steps, lr=rates, evaluate_every=steps // EVALUATIONS, seed=seed)
