"""Attacks by gradient steps within a budget: FGSM and PGD."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from polytask.errors import InputError, suggest
from polytask.nn.objective import Aim, Objective

Norm: TypeAlias = Literal["linf", "l2"]


class Attacked(NamedTuple):
    """What an attack made of ``N`` images.

    Attributes:
        images: as those given, in [0, 1].
        reached: ``(N,)`` bool, whether the objective was reached there.
        cost: ``(N,)``, summed over the evaluations with a gradient that each image took: their number, or what the
            objective says that they cost.
    """

    images: Tensor
    reached: Tensor
    cost: Tensor


def fgsm(objective: Objective, images: Tensor, labels: Tensor, radius: float) -> Attacked:
    """One step to the corner of the Linf ball that the gradient's sign points to (Goodfellow et al., ICLR 2015)."""
    return pgd(objective, images, labels, radius, step=radius, steps=1, random_start=False)


def pgd(
    objective: Objective,
    images: Tensor,
    labels: Tensor,
    radius: float,
    *,
    step: float | None = None,
    steps: int = 20,
    norm: Norm = "linf",
    random_start: bool = True,
    stop: bool = False,
    generator: torch.Generator | None = None,
) -> Attacked:
    """Projected gradient ascent (Madry et al., *Towards deep learning models resistant to adversarial attacks*, ICLR 2018).

    ``x' <- project(x' + step * direction)``: the direction is the gradient's sign for Linf, and the gradient brought to
    length 1 for L2; the projection is onto the ball around the image, then onto [0, 1].

    Args:
        objective: see `polytask.measure.attacks.misclassified`.
        images: ``(N, ...)`` in single or double precision, in [0, 1]. The model may compute in less, as under autocast.
        labels: ``(N, ...)``, what the objective is given beside the images.
        radius: the budget, in pixels' units: 8 / 255 is usual for colour photographs.
        step: a quarter of the radius by default.
        steps: how many.
        norm: of the budget.
        random_start: begin anywhere in the ball, evenly, and not at the image.
        stop: an image that has reached the objective stays as it is and is computed no further; otherwise all steps are
            taken, which carries further into other models.
        generator: of the random start, on the images' device.
    """
    check(images, labels, steps)
    if norm not in get_args(Norm):
        raise InputError(f"unknown norm {norm!r}: {suggest(norm, get_args(Norm))}")
    step = radius / 4 if step is None else step
    if not (radius >= 0 and step >= 0):
        raise InputError(f"radius {radius}, step {step}: expected 0 or more")
    rows = torch.arange(len(images), device=images.device)
    found = images.clone()
    if random_start:
        found = _projected(images, images + _start(images, radius, norm, generator), radius, norm)
    reached, cost = torch.zeros_like(rows, dtype=torch.bool), images.new_zeros(len(images))
    for _ in range(steps):
        x, aim, slope = slope_of(objective, found[rows], labels[rows])
        cost[rows] += spent(aim)
        if stop:
            reached[rows] = aim.reached
            going = ~aim.reached
            rows, x, slope = rows[going], x[going], slope[going]
            if not len(rows):
                break
        found[rows] = _projected(images[rows], x + step * _direction(slope, norm), radius, norm)
    if len(rows):
        with torch.no_grad():
            reached[rows] = objective(found[rows], labels[rows]).reached
    return Attacked(found, reached, cost)


def slope_of(objective: Objective, x: Tensor, labels: Tensor) -> tuple[Tensor, Aim, Tensor]:
    """``x``, its aim, and the gradient of each value to its own image; nothing is left in parameters."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        aim = objective(x, labels)
        (slope,) = torch.autograd.grad(aim.value.sum(), [x])
    return x.detach(), aim, slope.nan_to_num()


def spent(aim: Aim) -> Tensor | float:
    """What an evaluation cost for each image."""
    return 1.0 if aim.cost is None else aim.cost.detach()


def lengths(x: Tensor) -> Tensor:
    """The L2 norm of each row of ``(N, ...)``, in a shape that broadcasts against it."""
    found: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return found.view(-1, *[1] * (x.ndim - 1))


def check(images: Tensor, labels: Tensor, steps: int) -> None:
    """Refuse what is not ``N`` images in [0, 1] with ``N`` labels."""
    if images.dtype not in (torch.float32, torch.float64) or images.ndim < 2:
        raise InputError(f"images {tuple(images.shape)} of {images.dtype}, expected (N, ...) in single or double precision")
    if len(labels) != len(images) or steps < 1:
        raise InputError(f"{len(labels)} labels for {len(images)} images, {steps} steps: expected as many, and 1 or more")
    low, high = (float(edge) for edge in images.aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):
        raise InputError(f"images from {low:.3g} to {high:.3g}, expected 0 to 1: normalise inside the model")


def _start(images: Tensor, radius: float, norm: Norm, generator: torch.Generator | None) -> Tensor:
    def drawn(draw: str, *shape: int) -> Tensor:
        made: Tensor = getattr(torch, draw)(shape, generator=generator, device=images.device, dtype=images.dtype)
        return made

    if norm == "linf":
        return radius * (2 * drawn("rand", *images.shape) - 1)
    direction = drawn("randn", *images.shape)
    far = drawn("rand", len(images), *[1] * (images.ndim - 1)) ** (1 / max(1, images[:1].numel()))
    return radius * far * (direction / lengths(direction))


def _direction(slope: Tensor, norm: Norm) -> Tensor:
    if norm == "linf":
        return slope.sign()
    return slope / lengths(slope).clamp(min=torch.finfo(slope.dtype).tiny)


def _projected(images: Tensor, moved: Tensor, radius: float, norm: Norm) -> Tensor:
    if norm == "linf":
        return moved.clamp(images - radius, images + radius).clamp(0, 1)
    change = moved - images
    shrunk = (radius / lengths(change).clamp(min=torch.finfo(images.dtype).tiny)).clamp(max=1)
    return (images + change * shrunk).clamp(0, 1)  # the box has the image in it: no point gets further away
