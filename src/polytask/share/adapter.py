"""Bottleneck adapters, one for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError, suggest
from polytask.share._linear import factory, linear_types, weight_of
from polytask.share._select import one_hot, single_task
from polytask.share._sharing import TaskModules
from polytask.share.insertion import Insertable, Part, insertables

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}

Place: TypeAlias = Literal["sequential", "parallel", "norm"]
"""Where an adapter stands: behind a linear layer, beside it, or around a layer normalisation."""


@insertables.add("adapter")
@dataclass(frozen=True)
class Adapter(Insertable):
    """``h + s * (U_t f(D_t a + d_t) + u_t)``: a bottleneck behind a linear layer, beside it, or at a normalisation.

    Behind a layer (``"sequential"``) ``h = a`` is its output. Houlsby et al., *Parameter-efficient transfer learning for
    NLP*, ICML 2019, put one behind the last layer of the attention and of the feed-forward network of each block, before the
    residual is added; Pfeiffer et al., *AdapterFusion*, EACL 2021, behind the latter alone. Beside it (``"parallel"``) the
    bottleneck reads the layer's input: He et al., *Towards a unified view of parameter-efficient transfer learning*, 2022.
    At a layer normalisation (``"norm"``) ``h`` is what is normalised, and ``a`` the outcome: ``LN(h + U f(D LN(h)))``. That
    is where the code of *AdapterFusion* has it in a BERT, at ``"*.output.LayerNorm"``: the normalisation that follows the
    residual is used twice.

    Args:
        bottleneck: the width of ``D_t``; 64 by default.
        place: ``"sequential"`` (default), ``"parallel"`` or ``"norm"``.
        activation: ``f``: ``"gelu"`` (default), ``"relu"``, ``"silu"`` or ``"tanh"``.
        scale: ``s``; 1 by default.
        start: ``"zero"`` (default): ``U_t`` begins at 0, so that nothing changes at first; or ``"bert"``: both layers begin
            with normal weights of deviation 0.02, and biases at 0.
    """

    name: ClassVar[str] = "adapter"
    bottleneck: int = 64
    place: Place = "sequential"
    activation: str = "gelu"
    scale: float = 1.0
    start: Literal["zero", "bert"] = "zero"

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise InputError(f"adapter: bottleneck {self.bottleneck}, expected at least 1")
        if self.place not in get_args(Place):
            raise InputError(f"adapter: place {self.place!r}, expected one of {list(get_args(Place))}")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"adapter: unknown activation {self.activation!r}: {suggest(self.activation, ACTIVATIONS)}")
        if self.start not in ("zero", "bert"):
            raise InputError(f"adapter: start {self.start!r}, expected 'zero' or 'bert'")

    @property
    def types(self) -> tuple[type[nn.Module], ...]:
        return (nn.LayerNorm,) if self.place == "norm" else linear_types()

    def build(self, module: nn.Module, tasks: Sequence[str]) -> AdapterPart:
        inputs, outputs = widths(module, self.place)
        made = {task: Bottleneck(inputs, self.bottleneck, outputs, self.start).to(*factory(module)) for task in tasks}
        return AdapterPart(made, self)


def widths(module: nn.Module, place: Place) -> tuple[int, int]:
    """The width of what an adapter of ``module`` reads, and of what it gives."""
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1], module.normalized_shape[-1]
    outputs, inputs = weight_of(module).shape
    return outputs if place == "sequential" else inputs, outputs


def adapted(place: Place, run: Callable[..., Any], x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """What a module gives with an adapter at ``place``; ``change`` turns what the adapter reads into what it adds."""
    if place == "norm":
        changed: Tensor = run(x + change(run(x)))
        return changed
    output: Tensor = run(x)
    return output + change(output if place == "sequential" else x)


class Bottleneck(nn.Module):
    """The two layers of one task's adapter."""

    def __init__(self, inputs: int, width: int, outputs: int, start: Literal["zero", "bert"] = "zero") -> None:
        super().__init__()
        self.down = nn.Linear(inputs, width)
        self.up = nn.Linear(width, outputs)
        nn.init.zeros_(self.up.bias)
        if start == "zero":
            nn.init.zeros_(self.up.weight)
            return
        nn.init.zeros_(self.down.bias)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.02)


class AdapterPart(Part):
    """The bottlenecks of all tasks at one module; inputs ``(N, ..., in)``, examples along the first dimension.

    A batch that mixes tasks goes through all of them at once, and what is not an example's own is set to 0: two large
    products instead of many small ones.
    """

    def __init__(self, bottlenecks: dict[str, Bottleneck], settings: Adapter) -> None:
        super().__init__()
        self.tasks = tuple(bottlenecks)
        self.bottlenecks = TaskModules(dict(bottlenecks))
        self.settings = settings

    def forward(self, run: Callable[..., Any], x: Tensor) -> Tensor:
        return adapted(self.settings.place, run, x, lambda read: self.settings.scale * self._adapted(read))

    def _adapted(self, x: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.settings.activation]
        if (task := single_task(self.tasks)) is not None:
            down, up = self.of(task).down, self.of(task).up
            hidden = activation(F.linear(x, down.weight.to(x.dtype), down.bias.to(x.dtype)))
            return F.linear(hidden, up.weight.to(x.dtype), up.bias.to(x.dtype))
        every = [self.of(task) for task in self.tasks]
        mine = one_hot(x, self.tasks)
        broad = [len(x), *[1] * (x.dim() - 2), -1]
        weight, bias = (torch.cat([getattr(b.down, part) for b in every]).to(x.dtype) for part in ("weight", "bias"))
        hidden = activation(F.linear(x, weight, bias)) * mine.repeat_interleave(self.settings.bottleneck, 1).view(broad)
        output = F.linear(hidden, torch.cat([b.up.weight for b in every], 1).to(x.dtype))
        return output + (mine @ torch.stack([b.up.bias for b in every]).to(x.dtype)).view(broad)

    def of(self, task: str) -> Bottleneck:
        """The bottleneck of one task."""
        return cast(Bottleneck, self.bottlenecks[task])

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.bottlenecks.parameters_of(task)

    def add_tasks(self, tasks: Sequence[str]) -> None:
        down, up = self.of(self.tasks[0]).down, self.of(self.tasks[0]).up
        for task in tasks:
            made = Bottleneck(down.in_features, down.out_features, up.out_features, self.settings.start)
            self.bottlenecks[task] = made.to(up.weight.device, up.weight.dtype)
        self.tasks = (*self.tasks, *tasks)
