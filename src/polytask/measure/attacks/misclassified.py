"""The objective of most attacks: that a model calls an image something else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from torch import Tensor, nn

from polytask.nn.modes import evaluating
from polytask.nn.objective import Aim, LabelLoss, Objective, label_loss


def misclassified(model: Callable[[Tensor], Tensor], loss: LabelLoss = "margin", cost: float = 1.0) -> Objective:
    """Raise ``loss`` until the largest of the logits is not the label's.

    Args:
        model: any function from images to logits ``(n, classes)``. A module runs in evaluation mode and has its mode back
            afterwards. Of a wrapped model, such as DDP's, give the one inside.
        loss: see `label_loss`; the margin does not fall for saturated outputs.
        cost: of one evaluation for one image, such as its multiply-accumulate operations forward and back.
    """

    def objective(images: Tensor, labels: Tensor) -> Aim:
        with evaluating(model) if isinstance(model, nn.Module) else nullcontext():
            logits = model(images)
        value = label_loss(logits, labels, loss)
        return Aim(value, logits.argmax(1) != labels, value.new_full(value.shape, cost))

    return objective
