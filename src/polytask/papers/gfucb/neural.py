"""GFUCB with a network: joint least squares by training, and two ways to see how far functions in the set may go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from polytask.data import Examples
from polytask.errors import InputError
from polytask.nn.modes import evaluating
from polytask.papers.gfucb.finite import check_candidates, check_rewards
from polytask.papers.gfucb.network import MultiHead
from polytask.papers.gfucb.optimism import joint_choice
from polytask.training import fit

ROWS = 256


class Learner(ABC):
    """Plays with a network that is fitted again, from where it is, to all that was seen, every few rounds.

    Args:
        network: its weights are changed.
        every: rounds between fits.
        steps: of each fit, by AdamW at a constant rate ``lr``, on batches of at most ``batch_size`` rows of any task.
        weight_decay: of AdamW.
        seed: of batches, and of what is drawn.
    """

    def __init__(
        self,
        network: MultiHead,
        every: int = 10,
        steps: int = 100,
        batch_size: int = 128,
        lr: float = 3e-3,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        if min(every, steps, batch_size) < 1 or not lr > 0 or not weight_decay >= 0:
            raise InputError(
                f"every {every}, steps {steps}, batch size {batch_size}, lr {lr}, weight decay {weight_decay}: "
                "expected > 0, the last >= 0"
            )
        self.network, self.every, self.steps, self.batch_size = network, every, steps, batch_size
        self.lr, self.weight_decay = lr, weight_decay
        self.seed, self.rounds = seed, 0
        self.draws = torch.Generator().manual_seed(seed)
        self._inputs: list[Tensor] = []
        self._tasks: list[Tensor] = []
        self._rewards: list[Tensor] = []

    @abstractmethod
    def choose(self, candidates: Tensor) -> Tensor:
        """The actions ``(M,)`` among each task's candidates, ``(M, A, ...)``."""

    def learn(self, inputs: Tensor, rewards: Tensor) -> None:
        """Take in what was played, one input ``(M, ...)`` and reward ``(M,)`` for each task; NaN where none was seen."""
        seen = check_rewards(rewards, self.network.count)
        self._inputs.append(inputs[seen])
        self._tasks.append(seen)
        self._rewards.append(rewards[seen])
        self.rounds += 1
        if self.rounds % self.every == 0 and len(self.rows()[1]):
            self.refit()

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that was seen: inputs ``(N, ...)``, tasks and rewards ``(N,)``; empty tensors before anything was."""
        if not self._inputs:
            return torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0)
        return torch.cat(self._inputs), torch.cat(self._tasks), torch.cat(self._rewards)

    def refit(self) -> None:
        """Joint least squares over all tasks' rows."""
        inputs, tasks, rewards = self.rows()
        examples = Examples(inputs, {"task": tasks, "reward": rewards})
        fit(
            self.network,
            examples,
            steps=self.steps,
            batch_size=min(self.batch_size, len(examples)),
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule="constant",
            seed=self.seed + self.rounds,
        )

    def means(self, candidates: Tensor) -> Tensor:
        """The values of all candidates for their tasks, ``(M, A)``."""
        tasks, actions = check_candidates(candidates, self.network.count)
        owners = torch.arange(tasks).repeat_interleave(actions)
        with evaluating(self.network), torch.no_grad():
            return self.network.of(candidates.flatten(0, 1), owners).view(tasks, actions)


class Greedy(Learner):
    """The best action by the fitted network, but an action drawn evenly, in each task, with a chance of ``epsilon``.

    Other arguments are those of `Learner`.
    """

    def __init__(self, network: MultiHead, epsilon: float = 0.05, **settings: float) -> None:
        if not 0 <= epsilon <= 1:
            raise InputError(f"epsilon {epsilon}, expected from 0 to 1")
        super().__init__(network, **settings)  # type: ignore[arg-type]
        self.epsilon = epsilon

    def choose(self, candidates: Tensor) -> Tensor:
        best = self.means(candidates).argmax(1)
        drawn = torch.randint(candidates.shape[1], best.shape, generator=self.draws)
        explore = torch.rand(best.shape, generator=self.draws) < self.epsilon
        return torch.where(explore, drawn, best)


class Linearised(Learner):
    """Optimism in the network's tangent space: ``Z = ridge + sum g g'`` over all tasks' rows, ``g`` the gradient of ``f_i``.

    A gradient has a part for the representation, to which every task's rows add, and one for the task's own head. Parameters
    of the representation are sketched to ``sketch`` numbers (each adds, with a random sign, to one of them), which keeps
    inner products in the mean; heads are kept exactly. With a frozen representation this is the exact confidence set around
    the network's heads; for one task it is NeuralUCB with a sketch. ``torch.func.vmap`` has to know the operations of the
    encoder, which is run in evaluation mode.

    Args:
        beta: the radius of the confidence set; 0 is greedy.
        ridge: of ``Z``, > 0.
        sketch: numbers for the representation; all its parameters where they are fewer.

    Other arguments are those of `Learner`.
    """

    def __init__(
        self, network: MultiHead, beta: float = 0.1, ridge: float = 1.0, sketch: int = 256, **settings: float
    ) -> None:
        if not beta >= 0 or not ridge > 0 or sketch < 1:
            raise InputError(f"beta {beta}, ridge {ridge}, sketch {sketch}: expected >= 0, > 0, >= 1")
        super().__init__(network, **settings)  # type: ignore[arg-type]
        self.beta, self.ridge = beta, ridge
        count = sum(p.numel() for p in network.encoder.parameters() if p.requires_grad)
        self.sketch = min(sketch, count)
        self._exact = count <= sketch
        padded = -(-count // max(self.sketch, 1)) * self.sketch
        self._places = torch.randperm(padded, generator=self.draws)
        self._signs = torch.randint(2, (padded,), generator=self.draws) * 2.0 - 1.0
        self._missing = padded - count
        self.gram = ridge * torch.eye(self.sketch + network.heads.weight.numel(), dtype=torch.double)

    def choose(self, candidates: Tensor) -> Tensor:
        tasks, actions = check_candidates(candidates, self.network.count)
        owners = torch.arange(tasks).repeat_interleave(actions)
        gradients = self.gradients(candidates.flatten(0, 1), owners)
        factor = torch.linalg.cholesky(self.gram)
        white = torch.linalg.solve_triangular(factor, gradients.T, upper=False).T
        return joint_choice(self.means(candidates).double(), white.view(tasks, actions, -1), self.beta)

    def learn(self, inputs: Tensor, rewards: Tensor) -> None:
        refitted = (self.rounds + 1) % self.every == 0
        super().learn(inputs, rewards)
        if refitted:  # the features have moved
            self.gram = self.ridge * torch.eye(len(self.gram), dtype=torch.double)
            rows, tasks, _ = self.rows()
        else:
            rows, tasks = self._inputs[-1], self._tasks[-1]
        for part in range(0, len(tasks), ROWS):
            gradients = self.gradients(rows[part : part + ROWS], tasks[part : part + ROWS])
            self.gram += gradients.T @ gradients

    def gradients(self, inputs: Tensor, tasks: Tensor) -> Tensor:
        """``(N, sketch + M k)``, in double precision: of each input's value for its task."""
        encoder, heads = self.network.encoder, self.network.heads.weight.detach()
        learned = {name: p.detach() for name, p in encoder.named_parameters() if p.requires_grad}

        def value(parameters: dict[str, Tensor], x: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
            features = functional_call(encoder, parameters, (x[None],))[0]
            return features @ head, features

        with evaluating(encoder):
            if learned:
                each, features = vmap(grad(value, has_aux=True), in_dims=(None, 0, 0))(learned, inputs, heads[tasks])
                flat = torch.cat([gradient.flatten(1) for gradient in each.values()], 1)
            else:
                with torch.no_grad():
                    features = encoder(inputs)
                flat = features.new_zeros(len(inputs), 0)
        blocks = features.new_zeros(len(inputs), *heads.shape)
        blocks[torch.arange(len(inputs)), tasks] = features
        return torch.cat([self._sketched(flat), blocks.flatten(1)], 1).double()

    def _sketched(self, gradients: Tensor) -> Tensor:
        if self._exact:
            return gradients
        padded = torch.nn.functional.pad(gradients, (0, self._missing))
        return (padded[:, self._places] * self._signs).view(len(gradients), -1, self.sketch).sum(1)


class FineTuned(Learner):
    """Optimism by training: the network goes up in the sum of its best actions' values while it stays in the set.

    From the fitted weights, Adam ascends ``sum_i max_a f_i - penalty max(0, D - beta)``, where ``D`` is the squared
    distance to the fitted values over all that was seen. Weights outside are pulled back, in a straight line, by
    ``sqrt(beta / D)``, to where they would be on the boundary if values were linear in them. The actions of the best
    weights that are in the set count.

    Args:
        beta: the radius; 0 is greedy.
        ridge: times the squared distance to the fitted weights, added to ``D``; 0 by default, as in the paper.
        ascents: steps of Adam, at the rate ``rate``.
        penalty: of each unit of distance too much.
        starts: ascents that are tried. The first goes after the actions that are best at each step; others each after
            actions that were drawn.

    Other arguments are those of `Learner`.
    """

    def __init__(
        self,
        network: MultiHead,
        beta: float = 0.1,
        ridge: float = 0.0,
        ascents: int = 20,
        rate: float = 0.01,
        penalty: float = 10.0,
        starts: int = 1,
        **settings: float,
    ) -> None:
        if not beta >= 0 or not ridge >= 0 or min(ascents, starts) < 1 or not min(rate, penalty) > 0:
            raise InputError(
                f"beta {beta}, ridge {ridge}, ascents {ascents}, rate {rate}, penalty {penalty}, starts {starts}: "
                "expected >= 0, >= 0, >= 1, > 0, > 0, >= 1"
            )
        super().__init__(network, **settings)  # type: ignore[arg-type]
        self.beta, self.ridge, self.ascents, self.rate, self.penalty = beta, ridge, ascents, rate, penalty
        self.starts = starts

    def choose(self, candidates: Tensor) -> Tensor:
        return self.optimistic(candidates)[0]

    def optimistic(self, candidates: Tensor) -> tuple[Tensor, float]:
        """The actions ``(M,)``, and the sum of their values at the best weights that were found in the set."""
        means = self.means(candidates)
        best, value = means.argmax(1), float(means.max(1).values.sum())
        if self.beta == 0:
            return best, value
        for start in range(self.starts):
            wanted = None if start == 0 else torch.randint(means.shape[1], best.shape, generator=self.draws)
            actions, found = self._ascend(candidates, wanted)
            if found > value:
                best, value = actions, found
        return best, value

    def _ascend(self, candidates: Tensor, wanted: Tensor | None) -> tuple[Tensor, float]:
        network, (rows, tasks, _) = deepcopy(self.network).eval(), self.rows()
        learned = [p for p in network.parameters() if p.requires_grad]
        origin = [p.detach().clone() for p in learned]
        with torch.no_grad():
            fitted = network.of(rows, tasks) if len(tasks) else torch.zeros(0)
        shape = check_candidates(candidates, network.count)
        owners, inputs = torch.arange(shape[0]).repeat_interleave(shape[1]), candidates.flatten(0, 1)
        optimizer = torch.optim.Adam(learned, lr=self.rate)

        def look() -> tuple[Tensor, Tensor, Tensor]:
            """The distance, the actions, the sum of their values."""
            distance = (network.of(rows, tasks) - fitted).square().sum() if len(tasks) else torch.zeros(())
            if self.ridge:
                moved = [(p - o).square().sum() for p, o in zip(learned, origin, strict=True)]
                distance = distance + self.ridge * torch.stack(moved).sum()
            values = network.of(inputs, owners).view(shape)
            actions = values.argmax(1) if wanted is None else wanted
            return distance, actions, values.gather(1, actions[:, None]).sum()

        best, chosen = -torch.inf, torch.zeros(shape[0], dtype=torch.long)
        for _ in range(self.ascents):
            distance, _, value = look()
            optimizer.zero_grad()
            torch.autograd.backward(self.penalty * (distance - self.beta).clamp(min=0) - value)
            optimizer.step()
            with torch.no_grad():
                distance, actions, value = look()
                if distance > self.beta:
                    there = [p.clone() for p in learned]
                    _move(learned, origin, there, float((self.beta / distance).sqrt()) * (1 - 1e-6))
                    distance, actions, value = look()
                    _move(learned, there, there, 1.0)
                if distance <= self.beta and float(value) > best:
                    best, chosen = float(value), actions
        return chosen, best


def _move(parameters: list[torch.nn.Parameter], origin: list[Tensor], there: list[Tensor], share: float) -> None:
    for parameter, start, end in zip(parameters, origin, there, strict=True):
        parameter.copy_(torch.lerp(start, end, share))
