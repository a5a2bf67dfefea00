"""For each task a distribution over the networks of a space."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError, suggest
from polytask.shrink.search.space import Rows, Space


class Precise(nn.Module):
    """A module whose own buffers keep at least single precision: in half a step of learning would be rounded away."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Precise:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self._buffers.items():
            was = before[name]
            if buffer is not None and was is not None and buffer.is_floating_point() and buffer.itemsize < 4:
                self._buffers[name] = was.to(buffer.device)
        return self


class Distributions(Precise):
    """For each task a categorical distribution over networks, every gene by itself.

    ``pi_t(a)`` is the product of ``softmax(theta_{t,g})[a_g]`` over the genes ``g`` that the network ``a`` uses. A gene of
    two options, such as whether a block is kept, is a Bernoulli variable whose logit is the difference of its two. All is
    computed from logarithms. There are ``T`` tasks, ``G`` genes and at most ``O`` options of a gene.

    Args:
        space: whose networks.
        tasks: names, in order.
        start: by gene the probabilities of its options at first, for all tasks; of genes that are absent each option is as
            likely. Where options skip parts of a network, a start above 0.5 for what is kept makes networks that can be
            trained.
        limit: so far, at most, is a logit below the largest of its gene: no option ever becomes impossible. By default 5: a
            keep-or-skip gene stays between 0.0067 and 0.9933.

    Attributes:
        logits: ``(T, G, O)``, a buffer, at most 0; minus infinity where a gene has fewer options. It keeps at least single
            precision when the module is moved to half.

    >>> space = Space({"keep": [False, True], "kernel": [3, 5, 7]}, when={"kernel": {"keep": [True]}})
    >>> tasks = Distributions(space, ["class", "depth"], start={"keep": [0.2, 0.8]})
    >>> rows = space.row({"keep": True, "kernel": 5})[None], space.row({"keep": False})[None]
    >>> [[round(float(p), 4) for p in tasks.log_prob(row).exp()] for row in rows]
    [[0.2667, 0.2667], [0.2, 0.2]]
    """

    logits: Tensor

    def __init__(
        self,
        space: Space,
        tasks: Collection[str],
        start: Mapping[str, Sequence[float]] | None = None,
        limit: float = 5.0,
    ) -> None:
        super().__init__()
        if not tasks or len(set(tasks)) < len(tasks):
            raise InputError(f"tasks {list(tasks)}, expected at least one, with distinct names")
        if not limit > 0:
            raise InputError(f"limit {limit}, expected a number above 0")
        self.space, self.tasks, self.limit = space, tuple(tasks), limit
        first = torch.full((len(space.names), int(space.sizes.max())), -math.inf)
        for gene, size in enumerate(space.sizes.tolist()):
            first[gene, :size] = 0
        for name, odds in (start or {}).items():
            logits = _odds(space, name, odds).log()
            first[space.names.index(name), : len(logits)] = logits
        self.register_buffer("logits", first.expand(len(self.tasks), -1, -1).clone())
        self.move(torch.zeros(()))

    def probabilities(self) -> Tensor:
        """``(T, G, O)``."""
        return self.logits.softmax(-1)

    def log_prob(self, rows: Rows) -> Tensor:
        """``(T, N)``: the logarithm of each network's probability. Values of genes that are not used do not matter."""
        places, used = self._places(rows)
        each = self.logits.log_softmax(-1)[:, torch.arange(len(self.space.names)), places]
        return torch.where(used, each, 0.0).sum(-1)

    def gradient(self, rows: Rows, weights: Tensor) -> Tensor:
        """``(T, G, O)``: of ``sum_n weights[t, n] log pi_t(a_n)`` by the logits, ``weights`` being ``(T, N)``.

        A logit's part is ``[a_g = o] - p_{t,g,o}`` for each network that uses the gene.
        """
        places, used = self._places(rows)
        used = used.to(weights)
        ones = F.one_hot(places, self.logits.shape[-1]) * used[..., None]
        seen = torch.einsum("tn,ngo->tgo", weights, ones)
        return seen - torch.einsum("tn,ng->tg", weights, used)[..., None] * self.probabilities()

    def sample(self, count: int, generator: torch.Generator | None = None, task: str | None = None) -> Rows:
        """``(count, G)`` rows of one task's distribution, or of the mixture ``q = (1/T) sum_t pi_t``.

        Of the mixture the tasks are drawn from in turn, in an order that is random: each row by itself is one of ``q``, and
        every ``T`` in succession have one of each task. Of torch's random numbers, or of ``generator``.
        """
        probabilities = self.probabilities().cpu()
        if task is None:
            turns = [torch.randperm(len(self.tasks), generator=generator) for _ in range(-(-count // len(self.tasks)))]
            each = probabilities[torch.cat(turns)[:count]] if turns else probabilities[:0]
        else:
            each = probabilities[self._task(task)].expand(count, -1, -1)
        if not count:
            return self.most_probable()[:0]
        drawn = torch.multinomial(each.flatten(0, 1), 1, generator=generator)
        rows: Rows = drawn.view(count, -1).numpy()
        return rows

    def most_probable(self) -> Rows:
        """``(T, G)``: each task's network of the most probable options; with genes of two, those above 0.5."""
        rows: Rows = self.logits.argmax(-1).cpu().numpy()
        return rows

    def entropy(self) -> Tensor:
        """``(T,)``: the entropy in nats, the sum over all genes, whether a network uses them or not."""
        entropies: Tensor = torch.special.entr(self.probabilities()).sum((1, 2))
        return entropies

    def move(self, step: Tensor) -> None:
        """Add ``step`` ``(T, G, O)`` to the logits, within the limit. Entries without an option do not matter."""
        there = self.logits.isfinite()
        moved = torch.where(there, self.logits + step.to(self.logits), -math.inf)
        moved = (moved - moved.amax(-1, keepdim=True)).clamp(min=-self.limit)
        self.logits.copy_(torch.where(there, moved, -math.inf))

    def _task(self, name: str) -> int:
        if name not in self.tasks:
            raise InputError(f"unknown task {name!r}: {suggest(name, self.tasks)}")
        return self.tasks.index(name)

    def _places(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """``(N, G)``: options, 0 for genes that are not used, and which are used."""
        places = torch.as_tensor(self.space.canonical(rows), device=self.logits.device)
        return places.clamp(min=0), places >= 0


def mixture(log_probs: Tensor) -> Tensor:
    """``(N,)``: the logarithm of ``q = (1/T) sum_t pi_t``, of ``log pi_t`` ``(T, N)``."""
    return torch.logsumexp(log_probs, 0) - math.log(len(log_probs))


def _odds(space: Space, name: str, odds: Sequence[float]) -> Tensor:
    if name not in space.genes:
        raise InputError(f"start: unknown gene {name!r}: {suggest(name, space.genes)}")
    options = len(space.genes[name])
    if len(odds) != options or min(odds) <= 0 or not math.isclose(sum(odds), 1, abs_tol=1e-6):
        raise InputError(f"start: gene {name!r} has {list(odds)}, expected {options} probabilities above 0 whose sum is 1")
    return torch.tensor(odds)
