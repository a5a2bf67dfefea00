"""AdaMerging and its baselines on any experts: the same models, task vectors and test inputs, one protocol for all.

Task arithmetic and TIES (as AdaMerging++ has it: trimmed, elected, summed) are at 0.3, and at the scale of `SCALES` with the
best mean accuracy on labelled validation data. AdaMerging sees no label: `STEPS` of Adam, lr `LR`, of `BATCH` test inputs a
task, from 0.3, clamped to (0, 1), and nothing of it is selected. The paper takes 500 steps of lr 1e-3, on models for which
0.3 is near the best. In all figures but those of the other half, the inputs adapted to are those that are scored, as in the
paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from polytask.data.examples import Examples, Inputs
from polytask.merge.coefficients import Coefficients, entropy, learn
from polytask.merge.rules.ties import trim_and_elect
from polytask.papers import _correlation
from polytask.papers._experts import Experts, added

Vector = dict[str, Tensor]

START = 0.3
STEPS = 200
LR = 1e-2
BATCH = 32
SCALES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)

ALL = slice(None)
EVEN, ODD = slice(0, None, 2), slice(1, None, 2)


class Unlabelled:
    """Batches of some rows of a task's test inputs, shuffled anew each time."""

    def __init__(self, examples: Examples, rows: slice, seed: int) -> None:
        self.examples, self.rows = examples, torch.arange(len(examples))[rows]
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Inputs]:
        order = self.rows[torch.randperm(len(self.rows), generator=self.generator)]
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield self.examples[order[start : start + BATCH]][0]


def adapt(
    experts: Experts,
    vectors: Sequence[Vector],
    by: Literal["task", "tensor"],
    seed: int,
    start: float = START,
    rows: slice = ALL,
) -> Coefficients:
    """Coefficients of ``vectors``, learned of the entropy on these rows of the experts' test inputs."""
    coefficients = Coefficients(experts.encoder, vectors, by, start=start)
    batches = {task: Unlabelled(experts.data[task].test, rows, seed) for task in experts.tasks}
    learn(
        coefficients,
        batches,
        lambda merged, task, inputs: entropy(experts.heads[task](merged(inputs))),
        steps=STEPS,
        lr=LR,
    )
    return coefficients


def moved(vectors: Sequence[Vector]) -> list[Vector]:
    """The task vectors without tensors that none of them moves, such as those that were frozen in fine-tuning."""
    names = [name for name in vectors[0] if any(bool(vector[name].any()) for vector in vectors)]
    return [{name: vector[name] for name in names} for vector in vectors]


def arithmetic(base: Mapping[str, Tensor], vectors: Sequence[Vector], scale: float) -> Vector:
    """Task arithmetic, ``theta_0 + scale * sum_k tau_k``; of trimmed and elected vectors it is TIES with sums."""
    summed: dict[str, Any] = {name: sum(vector[name] for vector in vectors) for name in vectors[0]}
    return added(base, summed, scale)


def best_scale(experts: Experts, vectors: Sequence[Vector]) -> float:
    """The scale of `SCALES` with the best mean accuracy on validation data; the smallest of equal ones."""
    return max(SCALES, key=lambda scale: experts.mean(arithmetic(experts.base, vectors, scale), "validation"))


def accuracy(experts: Experts, weights: Mapping[str, Tensor], tasks: Sequence[str], rows: slice = ALL) -> float:
    """The mean over tasks of the accuracy on these rows of the test data, in percent."""
    right = []
    for task in tasks:
        inputs, targets = experts.data[task].test[rows]
        right.append(float((experts.logits(weights, task, inputs).argmax(1) == targets[task]).float().mean()))
    return 100 * sum(right) / len(right)


def spearman(experts: Experts, weights: Mapping[str, Tensor]) -> float:
    """Spearman's correlation of entropy and cross-entropy over a task's test examples, the mean over tasks."""
    found = []
    for task in experts.tasks:
        inputs, labels = experts.part(task, "test")
        logits = experts.logits(weights, task, inputs).double()
        entropies = torch.special.entr(logits.softmax(1)).sum(1)
        losses = cross_entropy(logits, labels, reduction="none")
        found.append(_correlation.spearman(entropies.numpy(), losses.numpy()))
    return sum(found) / len(found)


def compare(experts: Experts, seed: int) -> dict[str, float]:
    """Test accuracies in percent, by method.

    ``"average"`` has all scales ``1 / K``, ``"arithmetic"`` and ``"ties"`` 0.3, ``"... tuned"`` the one that validation
    chose. ``"from average"`` is layer-wise AdaMerging that starts at ``1 / K``. ``"..., other half"`` is scored on the half
    of the test inputs that is not adapted to. For ``"..., unseen"`` the last two tasks are neither merged nor adapted to,
    and only they are scored. ``"spearman"`` is that of `spearman` before layer-wise adaptation, ``"spearman after"`` after;
    ``"lambda TASK/TENSOR"`` are the coefficients of layer-wise AdaMerging.
    """
    base, tasks, vectors = experts.base, experts.tasks, moved(experts.vectors)
    elected = trim_and_elect(vectors)
    scale, elected_scale = best_scale(experts, vectors), best_scale(experts, elected)
    layer_wise = adapt(experts, vectors, "tensor", seed)
    half = adapt(experts, vectors, "tensor", seed, rows=EVEN)
    models = {
        "base": base,
        "average": arithmetic(base, vectors, 1 / len(tasks)),
        "arithmetic": arithmetic(base, vectors, START),
        "tuned": arithmetic(base, vectors, scale),
        "ties": arithmetic(base, elected, START),
        "ties tuned": arithmetic(base, elected, elected_scale),
        "task-wise": base | adapt(experts, vectors, "task", seed).merged(),
        "layer-wise": base | layer_wise.merged(),
        "from average": base | adapt(experts, vectors, "tensor", seed, start=1 / len(tasks)).merged(),
        "task-wise++": base | adapt(experts, elected, "task", seed).merged(),
        "layer-wise++": base | adapt(experts, elected, "tensor", seed).merged(),
    }
    measured = {name: accuracy(experts, weights, tasks) for name, weights in models.items()}
    individual = experts.individual()
    measured["individual"] = sum(individual.values()) / len(individual)
    for name in ("arithmetic", "tuned"):
        measured[f"{name}, other half"] = accuracy(experts, models[name], tasks, ODD)
    measured["layer-wise, other half"] = accuracy(experts, base | half.merged(), tasks, ODD)
    measured["spearman"] = spearman(experts, models["arithmetic"])
    measured["spearman after"] = spearman(experts, models["layer-wise"])
    measured["no correlation"] = 0.0
    measured |= {"scale": scale, "ties scale": elected_scale}
    for task, row in zip(tasks, layer_wise().tolist(), strict=True):
        measured |= {f"lambda {task}/{name}": value for name, value in zip(layer_wise.groups, row, strict=True)}
    return measured | without_the_last_two(experts, seed)


def without_the_last_two(experts: Experts, seed: int) -> dict[str, float]:
    """The last two tasks, of which the merged model has no expert."""
    *seen, one, other = experts.tasks
    merged = experts.only(seen)
    vectors = moved(merged.vectors)
    models = {
        "base": experts.base,
        "arithmetic": arithmetic(experts.base, vectors, START),
        "tuned": arithmetic(experts.base, vectors, best_scale(merged, vectors)),
        "layer-wise": experts.base | adapt(merged, vectors, "tensor", seed).merged(),
    }
    return {f"{name}, unseen": accuracy(experts, weights, (one, other)) for name, weights in models.items()}
