"""The rich tasks' adapters: trained once, as adapters that one finds on a hub were, and kept for all seeds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from polytask import task_scope
from polytask.data.examples import Inputs
from polytask.data.mixture import Mixture
from polytask.files import cache_folder
from polytask.model import Model
from polytask.papers._experts.experts import cached, digest
from polytask.papers.scalearn.texts import FILES, RICH, WHERE, LastBlocks, Split, rich
from polytask.share import Adapter, Inserted, insert
from polytask.training import fit

ADAPTER = Adapter(24, "norm", "relu", start="bert")
"""The paper's: a sixteenth of the network's width."""

STEPS, BATCH, RATE, HEADS = 180, 32, 3e-3, 1e-2
"""Of a rich task: steps, rows a step, and the learning rates of adapter and head. Heads have theirs in all runs."""


def rich_adapters(folder: Path) -> dict[str, Tensor]:
    """The tensors of trained adapters, by their names in an insertion of `ADAPTER`: one of each rich task, and ``all``.

    The latter has learnt all rich tasks in one run, of as many steps as the three took.
    """
    files = [folder / name for name in FILES]
    path = cache_folder() / "features" / f"scalearn-adapters-{digest(files, rich_adapters, {})}.safetensors"  # type: ignore[arg-type]

    def make() -> dict[str, Tensor]:
        splits = rich(folder)
        made: dict[str, Tensor] = {}
        for tasks, name in [*(([task], task) for task in RICH), (list(RICH), "all")]:
            torch.manual_seed(0)
            encoder = As(name)
            adapters = insert(encoder.encoder, ADAPTER, [name], WHERE).freeze()
            _fit(Model(encoder, [splits[task].task for task in tasks]), {task: splits[task] for task in tasks})
            made |= adapters.state_dict()
        return made

    return cached(path, make)


def load_adapters(adapters: Inserted, tensors: dict[str, Tensor]) -> None:
    """Copy into an insertion those of ``tensors`` that it has."""
    with torch.no_grad():
        for name, tensor in adapters.state_dict().items():
            if name in tensors:
                tensor.copy_(tensors[name])


class As(nn.Module):
    """The encoder, as it is for the task called ``name``, whatever task is asked for."""

    def __init__(self, name: str, encoder: LastBlocks | None = None) -> None:
        super().__init__()
        self.name, self.encoder = name, encoder or LastBlocks()
        self.width = self.encoder.width

    def forward(self, inputs: Inputs) -> Tensor:
        with task_scope(self.name):
            features: Tensor = self.encoder(inputs)
        return features


def _fit(model: Model, splits: dict[str, Split]) -> None:
    train = Mixture({task: split.train for task, split in splits.items()}, sampling="uniform", batch_size=BATCH)
    held = {task: split.validation for task, split in splits.items()}
    steps = STEPS * len(splits)
    fit(model, train, held, steps=steps, lr={"heads.*": HEADS, "*": RATE}, evaluate_every=steps // 5)
