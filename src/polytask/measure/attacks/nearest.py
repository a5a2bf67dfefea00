"""Attacks that look for the least change: a penalty on the squared distance, and Carlini and Wagner's search over it."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from polytask.errors import InputError, suggest
from polytask.measure.attacks.gradient import Attacked, check, slope_of, spent
from polytask.nn.objective import Aim, Objective

Start: TypeAlias = Literal["images", "random"]


def nearest(
    objective: Objective,
    images: Tensor,
    labels: Tensor,
    weight: float | Tensor,
    *,
    steps: int = 1000,
    lr: float = 0.01,
    start: Start = "images",
    after: int = 0,
    stop: bool = False,
    scale: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
) -> Attacked:
    """Minimise ``|scale (x' - x)|^2 - weight * value`` by Adam over ``w``, where ``x' = (tanh(w) + 1) / 2`` is in [0, 1].

    Of each image the nearest point at which the objective was reached is given, or else the last one.

    Args:
        objective: see `polytask.measure.attacks.misclassified`.
        images: ``(N, ...)`` in single or double precision, in [0, 1].
        labels: ``(N, ...)``, what the objective is given beside the images.
        weight: ``c``, for all images or for each, ``(N,)``.
        steps, lr: Adam's.
        start: ``"images"``, or ``w`` drawn evenly from [0, 1] for each pixel, where no output is saturated yet.
        after: points of the first so many steps do not count.
        stop: an image leaves at its first point that counts.
        scale: of the distance, broadcast to an image: 1 over the channels' deviations measures it as the model sees it.
        generator: of the random start, on the images' device.
    """
    check(images, labels, steps)
    if start not in get_args(Start):
        raise InputError(f"unknown start {start!r}: {suggest(start, get_args(Start))}")
    if start == "images":
        w = ((2 * images - 1) * (1 - 1e-6)).atanh()
    else:
        w = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    weights = torch.as_tensor(weight, device=images.device, dtype=images.dtype).expand(len(images))
    rows = torch.arange(len(images), device=images.device)
    found, least = images.clone(), images.new_full((len(images),), torch.inf)
    reached, cost = torch.zeros_like(rows, dtype=torch.bool), images.new_zeros(len(images))
    first, second = torch.zeros_like(w), torch.zeros_like(w)

    def penalised(w: Tensor, at: Tensor) -> Aim:
        x = _pixels(w)
        aim = objective(x, labels[at])
        far = ((x - images[at]) * scale).square().flatten(1).sum(1)
        return Aim(weights[at] * aim.value - far, aim.reached, aim.cost)

    for number in range(1, steps + 1):
        w, aim, slope = slope_of(penalised, w, rows)
        cost[rows] += spent(aim)
        x = _pixels(w)
        far = ((x - images[rows]) * scale).square().flatten(1).sum(1)
        counts = aim.reached if number > after else torch.zeros_like(aim.reached)
        better = counts & (far < least[rows])
        found[rows[better]], least[rows[better]] = x[better], far[better]
        reached[rows] |= counts
        if number == steps:
            missed = ~reached[rows]
            found[rows[missed]] = x[missed]
            break
        if stop:
            rows, w, slope, first, second = (tensor[~counts] for tensor in (rows, w, slope, first, second))
            if not len(rows):
                break
        first, second = first.lerp(slope, 0.1), second.lerp(slope.square(), 0.001)
        w = w + lr * (first / (1 - 0.9**number)) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
    return Attacked(found, reached, cost)


def carlini_wagner(
    objective: Objective,
    images: Tensor,
    labels: Tensor,
    *,
    confidence: float = 0.0,
    searches: int = 9,
    weight: float = 1e-3,
    steps: int = 1000,
    lr: float = 0.01,
) -> Attacked:
    """The nearest image in L2 at which the objective's value is ``confidence`` (Carlini and Wagner, S&P 2017, Section VI).

    `nearest` with the value cut at ``confidence``, and a binary search over each image's weight: ten times as large as long
    as nothing is found, then halfway between what was too little and what was enough.

    Args:
        objective: its value is above 0 where it is reached, as the margin of `polytask.measure.attacks.misclassified` is.
        images, labels: as for `nearest`.
        confidence: ``kappa``, how far beyond the boundary; what is far beyond carries further into other models.
        searches: how many weights are tried.
        weight: the first.
        steps, lr: Adam's, for each weight.
    """

    def capped(x: Tensor, labels: Tensor) -> Aim:
        aim = objective(x, labels)
        return Aim(aim.value.clamp(max=confidence), aim.reached & (aim.value >= confidence), aim.cost)

    if searches < 1:
        raise InputError(f"{searches} searches, expected 1 or more")
    weights = images.new_full((len(images),), weight)
    low, high = torch.zeros_like(weights), torch.full_like(weights, torch.inf)
    found, least = images, torch.full_like(weights, torch.inf)
    reached, cost = torch.zeros_like(weights, dtype=torch.bool), torch.zeros_like(weights)
    for _ in range(searches):
        tried = nearest(capped, images, labels, weights, steps=steps, lr=lr)
        far = (tried.images - images).square().flatten(1).sum(1)
        better = (tried.reached & (far < least)) | ~reached
        found = torch.where(better.view(-1, *[1] * (images.ndim - 1)), tried.images, found)
        least, reached = torch.where(tried.reached, far.minimum(least), least), reached | tried.reached
        cost = cost + tried.cost
        high, low = torch.where(tried.reached, weights, high), torch.where(tried.reached, low, weights)
        weights = torch.where(high.isinf(), 10 * weights, (low + high) / 2)
    return Attacked(found, reached, cost)


def _pixels(w: Tensor) -> Tensor:
    return (w.tanh() + 1) / 2
