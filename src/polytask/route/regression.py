"""Losses from features: ridge regression with squared or Huber's error, and a hidden layer before it."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError, suggest

Error: TypeAlias = Literal["squared", "huber"]

HUBER_STEPS = 30


def fit_rows(
    features: Tensor,
    losses: Tensor,
    l2: float = 0.1,
    error: Error = "squared",
    delta: float = 0.5,
    weights: Tensor | None = None,
) -> Tensor:
    """Each expert's row of coefficients, the intercept last, from the prompts on which its loss is known.

    Minimises ``sum_n w_n e(y_n - x_n b - a) + l2 s |b|^2``, where ``s`` is the mean squared length of the centred features,
    so that ``l2`` means the same for any encoder, and ``e(r)`` is ``r^2`` or Huber's function, which is ``2 delta |r| -
    delta^2`` beyond ``delta``. Huber's is found by weighed least squares, again and again (Holland and Welsch, 1977).

    Args:
        features: ``(N, D)``.
        losses: ``(N, K)``, NaN where not known.
        l2: the penalty.
        error: ``"squared"`` or ``"huber"``.
        delta: of Huber's function, in units of the loss.
        weights: ``(N,)`` not negative, 1 by default.

    Returns:
        ``(K, D + 1)`` in the dtype of ``features``. An expert's row depends on its own losses alone.
    """
    if error not in get_args(Error):
        raise InputError(f"unknown error {error!r}: {suggest(error, get_args(Error))}")
    if features.ndim != 2 or losses.shape[:1] != features.shape[:1] or losses.ndim != 2 or l2 < 0 or delta <= 0:
        raise InputError(
            f"features {tuple(features.shape)}, losses {tuple(losses.shape)}, l2 {l2}, delta {delta}: expected (N, D), "
            "(N, K), no negative penalty and a positive delta"
        )
    x, y = features.double(), losses.double()
    w = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
    known = ~y.isnan()
    if (short := known.sum(0).min() if y.shape[1] else 2) < 2:
        raise InputError(f"an expert with {int(short)} known losses, expected at least 2 to learn from")
    rows = torch.empty(y.shape[1], x.shape[1] + 1, dtype=torch.float64)
    masks, groups = torch.unique(known.T, dim=0, return_inverse=True)  # experts known on the same prompts share a solution
    for g, mask in enumerate(masks):
        columns = (groups == g).nonzero()[:, 0]
        rows[columns] = _ridge(x[mask], y[mask][:, columns], w[mask], l2)
        if error == "huber":
            for column in columns.tolist():
                rows[column] = _huber(x[mask], y[mask, column], w[mask], l2, delta, rows[column])
    return rows.to(features.dtype)


def predict_rows(features: Tensor, rows: Tensor) -> Tensor:
    """``(N, D)`` features and ``(..., K, D + 1)`` rows to losses ``(..., N, K)``."""
    return features @ rows[..., :-1].mT + rows[..., None, :, -1]


def _ridge(x: Tensor, y: Tensor, w: Tensor, l2: float) -> Tensor:
    total = w.sum()
    middle, level = (w @ x) / total, (w @ y) / total
    root = w.sqrt()[:, None]
    centred = (x - middle) * root
    target = (y - level) * root
    penalty = l2 * centred.square().sum() / total + 1e-12
    if len(x) < x.shape[1]:  # the smaller of two systems with the same solution
        gram = centred @ centred.T
        slopes = centred.T @ torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), target)
    else:
        gram = centred.T @ centred
        slopes = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), centred.T @ target)
    return torch.cat([slopes.T, (level - middle @ slopes)[:, None]], 1)


def _huber(x: Tensor, y: Tensor, w: Tensor, l2: float, delta: float, row: Tensor) -> Tensor:
    # `_ridge` scales its penalty by the weighed features; the penalty here stays that of the first fit.
    middle = (w @ x) / w.sum()
    size = ((x - middle).square().sum(1) @ w) / w.sum()
    for _ in range(HUBER_STEPS):
        residual = (y - predict_rows(x, row[None])[:, 0]).abs()
        now = w * (delta / residual.clamp(min=delta))
        centre = (now @ x) / now.sum()
        new = _ridge(x, y[:, None], now, float(l2 * size / (((x - centre).square().sum(1) @ now) / now.sum())))[0]
        done = torch.allclose(new, row, rtol=1e-8, atol=1e-10)
        row = new
        if done:
            break
    return row


class HiddenLayer(nn.Module):
    """``relu(W x + b)`` of features that are brought to the training prompts' mean and overall deviation.

    Args:
        inputs: features.
        width: of the layer.
    """

    middle: Tensor
    spread: Tensor

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.register_buffer("middle", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.linear((features - self.middle) / self.spread))


def fit_hidden(
    features: Tensor,
    losses: Tensor,
    width: int,
    *,
    error: Error = "squared",
    delta: float = 0.5,
    steps: int = 500,
    lr: float = 3e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> HiddenLayer:
    """A hidden layer for all experts, trained with a linear layer behind it; `fit_rows` fits that again.

    AdamW on batches of 256 prompts with a linear decay of the rate; unknown losses are left out of the mean. Losses are
    learnt as deviations from each expert's mean, in units of their overall deviation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = HiddenLayer(features.shape[1], width)
        output = nn.Linear(width, losses.shape[1])
        layer.middle, layer.spread = features.mean(0), features.std(0).square().mean().sqrt().clamp(min=1e-8)
        known = ~losses.isnan()
        target = losses - losses.nanmean(0)
        unit = target[known].std().clamp(min=1e-8)
        target = torch.where(known, target / unit, 0.0).to(features.dtype)
        parameters = [*layer.parameters(), *output.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(steps):
            rows = torch.randint(len(features), (min(256, len(features)),))
            residual = output(layer(features[rows])) - target[rows]
            if error == "huber":
                each = F.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=delta / float(unit))
            else:
                each = residual.square()
            optimizer.zero_grad()
            loss = (each * known[rows]).sum() / known[rows].sum().clamp(min=1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            decay.step()
    return layer.eval().requires_grad_(False)
