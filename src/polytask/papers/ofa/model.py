"""OFA as a module that `polytask.fit` trains: one network, and any number of tasks on any graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.data import to_device
from polytask.errors import InputError, suggest
from polytask.measure import pooled
from polytask.papers.ofa.network import PromptNetwork
from polytask.papers.ofa.prompts import PromptGraph, joined, prompted, prompted_episodes
from polytask.papers.ofa.task import Metric, TextTask
from polytask.training.evaluate import batches

Samples: TypeAlias = Tensor | Mapping[str, Tensor]
"""Numbers of a task's samples ``(B,)``; or episodes, as `polytask.papers.ofa.Episodes` has them."""


class OFA(nn.Module):
    """One network for all tasks: nothing in it belongs to any of them.

    Batches are ``{task: (samples, targets)}``. All tasks of a batch are put side by side in one graph, so that normalisation
    sees what the batch is made of. Graphs stay in the processor's memory, where prompt graphs are made; those go to the
    network's device.

    For tasks that it has not been trained on, `OFA(network, tasks)` with the same network predicts: their classes are
    sentences too.

    Args:
        network: what is trained.
        tasks: with distinct names.
    """

    def __init__(self, network: PromptNetwork, tasks: Sequence[TextTask]) -> None:
        super().__init__()
        names = [task.name for task in tasks]
        if not names or len(set(names)) < len(names):
            raise InputError(f"tasks {names}, expected at least one, and distinct names")
        self.network = network
        self.tasks = {task.name: task for task in tasks}
        for task in tasks:
            width = task.graph.table.shape[1]
            if {width, task.prompt.classes.shape[1]} != {network.project.in_features}:
                found = f"sentences of width {width} and {task.prompt.classes.shape[1]}"
                raise InputError(f"task {task.name!r}: {found}, expected {network.project.in_features}, as the network has")

    def forward(self, batch: Mapping[str, Samples]) -> dict[str, Tensor]:
        """Logits ``(B, C)`` of each task's samples."""
        graphs = [self._graph(name, samples) for name, samples in batch.items()]
        logits = self.network(to_device(joined(graphs), self.network.project.weight.device))
        parts = logits.split([len(graph.classes) for graph in graphs])
        counts = [len(samples if isinstance(samples, Tensor) else samples["query"]) for samples in batch.values()]
        return {name: part.view(count, -1) for name, part, count in zip(batch, parts, counts, strict=True)}

    def losses(self, batch: Mapping[str, tuple[Samples, Tensor]]) -> dict[str, Tensor]:
        """Each task's part of the mean binary cross-entropy over all class nodes of the batch: their sum is that mean.

        What is NaN in the targets is left out. A sample so counts by its classes, as in the authors' code: with a mean for
        each task instead, two classes of molecules would weigh as much as ten of words, and their noise would drown these.
        """
        logits = self({name: samples for name, (samples, _) in batch.items()})
        known = {name: ~targets.isnan() for name, (_, targets) in batch.items()}
        count = sum(int(there.sum()) for there in known.values())
        losses = {}
        for name, there in known.items():
            if bool(there.any()):
                asked, answers = logits[name][there].float(), batch[name][1][there].float()
                losses[name] = F.binary_cross_entropy_with_logits(asked, answers, reduction="sum") / count
        return losses

    def label_counts(self, batch: Mapping[str, tuple[Samples, Tensor]]) -> dict[str, Tensor]:
        """How many labels the losses are parts of the mean of: those of the whole batch, for every task."""
        counts = [(~targets.isnan()).sum() for _, targets in batch.values()]
        return dict.fromkeys(self.tasks, torch.stack(counts).sum())

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All of them: every task trains every parameter."""
        return self.parameters()

    @torch.no_grad()
    def score(self, task: str, samples: Tensor, chunk: int = 256) -> Tensor:
        """``(M, C)`` logits of a task's samples ``(M,)``, ``chunk`` at a time. The mode is not changed: call ``eval()``."""
        parts = [self({task: part})[task].float().cpu() for part in torch.split(samples, chunk)]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.tasks[task].prompt.classes))

    @torch.no_grad()
    def evaluate(self, data: Mapping[str, Any], batch_size: int = 256) -> dict[str, dict[str, float]]:
        """Each task's metric, ``{task: {"accuracy": ...}}``, and ``{"all": {"mean": ...}}``, the mean over tasks.

        Args:
            data: for each task its examples (`TextTask.examples`), or batches of ``(samples, targets)``.
            batch_size: of examples.
        """
        found: dict[str, dict[str, float]] = {}
        for name, source in data.items():
            logits, labels = [], []
            for samples, targets in batches({name: source}, batch_size):
                logits.append(self({name: samples})[name].float().cpu())
                labels.append(targets[name].cpu())
            metric = self.tasks[name].metric
            found[name] = {metric: quality(torch.cat(logits), torch.cat(labels), metric)}
        means = [value for metrics in found.values() for value in metrics.values()]
        return {**found, "all": {"mean": sum(means) / len(means)}}

    def _graph(self, name: str, samples: Samples) -> PromptGraph:
        if name not in self.tasks:
            raise InputError(f"unknown task {name!r}: {suggest(name, self.tasks)}")
        if isinstance(samples, Tensor):
            return prompted(self.tasks[name], samples.cpu())
        return prompted_episodes(self.tasks[name], to_device(samples, torch.device("cpu")))


def quality(logits: Tensor, labels: Tensor, metric: Metric) -> float:
    """How good logits ``(S, C)`` are for labels ``(S, C)``: see `TextTask`. Samples without label do not count, nor do
    questions of which all answers are alike; NaN where there is nothing to tell."""
    if metric == "accuracy":
        known = ~labels.isnan().any(1)
        if not bool(known.any()):
            return float("nan")
        return float((logits[known].argmax(1) == labels[known].argmax(1)).float().mean())
    yes, no = logits.chunk(2, 1)
    values = []
    for score, label in zip((yes - no).unbind(1), labels.chunk(2, 1)[0].unbind(1), strict=True):
        positive, negative = score[label == 1], score[label == 0]
        if len(positive) and len(negative):
            values.append(pooled(positive, negative)[metric])
    return sum(values) / len(values) if values else float("nan")
