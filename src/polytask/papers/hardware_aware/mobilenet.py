"""MobileNetV3 as Once-for-All has it: a sub-network, and the super-network that holds all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from polytask.papers.hardware_aware.architecture import (
    BLOCKS,
    EXPANSIONS,
    HARD_SWISH,
    KERNELS,
    SQUEEZED,
    STRIDES,
    WIDTHS,
    Architecture,
    rounded,
)


def conv(before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, and its batch norm."""
    return [nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(after)]


class SqueezeExcite(nn.Module):
    """Channels scaled by what the mean of all of them says (Hu et al., *Squeeze-and-excitation networks*, 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = rounded(channels / 4)
        self.reduce, self.expand = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same."""
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """An inverted residual: wider, a depthwise convolution, narrower.

    Args:
        before, mid, after: channels; where ``mid`` is ``before`` and ``expands`` is false nothing is widened.
        kernel, stride: of the depthwise convolution.
        squeezed: whether it squeezes and excites behind that.
        hard_swish: whether its activation is that, or ReLU.
    """

    def __init__(
        self,
        before: int,
        mid: int,
        after: int,
        kernel: int,
        stride: int = 1,
        squeezed: bool = False,
        hard_swish: bool = False,
        expands: bool = True,
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if hard_swish else nn.ReLU
        self.expand = nn.Sequential(*conv(before, mid), activation()) if expands else nn.Identity()
        self.depthwise = nn.Sequential(*conv(mid, mid, kernel, stride, mid), activation())
        self.squeeze = SqueezeExcite(mid) if squeezed else nn.Identity()
        self.project = nn.Sequential(*conv(mid, after))
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """``(N, before, H, W)`` to ``(N, after, H / stride, W / stride)``."""
        y: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    """A sub-network by itself: Cai et al., *Once-for-all: train one network and specialize it for efficient deployment*,
    ICLR 2020. Dropout is before the classifier alone.

    >>> with torch.device("meta"):
    ...     network = MobileNetV3(Architecture.parse("57553337553773335555", "43444634434336664344", "23243"))
    >>> sum(parameter.numel() for parameter in network.parameters())
    5029656
    """

    def __init__(self, architecture: Architecture, classes: int = 1000) -> None:
        super().__init__()
        self.architecture = architecture
        self.first, self.last = _ends(architecture.width, classes)
        self.stages = nn.ModuleList()
        for stage, (kernels, expansions) in enumerate(zip(architecture.kernels, architecture.expansions, strict=True)):
            blocks = []
            for block, (kernel, expansion) in enumerate(zip(kernels, expansions, strict=True)):
                before, after, stride = _place(architecture.width, stage, block)
                mid = rounded(before * expansion)
                blocks.append(Block(before, mid, after, kernel, stride, SQUEEZED[stage], HARD_SWISH[stage]))
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to logits ``(N, classes)``."""
        x = self.first(x)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.last(x)
        return logits


class ElasticBlock(nn.Module):
    """A block whose kernel and width inside are chosen when it runs; it holds those of the largest.

    A narrower block has the first channels. A smaller kernel is the middle of the next larger one, through a linear map of
    its entries that all channels share and that is learned; at first it changes nothing. That 3 comes out of 5 and 5 out of
    7, and that maps start so, was not checked against the authors' code.
    """

    def __init__(self, before: int, after: int, stride: int, squeezed: bool, hard_swish: bool) -> None:
        super().__init__()
        self._settings = (stride, squeezed, hard_swish)
        self.before, self.after = before, after
        self.whole = Block(before, rounded(before * max(EXPANSIONS)), after, max(KERNELS), *self._settings)
        self.maps = nn.ParameterDict({str(kernel): nn.Parameter(torch.eye(kernel**2)) for kernel in KERNELS[:-1]})
        self._plain: dict[tuple[int, int], Block] = {}

    def forward(self, x: Tensor, kernel: int, expansion: int) -> Tensor:
        """As `extract` would compute it; in training the statistics of the channels that are used are updated."""
        if (kernel, expansion) not in self._plain:
            with torch.device("meta"):
                self._plain[kernel, expansion] = self._block(kernel, expansion)
        plain = self._plain[kernel, expansion].train(self.training)
        y: Tensor = functional_call(plain, self.tensors(kernel, expansion), (x,))
        return y

    def extract(self, kernel: int, expansion: int) -> Block:
        """A plain block with copies of the weights."""
        block = self._block(kernel, expansion).train(self.training)
        tensors = self.tensors(kernel, expansion)
        block.load_state_dict(tensors)
        return block.to(tensors["project.0.weight"].device)

    def tensors(self, kernel: int, expansion: int) -> dict[str, Tensor]:
        """What a block of this kernel and expansion has, as views where that is possible."""
        mid = rounded(self.before * expansion)
        narrow = rounded(mid / 4)
        found: dict[str, Tensor] = {}
        for name, tensor in (*self.whole.named_parameters(), *self.whole.named_buffers()):
            if tensor.ndim == 0:
                found[name] = tensor
            elif name.startswith("project.0"):
                found[name] = tensor[:, :mid]
            elif name.startswith("project"):
                found[name] = tensor
            elif name.startswith("squeeze.reduce"):
                found[name] = tensor[:narrow, :mid] if tensor.ndim > 1 else tensor[:narrow]
            elif name.startswith("squeeze.expand"):
                found[name] = tensor[:mid, :narrow] if tensor.ndim > 1 else tensor[:mid]
            else:
                found[name] = tensor[:mid]
        found["depthwise.0.weight"] = self._kernels(found["depthwise.0.weight"], kernel)
        return found

    def _kernels(self, weight: Tensor, kernel: int) -> Tensor:
        for size in reversed([size for size in KERNELS[:-1] if size >= kernel]):
            margin = (weight.shape[-1] - size) // 2
            middle = weight[..., margin : margin + size, margin : margin + size]
            weight = F.linear(middle.flatten(1), self.maps[str(size)]).view_as(middle)
        return weight

    def _block(self, kernel: int, expansion: int) -> Block:
        return Block(self.before, rounded(self.before * expansion), self.after, kernel, *self._settings)


class SuperNetwork(nn.Module):
    """All sub-networks of one set of weights, those of the largest: kernels of 7, expansions of 6, four blocks a stage.

    A sub-network has the first blocks of each stage. Train it as any super-network, several architectures a step; what is
    extracted needs its batch norms recalibrated (`polytask.share.slimmable.recalibrate`).

    >>> network = SuperNetwork(width=0.25, classes=5).eval()
    >>> small = Architecture.parse("3" * 20, "3" * 20, "22222", width=0.25)
    >>> images = torch.randn(2, 3, 32, 32)
    >>> torch.equal(network(images, small), network.extract(small)(images))
    True
    """

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        self.width, self.classes = width, classes
        self.first, self.last = _ends(width, classes)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                ElasticBlock(*_place(width, stage, block), SQUEEZED[stage], HARD_SWISH[stage]) for block in range(BLOCKS)
            )
            for stage in range(len(STRIDES))
        )

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        """The logits of a sub-network; the multiplier of ``architecture`` is this network's."""
        x = self.first(x)
        for stage, (kernels, expansions) in enumerate(zip(architecture.kernels, architecture.expansions, strict=True)):
            for block, (kernel, expansion) in enumerate(zip(kernels, expansions, strict=True)):
                x = self.stages[stage][block](x, kernel, expansion)  # type: ignore[index]
        logits: Tensor = self.last(x)
        return logits

    @torch.no_grad()
    def extract(self, architecture: Architecture) -> MobileNetV3:
        """The sub-network by itself: plain layers with copies of the weights."""
        found = MobileNetV3(Architecture(architecture.kernels, architecture.expansions, self.width), self.classes)
        for mine, theirs in ((self.first, found.first), (self.last, found.last)):
            theirs.load_state_dict(mine.state_dict())
        for stage, blocks in enumerate(found.stages):
            assert isinstance(blocks, nn.Sequential)
            for block in range(len(blocks)):
                choice = architecture.kernels[stage][block], architecture.expansions[stage][block]
                blocks[block] = self.stages[stage][block].extract(*choice)  # type: ignore[index]
        return found.to(next(self.parameters()).device).train(self.training)


def _ends(width: float, classes: int) -> tuple[nn.Sequential, nn.Sequential]:
    """What is before the stages, and what is behind them."""
    first, before, *_, after, wide, last = (rounded(base * width) for base in WIDTHS)
    block = Block(first, first, before, 3, expands=False)
    head = (nn.Conv2d(wide, last, 1, bias=False), nn.Hardswish(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(last, classes))
    return (
        nn.Sequential(*conv(3, first, 3, 2), nn.Hardswish(), block),
        nn.Sequential(*conv(after, wide), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), *head),
    )


def _place(width: float, stage: int, block: int) -> tuple[int, int, int]:
    """The channels before and after a block, and its stride."""
    before, after = (rounded(WIDTHS[stage + i] * width) for i in (1, 2))
    return (before, after, STRIDES[stage]) if block == 0 else (after, after, 1)
