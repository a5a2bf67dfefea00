"""Exact confidence sets: one known representation, or one of finitely many, with a linear head for each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.papers.gfucb.optimism import joint_choice, joint_value, separable_choice

Map = Callable[[Tensor], Tensor]
"""A representation: from inputs ``(N, ...)`` to features ``(N, k)``."""


@dataclass(frozen=True)
class Member:
    """The functions of one representation around the joint least squares solution ``f``, of all representations.

    In the distance to ``f`` over what was seen, ``sum (phi w_i - f)^2 + ridge |w - own|^2``, these are a ball: of the radius
    ``beta - distance`` around ``centre``, with the metric ``gram`` of each task. Without a share for the ridge a direction
    that was never seen would be unbounded; for the representation of ``f`` itself ``centre`` is ``own``, at the distance 0.

    Attributes:
        gram: ``(M, k, k)``, ``V_i = ridge + sum phi phi'`` over a task's rows.
        own: ``(M, k)``, the ridge solutions on what was observed.
        centre: ``(M, k)``, the nearest to ``f``.
        loss: squared errors of ``own`` on all tasks, with its ridge; the least of all representations is that of ``f``.
        distance: of ``centre`` from ``f``.
    """

    gram: Tensor
    own: Tensor
    centre: Tensor
    loss: float
    distance: float

    def means(self, features: Tensor) -> Tensor:
        """``(M, A, k)`` -> ``(M, A)``, the values of the centre."""
        return torch.einsum("mak,mk->ma", features, self.centre)

    def upper(self, features: Tensor, tasks: Tensor, beta: float) -> Tensor:
        """``(N, A, k)`` of rows that belong to tasks ``(N,)`` -> ``(N, A)``, the largest value at each in the set.

        One value at a time has the whole ball for itself. ``-inf`` where the representation is not in the set.
        """
        slack = beta - self.distance
        if slack < 0:
            return features.new_full(features.shape[:2], -torch.inf)
        means = torch.einsum("nak,nk->na", features, self.centre[tasks])
        solved = torch.linalg.inv(self.gram)[tasks]
        squares = torch.einsum("nak,nkl,nal->na", features, solved, features)
        return means + (slack * squares.clamp(min=0)).sqrt()

    def directions(self, features: Tensor) -> Tensor:
        """``(M, A, k)`` -> ``(M, A, M k)``, whitened, each task in its own block."""
        tasks, actions, width = features.shape
        factor = torch.linalg.cholesky(self.gram)
        white = torch.linalg.solve_triangular(factor, features.transpose(1, 2), upper=False).transpose(1, 2)
        blocks = features.new_zeros(tasks, actions, tasks, width)
        each = torch.arange(tasks)
        blocks[each, :, each] = white
        return blocks.flatten(2)


def members(features: Sequence[Tensor], tasks: Tensor, targets: Tensor, count: int, ridge: float) -> list[Member]:
    """Joint least squares for each representation, and how far each is from the best.

    Args:
        features: for each representation ``(N, k)``; ``k`` may differ.
        tasks: ``(N,)``, whose row it is, from 0.
        targets: ``(N,)``.
        count: of tasks, ``M``.
        ridge: > 0.
    """
    whose = torch.nn.functional.one_hot(tasks, count).to(targets)
    fitted = []
    for phi in features:
        eye = ridge * torch.eye(phi.shape[1], dtype=phi.dtype)
        gram = torch.einsum("nm,nk,nl->mkl", whose, phi, phi) + eye
        own = torch.linalg.solve(gram, torch.einsum("nm,nk->mk", whose * targets[:, None], phi))
        values = (phi * own[tasks]).sum(1)
        loss = float((values - targets).square().sum() + ridge * own.square().sum())
        fitted.append((phi, gram, own, values, loss))
    nearest = min(range(len(fitted)), key=lambda i: fitted[i][4])
    best = fitted[nearest][3]
    found = []
    for i, (phi, gram, own, _, loss) in enumerate(fitted):
        if i == nearest:
            found.append(Member(gram, own, own, loss, 0.0))
            continue
        right = torch.einsum("nm,nk->mk", whose * best[:, None], phi) + ridge * own
        centre = torch.linalg.solve(gram, right)
        distance = ((phi * centre[tasks]).sum(1) - best).square().sum() + ridge * (centre - own).square().sum()
        found.append(Member(gram, own, centre, loss, float(distance)))
    return found


class FiniteClass:
    """GFUCB by enumeration: the joint confidence set over representations and heads, computed exactly.

    With one representation it is known, and for one task this is LinUCB. Means and widths are in double precision.

    Args:
        maps: the representations.
        tasks: how many.
        beta: the radius of the confidence set, in squared errors; 0 is greedy. The theory's is far too large.
        ridge: of the heads, > 0.
        joint: one ball for all tasks (default); else every task has the radius for itself, as separate LinUCBs have.

    >>> agent = FiniteClass([lambda x: x], tasks=2, beta=0.1)
    >>> candidates = torch.eye(3).expand(2, 3, 3)  # three actions for each of two tasks
    >>> for _ in range(20):
    ...     actions = agent.choose(candidates)
    ...     agent.learn(candidates[torch.arange(2), actions], (actions == torch.tensor([2, 0])).float())
    >>> agent.choose(candidates).tolist()
    [2, 0]
    """

    def __init__(self, maps: Sequence[Map], tasks: int, beta: float, ridge: float = 1.0, joint: bool = True) -> None:
        if not maps or tasks < 1 or not beta >= 0 or not ridge > 0:
            raise InputError(
                f"{len(maps)} representations, {tasks} tasks, beta {beta}, ridge {ridge}: expected >= 1, >= 1, >= 0, > 0"
            )
        self.maps, self.count, self.beta, self.ridge, self.joint = list(maps), tasks, beta, ridge, joint
        self._features: list[list[Tensor]] = [[] for _ in maps]
        self._tasks: list[Tensor] = []
        self._rewards: list[Tensor] = []

    def choose(self, candidates: Tensor) -> Tensor:
        """The actions ``(M,)`` among each task's candidates, ``(M, A, ...)``."""
        best, chosen = -torch.inf, None
        for phi, member in zip(self._features_of(candidates), self._members(candidates), strict=True):
            slack = self.beta - member.distance
            if slack < 0:
                continue
            means, directions = member.means(phi), member.directions(phi)
            choice = joint_choice if self.joint else separable_choice
            actions = choice(means, directions, slack)
            value = float(joint_value(means, directions, actions, slack))
            if value > best:
                best, chosen = value, actions
        assert chosen is not None  # the nearest representation has distance 0
        return chosen

    def learn(self, inputs: Tensor, rewards: Tensor) -> None:
        """Take in what was played, one input ``(M, ...)`` and reward ``(M,)`` for each task; NaN where none was seen."""
        seen = check_rewards(rewards, self.count)
        for kept, phi in zip(self._features, self.maps, strict=True):
            kept.append(phi(inputs[seen]).double())
        self._tasks.append(seen)
        self._rewards.append(rewards[seen].double())

    def _members(self, candidates: Tensor) -> list[Member]:
        if not self._rewards:
            nothing = [phi.flatten(0, 1)[:0] for phi in self._features_of(candidates)]
            return members(nothing, torch.zeros(0, dtype=torch.long), nothing[0].new_zeros(0), self.count, self.ridge)
        features = [torch.cat(kept) for kept in self._features]
        return members(features, torch.cat(self._tasks), torch.cat(self._rewards), self.count, self.ridge)

    def _features_of(self, candidates: Tensor) -> list[Tensor]:
        shape = check_candidates(candidates, self.count)
        return [phi(candidates.flatten(0, 1)).double().view(*shape, -1) for phi in self.maps]


def check_rewards(rewards: Tensor, tasks: int) -> Tensor:
    """Which tasks have a reward; `InputError` unless there is a place for each, finite or NaN."""
    if rewards.shape != (tasks,) or bool(rewards.isinf().any()):
        raise InputError(f"rewards {rewards.tolist()}, expected {tasks} numbers, NaN where none was seen")
    return (~rewards.isnan()).nonzero()[:, 0]


def check_candidates(candidates: Tensor, tasks: int) -> tuple[int, int]:
    """``(M, A)``; `InputError` for candidates of another number of tasks, or of no action."""
    if candidates.ndim < 3 or len(candidates) != tasks or candidates.shape[1] == 0:
        raise InputError(f"candidates of the shape {tuple(candidates.shape)}, expected ({tasks}, actions, ...)")
    return tasks, candidates.shape[1]
