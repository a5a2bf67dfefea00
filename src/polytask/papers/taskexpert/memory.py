"""Memorial mixtures of experts: features of several levels, taken apart by shared experts and put together for each task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polytask import scope
from polytask.errors import InputError, suggest
from polytask.share import Gate, Pathway, Penalty, Sharing, TaskModules, TaskParameters

Gating: TypeAlias = Literal["sample", "pixel", "static", "uniform"]
Memory: TypeAlias = Literal["full", "write only", "none"]
Norm: TypeAlias = Literal["batch", "group"]
CHOICES: dict[str, tuple[str, ...]] = {
    "gating": get_args(Gating),
    "memory": get_args(Memory),
    "update": ("add", "momentum"),
    "start": ("token", "zeros"),
    "norm": get_args(Norm),
}


@dataclass(frozen=True)
class MemorialExperts(Sharing):
    """Task features that are assembled level by level from shared experts and from a memory of each task.

    At level ``l`` of the encoder's features ``F_l``, with ``N`` experts that all tasks share, for each task ``t``:
    ``Z = sum_n s_n E_n(F_l) + s_{N+1} M_{l-1}`` and ``M_l = M_{l-1} + U_t(Z)``, where the ``s`` are a softmax over all ``N +
    1`` of what the task's gate makes of ``F_l`` and ``M_{l-1}``. ``M_0`` is the task's token at each place, and the last
    memory is the task's feature. The encoder's features stay as they are. Ye and Xu, *TaskExpert*, ICCV 2023.

    The authors published no code, and what is public does not say how the parts are made inside. What follows is a
    reconstruction, of which nothing is known to be the authors' choice but that experts are shared, gates belong to a task
    and depend on the input, and the memory runs through the levels as one more expert:

    - an expert is a 1x1 convolution, normalisation, GELU and a depthwise 3x3 convolution; ``U_t`` is a 3x3 convolution,
      normalisation and GELU;
    - a gate is two linear layers with GELU between, on the means of ``F_l`` and ``M_{l-1}`` over places. Its last layer
      begins at 0, so that all weights are ``1 / (N + 1)`` at first.

    Features are ``(N, h, w, levels * C)``, the levels one after the other, as `polytask.nn.vit.ViT` gives them.

    Args:
        levels: how many levels there are; 4.
        experts: ``N``; 5.
        channels: of experts, memories and what comes out; 256.
        hidden: the width of a gate's hidden layer; 64.
        gating: ``"sample"`` as above (default); ``"pixel"``, one linear layer on the features of each place; ``"static"``,
            weights that are learned and do not depend on the input; ``"uniform"``, equal weights.
        memory: ``"full"`` (default); ``"write only"``: neither an expert nor read by the gates; ``"none"``: the last level
            alone, ``U_t(Z)``.
        update: ``"add"`` as above (default), or ``"momentum"``: ``(1 - a) M + a U_t(Z)`` with a learned ``a``, 0.5 at first.
        start: ``M_0`` is a ``"token"``, normal with a standard deviation of 0.02 (default), or ``"zeros"``.
        norm: ``"batch"`` (default) or ``"group"`` normalisation, the latter for batches of a few images.
        checkpoint: compute each level again in the backward pass, to save memory; needs group normalisation, since batch
            normalisation would count each batch twice.
        entropy: adds ``-entropy`` times the mean entropy of the gates to the loss, against a collapse to one expert; 0
            (default).
    """

    name: ClassVar[str] = "memorial_experts"
    levels: int = 4
    experts: int = 5
    channels: int = 256
    hidden: int = 64
    gating: Gating = "sample"
    memory: Memory = "full"
    update: Literal["add", "momentum"] = "add"
    start: Literal["token", "zeros"] = "token"
    norm: Norm = "batch"
    checkpoint: bool = False
    entropy: float = 0.0

    def __post_init__(self) -> None:
        for field, known in CHOICES.items():
            value = getattr(self, field)
            if value not in known:
                raise InputError(f"memorial experts: unknown {field} {value!r}: {suggest(value, known)}")
        if min(self.levels, self.experts, self.channels, self.hidden) < 1:
            raise InputError(
                f"memorial experts: levels {self.levels}, experts {self.experts}, channels {self.channels}, hidden "
                f"{self.hidden}, expected at least 1 each"
            )
        if self.checkpoint and self.norm == "batch":
            raise InputError("memorial experts: checkpoint with batch normalisation, expected norm='group'")

    def build(self, width: int, tasks: Sequence[str]) -> MemorialPathway:
        if width % self.levels:
            raise InputError(f"memorial experts: {width} features, expected a multiple of {self.levels}, the levels")
        return MemorialPathway(self, width // self.levels, tasks)


class MemorialPathway(Pathway):
    """The levels of `MemorialExperts`, and where each task's memory begins."""

    def __init__(self, settings: MemorialExperts, inputs: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.settings = settings
        scale = 0.02 if settings.start == "token" and settings.memory != "none" else 0.0
        self.tokens = TaskParameters({task: scale * torch.randn(settings.channels) for task in tasks})
        self.tokens.requires_grad_(scale > 0)
        used = 1 if settings.memory == "none" else settings.levels
        self.levels = nn.ModuleList(Level(settings, inputs, tasks) for _ in range(used))

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        if features.dim() != 4:
            raise InputError(f"features of shape {tuple(features.shape)}, expected (N, h, w, levels * width)")
        maps = features.movedim(-1, 1).chunk(self.settings.levels, 1)[-len(self.levels) :]
        places = len(features), self.settings.channels, *features.shape[1:3]
        memory = {task: self.tokens[task].to(features.dtype)[:, None, None].expand(places) for task in tasks}
        for level, x in zip(self.levels, maps, strict=True):
            if self.settings.checkpoint and self.training:
                memory = checkpoint(level, x, memory, use_reentrant=False, context_fn=scope.kept)
            else:
                memory = level(x, memory)
        return {task: memory[task].movedim(1, -1) for task in tasks}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        for level in self.levels:
            yield from level.experts.parameters()  # type: ignore[union-attr]

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        yield from self.tokens.of(task)
        for level in self.levels:
            yield from level.own.parameters_of(task)  # type: ignore[union-attr, operator]


class Level(nn.Module):
    """One level: ``(N, C, h, w)`` features and the tasks' memories ``(N, c, h, w)`` to their next ones."""

    def __init__(self, settings: MemorialExperts, inputs: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.settings = settings
        count, channels = settings.experts, settings.channels
        self.experts = nn.Sequential(
            *(nn.Conv2d(inputs, count * channels, 1), norm_of(settings, count * channels), nn.GELU()),
            nn.Conv2d(count * channels, count * channels, 3, padding=1, groups=count * channels),
        )
        self.own = TaskModules({task: Own(settings, inputs) for task in tasks})
        self.penalty = Penalty()

    def forward(self, x: Tensor, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        every: Tensor = self.experts(x).view(len(x), self.settings.experts, -1, *x.shape[2:])
        written = {}
        for task, before in memory.items():
            own = self.own[task]
            weights = own.weights(x, before)  # type: ignore[operator]
            if self.settings.entropy and self.training:
                value = torch.special.entr(weights).sum(-1).mean()
                if self.penalty.wanted:
                    self.penalty.add(-self.settings.entropy * value)
            written[task] = own(every, before, weights)
        return written


class Own(nn.Module):
    """What a task has of its own at a level: its gate, and how its memory is written."""

    def __init__(self, settings: MemorialExperts, inputs: int) -> None:
        super().__init__()
        self.settings = settings
        channels, reads = settings.channels, settings.memory == "full"
        count = settings.experts + reads
        context = inputs + (channels if reads else 0)
        if settings.gating == "sample":
            router: nn.Module = nn.Sequential(
                nn.Linear(context, settings.hidden), nn.GELU(), zeroed(nn.Linear(settings.hidden, count))
            )
        elif settings.gating == "pixel":
            router = zeroed(nn.Linear(context, count))
        else:
            router = Constant(count, learned=settings.gating == "static")
        self.gate = Gate(router, count, count)
        self.write = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), norm_of(settings, channels), nn.GELU())
        self.share = nn.Parameter(torch.zeros(())) if settings.update == "momentum" else None

    def weights(self, x: Tensor, memory: Tensor) -> Tensor:
        """``(N, 1, 1, E)``, or ``(N, h, w, E)`` by place, of the experts and, where it is one of them, the memory."""
        read = torch.cat([x, memory], 1) if self.settings.memory == "full" else x
        if self.settings.gating != "pixel":
            read = read.mean((2, 3), keepdim=True)
        weights: Tensor = self.gate(read.movedim(1, -1)).dense(self.gate.experts)
        return weights

    def forward(self, every: Tensor, memory: Tensor, weights: Tensor) -> Tensor:
        weights = weights.movedim(-1, 1)[:, :, None].to(every.dtype)
        mixed = (every * weights[:, : every.shape[1]]).sum(1)
        if self.settings.memory == "full":
            mixed = mixed + weights[:, -1] * memory
        found: Tensor = self.write(mixed)
        if self.settings.memory == "none":
            return found
        return memory + found if self.share is None else torch.lerp(memory, found, self.share.sigmoid().to(found.dtype))


class Constant(nn.Module):
    """Logits that do not depend on the input, at first 0."""

    def __init__(self, count: int, learned: bool) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(count), requires_grad=learned)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(*x.shape[:-1], -1)


def norm_of(settings: MemorialExperts, channels: int) -> nn.Module:
    """Batch normalisation, or group normalisation by groups of 8 channels where 8 divides them, else of all."""
    if settings.norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)


def zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
