"""Bottleneck adapters, one for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError, suggest
from polytask.share._select import one_hot, single_task
from polytask.share._sharing import TaskModules
from polytask.share.insertion import Insertable, Part, insertables

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}


@insertables.add("adapter")
@dataclass(frozen=True)
class Adapter(Insertable):
    """``h + s * (U_t f(D_t h + d_t) + u_t)``: a bottleneck behind a linear layer, or beside it; ``U_t`` begins at 0.

    Behind a layer (``"sequential"``) ``h`` is its output. Houlsby et al., *Parameter-efficient transfer learning for NLP*,
    ICML 2019, put one behind the last layer of the attention and of the feed-forward network of each block, before the
    residual is added; Pfeiffer et al., *AdapterFusion*, EACL 2021, behind the latter alone. Beside it (``"parallel"``) the
    bottleneck reads the layer's input: He et al., *Towards a unified view of parameter-efficient transfer learning*, 2022.

    Args:
        bottleneck: the width of ``D_t``; 64 by default.
        place: ``"sequential"`` (default) or ``"parallel"``.
        activation: ``f``: ``"gelu"`` (default), ``"relu"``, ``"silu"`` or ``"tanh"``.
        scale: ``s``; 1 by default.
    """

    name: ClassVar[str] = "adapter"
    bottleneck: int = 64
    place: Literal["sequential", "parallel"] = "sequential"
    activation: str = "gelu"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise InputError(f"adapter: bottleneck {self.bottleneck}, expected at least 1")
        if self.place not in ("sequential", "parallel"):
            raise InputError(f"adapter: place {self.place!r}, expected 'sequential' or 'parallel'")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"adapter: unknown activation {self.activation!r}: {suggest(self.activation, ACTIVATIONS)}")

    def build(self, module: nn.Module, tasks: Sequence[str]) -> AdapterPart:
        assert isinstance(module, nn.Linear)
        width = module.out_features if self.place == "sequential" else module.in_features
        dtype = torch.promote_types(module.weight.dtype, torch.float32)
        made = [Bottleneck(width, self.bottleneck, module.out_features, module.weight.device, dtype) for _ in tasks]
        return AdapterPart(dict(zip(tasks, made, strict=True)), self)


class Bottleneck(nn.Module):
    """The two layers of one task's adapter."""

    def __init__(self, inputs: int, width: int, outputs: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, width, device=device, dtype=dtype)
        self.up = nn.Linear(width, outputs, device=device, dtype=dtype)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)


class AdapterPart(Part):
    """The bottlenecks of all tasks at one linear layer; inputs ``(N, ..., in)``, examples along the first dimension.

    A batch that mixes tasks goes through all of them at once, and what is not an example's own is set to 0: two large
    products instead of many small ones.
    """

    def __init__(self, bottlenecks: dict[str, Bottleneck], settings: Adapter) -> None:
        super().__init__()
        self.tasks = tuple(bottlenecks)
        self.bottlenecks = TaskModules(dict(bottlenecks))
        self.settings = settings

    def forward(self, run: Callable[..., Any], x: Tensor) -> Tensor:
        output: Tensor = run(x)
        read = output if self.settings.place == "sequential" else x
        return output + self.settings.scale * self._adapted(read)

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
