"""The network of the claims: a frozen base that names glyphs, and what is trained beside its layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.data.examples import Examples
from polytask.papers._experts import Split
from polytask.papers._experts.glyphs import Encoder
from polytask.papers.mhr.questions import CLASSES, PIXELS
from polytask.scope import task_scope
from polytask.share import Insertable, Inserted, insert

WIDTHS = (PIXELS**2, 256, 128, 64)
BASE_IMAGES = 600
BASE_STEPS = 300


class Answering(nn.Module):
    """Names a glyph, ``(N, 1, 16, 16)`` -> ``(N, 20)``, and ranks a task's answers (`polytask.model.Losses`)."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.tasks: tuple[str, ...] = ()
        self.classes = torch.empty(0, 4)

    def forward(self, images: Tensor) -> Tensor:
        named: Tensor = self.head(self.encoder(images))
        return named

    def ask(self, tasks: Sequence[str], classes: Tensor) -> None:
        """Set the tasks that `answers` and `losses` know, and their classes ``(T, 4)``."""
        self.tasks, self.classes = tuple(tasks), classes

    def answers(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of each example's four answers, ``(N, 4)``."""
        with task_scope(self.tasks, inputs["task"]):
            named = self(inputs["images"])
        answers: Tensor = named.gather(1, self.classes[inputs["task"]])
        return answers

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The mean cross-entropy of each task that the batch has examples of."""
        inputs, targets = batch
        each = F.cross_entropy(self.answers(inputs), targets["answer"], reduction="none")
        counts = torch.bincount(inputs["task"], minlength=len(self.tasks))
        means = torch.zeros(len(self.tasks)).index_add(0, inputs["task"], each) / counts.clamp(min=1)
        return {task: mean for task, mean, count in zip(self.tasks, means, counts.tolist(), strict=True) if count}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """What tasks share and train: the skills."""
        return (p for name, p in self.named_parameters() if p.requires_grad and ".logits." not in name)

    @torch.no_grad()
    def accuracy(self, examples: Examples) -> float:
        """In percent, over all examples."""
        inputs, targets = examples[:]
        assert not isinstance(inputs, Tensor)
        return 100 * float((self.answers(inputs).argmax(1) == targets["answer"]).float().mean())


def base(sets: Mapping[str, Split], seed: int) -> Answering:
    """256-256-128-64 with ReLU, trained on the first `BASE_IMAGES` images of MNIST and of notMNIST: 20 % of each."""
    torch.manual_seed(seed)
    network = Answering(Encoder(WIDTHS), nn.Linear(WIDTHS[-1], CLASSES))
    few = [sets[name].train[slice(0, BASE_IMAGES)] for name in ("mnist", "notmnist")]
    images = torch.cat([images for images, _ in few])  # type: ignore[misc]
    labels = torch.cat([targets["class"] for _, targets in few])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(BASE_STEPS):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        F.cross_entropy(network(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.requires_grad_(False)


def adapted(network: Answering, method: Insertable, tasks: Sequence[str], classes: Tensor) -> tuple[Answering, Inserted]:
    """A copy of the base with a part at each layer of its encoder, which alone are trained."""
    network = copy.deepcopy(network)
    network.ask(tasks, classes)
    places = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and name != "head"]
    return network, insert(network, method, tasks, places).freeze()
