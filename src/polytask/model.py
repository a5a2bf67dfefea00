"""The model: a shared encoder, a pathway to each task, and the tasks' heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from polytask.data.examples import Batch, Inputs
from polytask.errors import InputError, suggest
from polytask.scope import current, task_scope
from polytask.share import Hard, Insertable, Inserted, Sharing, TaskModules, insert, penalties, task_dependent
from polytask.task import Task, check_unique


@runtime_checkable
class Losses(Protocol):
    """The one protocol that training needs: a module that turns a batch into named scalar losses.

    Anything that has these two methods can be fitted; `Model` is the standard implementation. A method
    ``label_counts(batch) -> dict[str, Tensor]`` is optional: with it, losses that are means over present labels are
    weighed so that several processes, or several accumulated batches, give what one large batch gives. So is an attribute
    ``tasks``, all tasks' names in order, which balancers that keep something for each task ask for; and a method
    ``evaluate(data) -> {task: {metric: value}}``, higher is better, of which `polytask.fit` can monitor ``"TASK/METRIC"``.
    """

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Scalar losses by task; a task that the batch has no labels for is left out."""
        ...

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that several tasks train, among which their gradients can conflict."""
        ...


class Model(nn.Module):
    """One model for many tasks: encoder, pathway, heads.

    Args:
        encoder: maps inputs to features, ``(N, width)``, or ``(N, width, H, W)`` for dense tasks. When it has an attribute
            ``members`` above 1 its features are ``(N, members, width)``, an ensemble: the loss is the mean over members,
            a prediction the mean of theirs.
        tasks: what to predict.
        sharing: the way of sharing; hard sharing by default. One that is inserted (`polytask.share.insertables`) is put into
            the encoder, or into the module that is the encoder's attribute ``pretrained``, whose own parameters are then
            frozen; `inserted` says what it is.
        width: the encoder's width, when the encoder has no attribute ``width``.

    >>> import polytask as pt
    >>> encoder = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU())
    >>> model = pt.Model(encoder, [pt.Task.binary("churn"), pt.Task.regression("spend")], width=32)
    >>> outputs = model(torch.randn(5, 16))
    >>> {name: tuple(output.shape) for name, output in outputs.items()}
    {'churn': (5, 1), 'spend': (5, 1)}
    >>> list(model(torch.randn(5, 16), tasks=["churn"]))  # computes nothing for spend
    ['churn']
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[Task],
        sharing: Sharing | Insertable | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        check_unique(tasks)
        width = width if width is not None else getattr(encoder, "width", None)
        if not isinstance(width, int):
            raise InputError("the encoder has no attribute 'width': pass width=, the number of features that it gives")
        self.tasks = {task.name: task for task in tasks}
        self.sharing: Sharing | Insertable = sharing or Hard()
        self.width = width
        self.members = int(getattr(encoder, "members", 1))
        self.encoder = encoder
        self.inserted: Inserted | None = None
        if isinstance(self.sharing, Insertable):
            self.inserted = _inserted(encoder, self.sharing, tuple(self.tasks))
        between = self.sharing if isinstance(self.sharing, Sharing) else Hard()
        self.pathway = between.build(width, tuple(self.tasks))
        self.heads = TaskModules({task.name: task.head(width) for task in tasks})

    def forward(self, inputs: Inputs, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Outputs of the heads of ``tasks`` (all by default); only what these tasks need is computed.

        For an ensemble encoder the outputs of its members stand in consecutive rows, ``(N * members, ...)``. An encoder that
        depends on the task, as one into which something was inserted (`polytask.share.insert`) or whose weights a
        hypernetwork makes, has features of its own for each task, and so a pass; within a task scope, such as that of a
        mixed batch, it makes one pass, and the scope says whose features these are.
        """
        names = tuple(self.tasks) if tasks is None else self._known(tasks)
        if current() is not None or next(task_dependent(self.encoder), None) is None:
            return self._outputs(inputs, names)
        outputs: dict[str, Tensor] = {}
        for name in names:
            with task_scope(name):
                outputs |= self._outputs(inputs, (name,))
        return outputs

    def losses(self, batch: Batch | Mapping[str, tuple[Inputs, Tensor]]) -> dict[str, Tensor]:
        """The loss of every task that the batch has targets for.

        Args:
            batch: ``(inputs, {task: target})`` where tasks share their inputs; or ``{task: (inputs, target)}`` where each
                task has inputs of its own, and then each task's pass runs in its own task scope.

        What modules add to the loss (`polytask.share.Penalty`) is divided evenly between the tasks of the pass.
        """
        if isinstance(batch, Mapping):
            losses: dict[str, Tensor] = {}
            for name, (inputs, target) in batch.items():
                with task_scope(name):
                    losses |= self._losses(inputs, {name: target})
            return losses
        inputs, targets = batch
        names = self._known(targets)
        with task_scope(names) if len(names) == 1 else nullcontext():
            return self._losses(inputs, targets)

    def label_counts(self, batch: Batch | Mapping[str, tuple[Inputs, Tensor]]) -> dict[str, Tensor]:
        """For each task in the batch, how many labels its loss averages over."""
        targets = {name: target for name, (_, target) in batch.items()} if isinstance(batch, Mapping) else batch[1]
        return {name: self.tasks[name].count(target) for name, target in targets.items()}

    @torch.no_grad()
    def predict(self, inputs: Inputs, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Predictions in the user's units (probabilities, dollars): see `Task.decode`. Does not change the mode."""
        predictions = {}
        names = tuple(self.tasks) if tasks is None else self._known(tasks)
        with task_scope(names) if len(names) == 1 else nullcontext():
            outputs = self(inputs, names)
        for name, output in outputs.items():
            prediction = self.tasks[name].decode(output)
            if self.members > 1:
                prediction = prediction.reshape(-1, self.members, *prediction.shape[1:]).mean(1)
            predictions[name] = prediction
        return predictions

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that several tasks use: the encoder's, and the shared part of the pathway."""
        own = {p for part in task_dependent(self.encoder) for task in self.tasks for p in part.parameters_of(task)}
        yield from (p for p in self.encoder.parameters() if p not in own)
        yield from self.pathway.shared_parameters()

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """The parameters that only ``task`` uses: what is inserted for it, its part of the pathway, and its head."""
        (name,) = self._known([task])
        for part in task_dependent(self.encoder):
            yield from part.parameters_of(name)
        yield from self.pathway.parameters_of(name)
        yield from self.heads[name].parameters()

    def _outputs(self, inputs: Inputs, names: tuple[str, ...]) -> dict[str, Tensor]:
        features = self.encoder(inputs)
        if self.members > 1:
            features = features.flatten(0, 1)
        dense = features.ndim == 4
        routed = self.pathway(features.movedim(1, -1) if dense else features, names)
        return {name: self.heads[name](routed[name].movedim(-1, 1) if dense else routed[name]) for name in names}

    def _losses(self, inputs: Inputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with penalties(self) as found:
            outputs = self(inputs, tuple(targets))
        losses = {}
        for name, output in outputs.items():
            target = targets[name]
            if self.members > 1:
                target = target.repeat_interleave(self.members, 0)
            losses[name] = self.tasks[name].loss(output, target)
        return {name: loss + sum(found) / len(losses) for name, loss in losses.items()} if found else losses

    def _known(self, names: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
        for name in names:
            if name not in self.tasks:
                raise InputError(f"unknown task {name!r}: {suggest(name, self.tasks)}")
        return tuple(names)


def _inserted(encoder: nn.Module, method: Insertable, tasks: tuple[str, ...]) -> Inserted:
    pretrained = getattr(encoder, "pretrained", encoder)
    if not isinstance(pretrained, nn.Module):
        raise InputError(f"{method.name} adapts what was trained before, and this {type(encoder).__name__} has no such part")
    return insert(pretrained, method, tasks).freeze()
