"""Coefficients of task vectors, learned by gradient descent through one merged model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polytask.errors import InputError, TrainingError
from polytask.files import read_json, write_json
from polytask.merge._models import wide
from polytask.merge.engine.rule import Rule
from polytask.merge.rules.task_arithmetic import TaskArithmetic
from polytask.nn.modes import evaluating

FORMAT = "polytask coefficients 1"
"""What a file of weights by tensor says it is, with the version of its layout."""

PIECE = 2**20  # elements converted at a time: long enough that the calls cost nothing, short enough to stay in the cache


class Merged:
    """The merged model, called as the model itself is: ``merged(x)``, ``merged(**batch).logits``.

    The call runs the forward of ``model`` on the tensors of ``theta`` in place of its own (`torch.func.functional_call`,
    tied weights tied), so the model itself stays as it is.
    """

    def __init__(self, model: nn.Module, theta: Mapping[str, Tensor]) -> None:
        self.model = model
        self.theta = dict(theta)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.model, self.theta, args, kwargs, tie_weights=True)


Loss = Callable[[Merged, str, Any], Tensor]
"""From the merged model, a task's name and a batch of that task to a scalar loss."""


class Coefficients(nn.Module):
    """One coefficient for each task vector and group of tensors, ``theta^g = theta_0^g + sum_k lambda_k^g tau_k^g``.

    Yang, Wang, Shen, Liu, Guo, Wang and Tao, *AdaMerging: Adaptive model merging for multi-task learning*, ICLR 2024. The
    gradient needs no graph through the sum over task vectors: ``dL/dlambda_k^g = <dL/dtheta^g, tau_k^g>``, so one backward
    through one plain model and K inner products for each tensor give it exactly. Task vectors may lie in any floating-point
    dtype, in memory or in a mapped file, on another device than the model: they are read one tensor at a time and converted
    piece by piece. What is held is theta, its gradient and, for models in half precision, one tensor in float32.

    Tensors are matched by name. A name that a vector lacks counts as zero, so that vectors may cover part of a model, and a
    tied weight may have any of its names. Entries that are not floating-point, such as position ids, are skipped.

    Float buffers, such as the statistics of batch normalisation, have no gradient and no coefficient of their own. They are
    averaged, never extrapolated, since a variance outside the range of its sources can be negative: a buffer's weights are
    ``w_k = lambda_k / max(1, sum_j lambda_j)`` with ``lambda_k`` the mean, and not below 0, of the coefficients of the
    parameters in the buffer's own module, or of all groups when that module has no moved parameter.

    Only `raw` is learned and saved. Its effective value is ``clamp(raw, *clamp)``, taken in the forward: a coefficient that
    has left the range has no gradient, so in general it stays at that end. The paper's code clamps to (0, 1) and starts at
    0.3; fusion_bench does not clamp.

    Args:
        model: holds theta_0 as its weights, which are read from it whenever theta is computed, and never changed.
        vectors: K task vectors ``theta_k - theta_0``, each a mapping from a tensor's name to the tensor.
        by: ``"task"`` for one coefficient a vector (task-wise), ``"tensor"`` for one for each parameter tensor (the paper's
            layer-wise), or a function from a parameter's name to the name of its group, as
            ``lambda name: name.split(".")[1]`` for blocks.
        start: where all coefficients start, or one start for each vector.
        clamp: the range of effective coefficients, or None for all numbers.

    Raises `InputError` when vectors and model do not fit: an unknown name, another shape, a dtype that is not real floating
    point where the model's is, two different values for one tied weight, nothing that can be learned.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> vector = {"weight": torch.ones(1, 2)}
    >>> coefficients = Coefficients(model, [vector, vector], by="task", start=0.5)
    >>> torch.allclose(coefficients.merged()["weight"], model.weight + 1)
    True
    """

    model: nn.Module
    raw: nn.Parameter
    """Coefficients before the clamp, ``(K, G)``, on the first parameter's device: float64 if one is moved, else float32."""
    groups: tuple[str, ...]
    """The names of the G groups: tensors' names, blocks' names, or ``("all",)``. Tensors that no vector moves have none."""
    columns: dict[str, int]
    """From the first name of each moved parameter to its group's place in `groups` and in the columns of `raw`."""

    def __init__(
        self,
        model: nn.Module,
        vectors: Sequence[Mapping[str, Tensor]],
        by: Literal["task", "tensor"] | Callable[[str], str] = "tensor",
        start: float | Sequence[float] = 0.3,
        clamp: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if clamp is not None and not clamp[0] < clamp[1]:
            raise InputError(f"clamp {clamp}: expected (low, high) with low < high, or None")
        self.clamp = clamp
        self.vectors = tuple(vectors)
        self._entries = _match(model, self.vectors)
        object.__setattr__(self, "model", model)  # kept out of the modules, and so out of the parameters and the state_dict
        moved = set().union(*self._entries)
        parameters = {name: value for name, value in model.named_parameters() if name in moved}
        if not parameters:
            raise InputError("vectors: none has a floating-point tensor for a parameter of the model, expected at least one")
        group = {name: _group(by, name) for name in parameters}
        self.groups = tuple(dict.fromkeys(group.values()))
        place = {name: column for column, name in enumerate(self.groups)}
        self.columns = {name: place[group[name]] for name in parameters}
        self._statistics = {
            name: [column for other, column in self.columns.items() if _module(other) == _module(name)]
            or list(range(len(self.groups)))
            for name, _ in model.named_buffers()
            if name in moved
        }
        first = next(iter(parameters.values()))
        dtype = torch.float64 if any(value.dtype == torch.float64 for value in parameters.values()) else torch.float32
        starts = torch.tensor(self._starts(start), dtype=dtype, device=first.device)
        self.raw = nn.Parameter(starts[:, None].repeat(1, len(self.groups)))

    def forward(self) -> Tensor:
        """The effective coefficients, ``(K, G)``."""
        return self.raw if self.clamp is None else self.raw.clamp(*self.clamp)

    def merged(self) -> dict[str, Tensor]:
        """Theta: a new tensor, in the model's dtype and on its device, for every tensor that a vector moves.

        A tied weight has its first name. The rest of the model is theta_0 still, so
        ``copy.deepcopy(model).load_state_dict(coefficients.merged(), strict=False)`` makes the merged model.
        """
        weights = self._weights()
        return {name: self._sum(name, tensor, weights[name]) for name, tensor in _tensors(self.model) if name in weights}

    def weights(self) -> dict[str, list[float]]:
        """What each floating-point tensor of the model gets of each task vector, K numbers by the tensor's name.

        A tied weight is there under all its names, and a tensor that no vector moves has zeros. On disk,

            merge_checkpoints(rule_by_tensor(coefficients.weights()), plan, "out", about="...")

        makes the merged model out of checkpoints that need not fit into memory: those of the base and of the ``theta_k``
        whose task vectors the coefficients were learned of, in their order. Task vectors that were changed in between, as
        by `polytask.merge.rules.ties.trim_and_elect`, are no longer what the checkpoints hold.
        """
        own, zeros = self._weights(), [0.0] * len(self.vectors)
        first = {id(tensor): name for name, tensor in _tensors(self.model)}
        return {
            name: own.get(first[id(tensor)], zeros)
            for name, tensor in _tensors(self.model, tied=True)
            if tensor.is_floating_point()
        }

    @torch.no_grad()
    def accumulate(self, gradient: Mapping[str, Tensor]) -> None:
        """Add ``<dL/dtheta^g, tau_k^g>`` to ``raw.grad``, and nothing where `raw` is outside the clamp.

        Args:
            gradient: dL/dtheta by the names of `merged`. A missing name counts as zero; a name without a coefficient is
                ignored.
        """
        products = torch.zeros_like(self.raw)
        for name, column in self.columns.items():
            slope = gradient.get(name)
            if slope is None:
                continue
            for k, (vector, names) in enumerate(zip(self.vectors, self._entries, strict=True)):
                if name in names:
                    tensor = vector[names[name]]
                    if slope.shape != tensor.shape:
                        raise InputError(f"gradient: tensor {name!r}: shape {_shape(slope)}, expected {_shape(tensor)}")
                    products[k, column] += _product(slope, tensor).to(products)
        with torch.enable_grad():
            self().backward(products)

    def backward(self, batches: Mapping[str, Any], loss: Loss) -> dict[str, float]:
        """Add the gradient of the sum of the tasks' losses to ``raw.grad`` and return the losses, one for each task.

        The tasks come one after another and each one's graph is freed before the next, so memory does not grow with their
        number. The model is in eval mode meanwhile: no dropout, and statistics of batch normalisation do not adapt. Its
        parameters, their gradients and the gradients of whatever else ``loss`` uses stay as they are. Put the heads that
        ``loss`` uses in eval mode yourself.

        Args:
            batches: one batch for each task, of any type.
            loss: called as ``loss(merged, task, batch)``. It may enter `torch.autocast`; in float16, multiply what it
                returns so that small gradients do not vanish, as Adam is indifferent to the scale.

        Raises `polytask.errors.TrainingError`, with ``raw.grad`` as it was, when a loss or gradient is not finite.
        """
        theta = self.merged()
        leaves = {name: theta[name].requires_grad_() for name in self.columns}
        merged = Merged(self.model, theta)
        losses = {}
        with evaluating(self.model), torch.enable_grad():
            for task, batch in batches.items():
                value = loss(merged, task, batch)
                _check_loss(task, value)
                value.backward(inputs=list(leaves.values()))  # type: ignore[no-untyped-call]
                losses[task] = value.item()
                if not math.isfinite(losses[task]):
                    raise TrainingError(f"task {task!r}: loss {losses[task]}, expected a finite number")
        torch.clear_autocast_cache()  # theta is new in every step: an autocast around all steps would keep each one's copy
        before = None if self.raw.grad is None else self.raw.grad.clone()
        self.accumulate({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None})
        grad = self.raw.grad
        if grad is not None and not grad.isfinite().all():
            self.raw.grad = before
            vector, column = (~grad.isfinite()).nonzero()[0].tolist()
            raise TrainingError(
                f"vector {vector}, group {self.groups[column]!r}: the gradient of its coefficient is not finite"
            )
        return losses

    @torch.no_grad()
    def _weights(self) -> dict[str, list[float]]:
        """Of moved tensors, by their first names."""
        effective = self()
        columns = effective.T.tolist()
        weights: dict[str, list[float]] = {name: columns[column] for name, column in self.columns.items()}
        for name, own in self._statistics.items():
            positive = effective[:, own].mean(dim=1).clamp(min=0)
            weights[name] = (positive / positive.sum().clamp(min=1)).tolist()
        return weights

    def _starts(self, start: float | Sequence[float]) -> list[float]:
        count = len(self.vectors)
        starts = [float(start)] * count if isinstance(start, int | float) else [float(value) for value in start]
        if len(starts) != count:
            raise InputError(f"start: {len(starts)} values, expected one, or one for each of the {count} vectors")
        low, high = self.clamp or (-math.inf, math.inf)
        for value in starts:
            if not (math.isfinite(value) and low <= value <= high):
                raise InputError(
                    f"start {value}: expected a finite number from {low} to {high}: elsewhere nothing is learned"
                )
        return starts

    def _sum(self, name: str, base: Tensor, weights: Sequence[float]) -> Tensor:
        """``base + sum_k weights[k] tau_k`` for one tensor, added in float32 or float64 and rounded once."""
        total = torch.empty(base.shape, dtype=wide(base.dtype), device=base.device).copy_(base)
        for vector, names, weight in zip(self.vectors, self._entries, weights, strict=True):
            if name in names and weight != 0:
                for target, piece in zip(_pieces(total), _pieces(vector[names[name]]), strict=True):
                    target.add_(piece.to(target), alpha=weight)
        return total.to(base.dtype)


def learn(
    coefficients: Coefficients,
    batches: Mapping[str, Iterable[Any]],
    loss: Loss,
    *,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
) -> list[dict[str, float]]:
    """Learn coefficients with Adam, in place, and return the losses of every step by task.

    A step takes the next batch of every task and goes down the unweighted sum of the tasks' losses. AdaMerging on an encoder
    with a frozen head for each task and unlabelled inputs:

        coefficients = Coefficients(encoder, vectors)
        learn(coefficients, loaders, lambda merged, task, x: entropy(heads[task](merged(x))), steps=500)
        encoder.load_state_dict(coefficients.merged(), strict=False)  # the last step: theta_0 is gone from the encoder

    With labels the loss is ``lambda merged, task, batch: cross_entropy(heads[task](merged(batch[0])), batch[1])``, and on a
    causal language model of `transformers` it is
    ``lambda merged, task, batch: entropy(merged(**batch).logits, batch["attention_mask"])``. AdaMerging++ is the same on
    task vectors that went through `polytask.merge.rules.ties.trim_and_elect`. For another optimizer or schedule, call
    `Coefficients.backward` and step on ``coefficients.raw`` yourself.

    Args:
        coefficients: where to start; learning may go on from a loaded state_dict (Adam's own state starts anew).
        batches: for each task something to iterate over, such as a DataLoader that shuffles; one that ends is begun again.
        loss: see `Coefficients.backward`.
        steps: number of updates; the paper makes 500.
        lr: Adam's step, and so about how far a coefficient goes in one update.
        betas: Adam's decay rates.

    Raises `InputError` when a task has no batches (a generator that has ended cannot be begun again), and
    `polytask.errors.TrainingError`, naming step and task, when a loss or gradient is not finite: the coefficients are then
    those of the last good step.
    """
    if not batches:
        raise InputError("batches: no tasks, expected at least one")
    if steps < 1:
        raise InputError(f"steps {steps}: expected at least 1")
    if not (lr > 0 and math.isfinite(lr)):
        raise InputError(f"lr {lr}: expected a finite number > 0")
    optimizer = torch.optim.Adam([coefficients.raw], lr=lr, betas=betas)
    streams = {task: _again_and_again(task, found) for task, found in batches.items()}
    history = []
    for step in range(steps):
        optimizer.zero_grad()
        try:
            history.append(coefficients.backward({task: next(stream) for task, stream in streams.items()}, loss))
        except TrainingError as error:
            raise TrainingError(f"step {step}: {error}") from error
        optimizer.step()
    optimizer.zero_grad()
    return history


def entropy(logits: Tensor, mask: Tensor | None = None, marginal_entropy_floor: float | None = None) -> Tensor:
    """The mean Shannon entropy of the predictions, ``-sum_c p_c log p_c`` with ``p = softmax(logits)``, in nats.

    Args:
        logits: ``(..., C)``; the mean is over all leading positions. Classes that are ruled out may have logits of -inf.
        mask: of shape ``(...)``, true or 1 at the positions that count, such as an attention mask; all by default. If none
            counts, the entropy is 0.
        marginal_entropy_floor: a guard against the collapse to one class, to which minimising entropy can lead. A share from
            0 to 1 of ``log min(n, C)``, the most that n sure predictions over C classes can have between them. When the
            entropy of the mean prediction of this batch is below it, the value is the same but its gradient is zero, so that
            this batch makes no prediction surer. Predictions that have collapsed are not pulled apart again, other
            tasks' batches still move the coefficients, and so does Adam's momentum, by at most about 9 ``lr`` in all. None,
            the default: no guard.

    Returns a scalar, in float64 for logits in float64, else in float32.
    """
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise InputError(f"logits: shape {_shape(logits)}, expected (..., classes)")
    if mask is not None and mask.shape != logits.shape[:-1]:
        raise InputError(f"mask: shape {_shape(mask)}, expected {_shape(logits[..., 0])} as the logits' positions")
    if marginal_entropy_floor is not None and not 0 <= marginal_entropy_floor <= 1:
        raise InputError(f"marginal_entropy_floor {marginal_entropy_floor}: expected a share from 0 to 1, or None")
    # Taken out, not multiplied by 0: padding may hold NaN.
    rows = logits.reshape(-1, logits.shape[-1]) if mask is None else logits[mask.bool()]
    rows = rows.to(wide(rows.dtype))
    count, classes = rows.shape
    if count == 0:
        return rows.sum()
    logs = rows.log_softmax(dim=-1)
    mean = -(logs.exp() * logs.masked_fill(logs.isneginf(), 0)).sum(dim=-1).mean()
    if marginal_entropy_floor is None:
        return mean
    marginal = torch.special.entr(logs.detach().exp().mean(dim=0)).sum()
    return torch.where(marginal < marginal_entropy_floor * math.log(min(count, classes)), mean.detach(), mean)


def rule_by_tensor(weights: Mapping[str, Sequence[float]]) -> Callable[[str], Rule]:
    """The rule of each tensor, for `merge_checkpoints` and `merge_state_dicts`: ``theta_0 + sum_k w_k tau_k``.

    Args:
        weights: K numbers by a tensor's name, such as `Coefficients.weights`.

    The rule of a tensor that has no weights is an `InputError`, as it is for a number of models that is not K.
    """

    def rule(name: str) -> Rule:
        if name not in weights:
            near = get_close_matches(name, weights, n=1) or list(weights)[:1]
            raise InputError(f"tensor {name!r} has no weights, expected a name such as {', '.join(map(repr, near))}")
        return TaskArithmetic(scale=1.0, weight=list(weights[name]))

    return rule


def save_weights(path: Path | str, weights: Mapping[str, Sequence[float]]) -> None:
    """Write weights by tensor as JSON, whole or not at all: ``{"format": ..., "weights": {"layer.weight": [0.3, 0.1]}}``."""
    write_json(path, {"format": FORMAT, "weights": {name: list(numbers) for name, numbers in weights.items()}})


def load_weights(path: Path | str) -> dict[str, list[float]]:
    """What `save_weights` wrote. `InputError` names the file, and the tensor when its weights are no list of numbers."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("weights"), dict):
        raise InputError(f"{path}: no weights by tensor, expected an object with format {FORMAT!r} and weights")
    count = None
    for name, numbers in found["weights"].items():
        if not isinstance(numbers, list) or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise InputError(f"{path}: tensor {name!r}: {numbers!r}, expected a list of finite numbers")
        count = len(numbers) if count is None else count
        if len(numbers) != count:
            raise InputError(
                f"{path}: tensor {name!r}: {len(numbers)} numbers, expected {count} as for the tensors before it"
            )
    return {name: [float(number) for number in numbers] for name, numbers in found["weights"].items()}


def _match(model: nn.Module, vectors: Sequence[Mapping[str, Tensor]]) -> list[dict[str, str]]:
    """For each vector, from the first name of a tensor in the model to the name under which the vector has it."""
    if not vectors:
        raise InputError("vectors: none, expected at least one task vector")
    own = dict(_tensors(model))
    first: dict[int, str] = {id(tensor): name for name, tensor in own.items()}
    names = {name: first[id(tensor)] for name, tensor in _tensors(model, tied=True)}
    return [_match_one(f"vector {k}", vector, own, names) for k, vector in enumerate(vectors)]


def _match_one(
    where: str, vector: Mapping[str, Tensor], own: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, str]:
    matched: dict[str, str] = {}
    for name in vector:
        tensor = vector[name]
        at = f"{where}: tensor {name!r}"
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            found = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"{at}: {found}, expected a dense torch.Tensor")
        target = own[names[name]] if name in names else None
        if not tensor.is_floating_point():
            if tensor.is_complex() or (target is not None and target.is_floating_point()):
                raise InputError(f"{at}: {tensor.dtype}, expected a real floating-point dtype")
            continue
        if target is None:
            near = get_close_matches(name, names, n=1) or list(names)[:1]
            raise InputError(
                f"{at}: the model has no such tensor, expected its own names, such as {', '.join(map(repr, near))}"
            )
        if not target.is_floating_point():
            raise InputError(f"{at}: {tensor.dtype}, but the model's is {target.dtype}, which cannot be merged")
        if tensor.shape != target.shape:
            raise InputError(f"{at}: shape {_shape(tensor)}, expected {_shape(target)} as in the model")
        other = matched.setdefault(names[name], name)
        if other != name and not _same(tensor, vector[other]):
            raise InputError(f"{at}: differs from {other!r}, expected the same, since the model ties the two")
    return matched


def _group(by: str | Callable[[str], str], name: str) -> str:
    if by == "task":
        return "all"
    if by == "tensor":
        return name
    if not callable(by):
        raise InputError(f"by {by!r}: expected 'task', 'tensor' or a function from a tensor's name to a group's name")
    group = by(name)
    if not isinstance(group, str):
        raise InputError(f"by: {group!r} for tensor {name!r}, expected the name of a group")
    return group


def _check_loss(task: str, value: object) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"shape {_shape(value)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"task {task!r}: loss of {found}, expected a scalar tensor")
    if not value.requires_grad:
        raise InputError(f"task {task!r}: its loss has no gradient, expected one that depends on the merged model's output")


def _again_and_again(task: str, batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise InputError(
                f"task {task!r}: no batches left, expected at least one, in something to iterate over repeatedly"
            )


def _tensors(model: nn.Module, tied: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers, each under its first name, or under all its names."""
    yield from model.named_parameters(remove_duplicate=not tied)
    yield from model.named_buffers(remove_duplicate=not tied)


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    return torch.split(tensor.detach().reshape(-1), PIECE)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """The inner product, on the device of ``one``."""
    dtype = wide(one.dtype)
    total = torch.zeros((), dtype=dtype, device=one.device)
    for a, b in zip(_pieces(one), _pieces(other), strict=True):
        total += torch.dot(a.to(dtype), b.to(total))
    return total


def _same(one: Tensor, other: Tensor) -> bool:
    dtype = torch.promote_types(wide(one.dtype), wide(other.dtype))
    return all(torch.equal(a.to(dtype), b.to(dtype)) for a, b in zip(_pieces(one), _pieces(other), strict=True))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
