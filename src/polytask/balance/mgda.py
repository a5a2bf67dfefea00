"""The multiple-gradient descent algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from polytask.balance._balancer import Evaluate, balancers
from polytask.balance._preference import PreferringWeighting
from polytask.balance.engine.passes import Backward
from polytask.balance.engine.task_gradients import TaskGradients
from polytask.balance.solvers import Array, cosines, min_norm
from polytask.errors import InputError

NORMALISE = ("none", "l2", "loss", "loss+")


def weights(gramian: Tensor, sizes: Array | None = None, divided: bool = True) -> Tensor:
    """The weights, with sum 1, of the shortest vector in the convex hull of the task gradients, ``(K,)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        sizes: what each gradient is divided by first, > 0, ``(K,)``; all 1 by default.
        divided: weights of the gradients as they are, for a step along that vector; else those of the divided gradients.
    """
    norms, matrix = cosines(gramian)
    sizes = np.ones(len(norms)) if sizes is None else sizes / sizes.max()
    on_simplex = min_norm(norms / sizes, matrix)
    if divided:
        on_simplex = on_simplex / sizes
    return torch.from_numpy(on_simplex / on_simplex.sum())


@balancers.add("mgda")
class MGDA(PreferringWeighting):
    """The shortest convex combination of the task gradients: a step that is no worse for any task, or none.

    The weights solve ``min_w |sum_k w_k g_k / s_k|^2`` with ``w >= 0`` and ``sum_k w_k = 1``; each task then gains at the
    same first-order rate relative to ``s_k``, or faster. Désidéri, *Multiple-gradient descent algorithm (MGDA) for
    multiobjective optimization*, Comptes Rendus Mathématique 2012; Sener and Koltun, *Multi-task learning as
    multi-objective optimization*, NeurIPS 2018. Solved exactly rather than by their Frank-Wolfe steps. The step follows that
    shortest vector, with ``w_k / s_k`` brought to a sum of 1 as weights of the gradients; `LossMGDA` puts ``w`` itself on
    the losses as they are.

    Args:
        preference: a number > 0 for each task; a task that is not named has 1. Twice the preference, twice the rate.
        normalise: what each gradient is divided by beside the preference: ``"none"``; ``"l2"``, its norm; ``"loss"``, the
            size of its loss; ``"loss+"``, both.
    """

    scale = "own"
    divided = True

    def __init__(self, preference: Mapping[str, float] | None = None, normalise: str = "none") -> None:
        super().__init__(preference)
        if normalise not in NORMALISE:
            raise InputError(f"normalise {normalise!r}: expected one of {', '.join(NORMALISE)}")
        self.normalise = normalise

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        sizes = self.preferences(losses)
        if self.normalise in ("l2", "loss+"):
            norms, _ = cosines(gramian)
            sizes *= np.where(norms > 0, norms, 1)
        if self.normalise in ("loss", "loss+"):
            sizes *= np.maximum(np.abs(list(losses.values())), 1e-30)
        return weights(gramian, sizes, self.divided)


class LossMGDA(MGDA):
    """A step down the gradient of ``sum_k w_k L_k``, with the weights ``w`` that `MGDA` finds for the divided gradients.

    As in Sener and Koltun's code, and in ParetoGNN (Ju et al., *Multi-task self-supervised graph neural networks enable
    stronger task generalization*, ICLR 2023). The tasks' own parameters get their weighted loss's gradient too, where `MGDA`
    gives them that of their loss whole. One more backward pass; arguments as for `MGDA`.
    """

    divided = False
    joins = False

    def step(
        self,
        batches: Sequence[Evaluate],
        shared: Sequence[nn.Parameter],
        backward: Backward,
        processes: ProcessGroup | None = None,
    ) -> None:
        gradients = TaskGradients(shared, processes, len(batches), own=False)
        found = [evaluate() for evaluate in batches]
        for losses in found:
            gradients.add(losses, backward)
        if not gradients.losses:
            return
        w = self.weights_of(gradients).to(shared[0])
        if processes is not None:
            dist.broadcast(w, group_src=0, group=processes)
        weight = dict(zip(gradients.losses, w.unbind(), strict=True))
        for losses in found:
            if losses:
                backward(torch.stack([weight[name] * loss for name, loss in losses.items()]).sum())
