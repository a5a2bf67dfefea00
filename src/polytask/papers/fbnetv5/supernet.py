"""The search space: paths of several resolutions, of which every block and every exchange may be left out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.cost import count
from polytask.errors import InputError, suggest
from polytask.papers.fbnetv5.fbnetv3 import InvertedResidual, conv
from polytask.shrink.search import Space
from polytask.task import Task, check_unique


@dataclass(frozen=True)
class ResolutionPath:
    """The blocks of a path, as they are in a network for classification: they are not searched.

    Args:
        width: channels.
        kernel, expansion, squeezed: of its blocks, see `polytask.papers.fbnetv5.InvertedResidual`.
        blocks: how many in each module.
    """

    width: int
    kernel: int = 3
    expansion: int = 3
    squeezed: bool = False
    blocks: int = 1

    def block(self) -> nn.Module:
        """A new block."""
        return InvertedResidual(self.width, self.width, self.kernel, 1, self.expansion, self.squeezed)


FBNETV3_PATHS = (
    ResolutionPath(24, 5, 2, blocks=2),
    ResolutionPath(40, 5, 3, True, 2),
    ResolutionPath(120, 5, 3, True, 2),
    ResolutionPath(184, 5, 4, True, 2),
)
"""A quarter, an eighth, a sixteenth and a thirty-second of the image, with the repeated blocks of FBNetV3-A. The numbers of
blocks and modules of the paper's own super-network are not known."""


class Part(nn.Module):
    """What a gene keeps: a block of a path, or an exchange from one path to another.

    Args:
        body: what it computes, at the resolution of the source, or if the target's is lower at that one.
        module: the number of its module.
        source, target: numbers of paths; the same for a block.
    """

    def __init__(self, body: nn.Module, module: int, source: int, target: int) -> None:
        super().__init__()
        self.body, self.module, self.source, self.target = body, module, source, target

    @property
    def name(self) -> str:
        """As its gene has it; blocks of a path are told apart by a number behind."""
        return f"m{self.module}_{self.source}" + (f"to{self.target}" if self.source != self.target else "")

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Features of the source to what the target gets, of this height and width."""
        y: Tensor = self.body(x)
        return F.interpolate(y, size=tuple(size)) if self.target < self.source else y


class Head(nn.Module):
    """A task's head on paths: see `MultiPath`.

    Args:
        task: what it predicts.
        widths: by path its channels.
        width: of the representation.
    """

    def __init__(self, task: Task, widths: Mapping[int, int], width: int) -> None:
        super().__init__()
        self.merge = nn.ModuleDict({str(path): nn.Sequential(*conv(channels, width)) for path, channels in widths.items()})
        self.head = task.head(width)
        self.dense = isinstance(self.head, nn.Conv2d)

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        """Features by path, of those that are there, to the task's output."""
        merged = [self.merge[str(path)](x) for path, x in features.items()]
        if self.dense:
            size = features[0].shape[-2:]
            merged = [merged[0], *(F.interpolate(x, size=size, mode="bilinear") for x in merged[1:])]
        else:
            merged = [x.mean((2, 3)) for x in merged]
        output: Tensor = self.head(F.hardswish(torch.stack(merged).sum(0)))
        return output


class MultiPath(nn.Module):
    """A super-network of parallel paths, each of half the resolution of the one before, for several tasks at once (Wu et
    al., *FBNetV5*, arXiv 2111.10007, 2021; a reconstruction where it has more detail than the paper's summary).

    It has modules in a row. In each, every path runs its blocks, and then paths exchange what they have: strided
    convolutions to lower resolutions, a 1x1 convolution and interpolation to higher ones, and sums. Each block and each
    exchange has a gene, whether it is kept; kernels, widths and expansions are fixed. A block that is left out is the
    identity. A path is there from the first exchange that is kept into it; blocks and exchanges of a path that is not there
    are left out, whatever their genes say. The first path comes from the stem, and is always there.

    Heads are light and not searched: of each path that is there a 1x1 convolution, their sum at the first path's resolution
    for dense tasks, or the sum of their means over pixels, and the task's own head.

    A configuration says by gene whether it is kept; by default all are. It is an argument: nothing is switched.

    Args:
        tasks: what to predict.
        paths: the highest resolution first.
        modules: how many.
        channels: of the images.
        stem: how often it halves the image: 2 for the quarter of the paper's first path.
        width: of the heads.

    >>> paths = [ResolutionPath(8), ResolutionPath(16)]
    >>> network = MultiPath([Task.classification("class", classes=3)], paths, modules=2, channels=1, stem=1)
    >>> list(network.space.genes)
    ['m0_0', 'm0_0to1', 'm1_0', 'm1_1', 'm1_0to1', 'm1_1to0']
    >>> chosen = {**dict.fromkeys(network.space.genes, False), "m0_0to1": True, "m1_1": True}
    >>> small, images = network.eval().extract(chosen), torch.randn(2, 1, 12, 12)
    >>> torch.equal(small(images)["class"], network(images, chosen)["class"]), list(small.parts)
    (True, ['m0_0to1', 'm1_1'])
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        paths: Sequence[ResolutionPath] = FBNETV3_PATHS,
        modules: int = 4,
        channels: int = 3,
        stem: int = 2,
        width: int = 64,
    ) -> None:
        super().__init__()
        check_unique(tasks)
        if not paths or modules < 1 or stem < 1:
            raise InputError(f"{len(paths)} paths, {modules} modules, stem {stem}: expected at least 1 of each")
        self.tasks = {task.name: task for task in tasks}
        first = paths[0].width
        self.stem = nn.Sequential()
        for before in (channels, *(first for _ in range(stem - 1))):
            self.stem.append(nn.Sequential(*conv(before, first, 3, 2), nn.Hardswish()))
        self.parts = nn.ModuleDict()
        for module in range(modules):
            there = range(len(paths) if module else 1)  # before the first exchange
            for path in there:
                for block in range(paths[path].blocks):
                    part = Part(paths[path].block(), module, path, path)
                    self.parts[part.name + (f"_{block}" if paths[path].blocks > 1 else "")] = part
            for source in there:
                for target in range(len(paths)):
                    if source != target:
                        part = Part(_exchange([path.width for path in paths], source, target), module, source, target)
                        self.parts[part.name] = part
        widths = {place: path.width for place, path in enumerate(paths)}
        self.heads = nn.ModuleDict({task.name: Head(task, widths, width) for task in tasks})

    @property
    def space(self) -> Space:
        """A gene for each block and each exchange, whether it is kept."""
        return Space({name: [False, True] for name in self.parts})

    def forward(
        self, images: Tensor, configuration: Mapping[str, Any] | None = None, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The outputs of ``tasks``, all by default, in one pass through the paths."""
        for name in tasks or ():
            if name not in self.heads:
                raise InputError(f"unknown task {name!r}: {suggest(name, self.heads)}")
        x = self.stem(images)
        found, waiting = {0: x}, dict[int, Tensor]()
        module = 0
        for _, part in self._kept(configuration):
            if part.module > module:
                found, waiting, module = _joined(found, waiting), {}, part.module
            if part.source not in found:
                continue
            y = part(found[part.source], _size(x, part.target))
            if part.source == part.target:
                found[part.target] = y
            else:
                waiting[part.target] = waiting[part.target] + y if part.target in waiting else y
        found = _joined(found, waiting)
        return {name: self.heads[name](found) for name in (self.heads if tasks is None else tasks)}

    def losses(self, batch: Any, configuration: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """The loss of every task that ``(images, {task: target})`` has targets for, in one pass."""
        images, targets = batch
        outputs = self(images, configuration, [name for name in targets if name in self.heads])
        return {name: self.tasks[name].loss(output, targets[name]) for name, output in outputs.items()}

    @torch.no_grad()
    def predict(
        self, images: Tensor, tasks: Sequence[str] | None = None, configuration: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Predictions in the user's units, see `polytask.Task.decode`. Does not change the mode."""
        outputs = self(images, configuration, tasks)
        return {name: self.tasks[name].decode(output) for name, output in outputs.items()}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the stem and of the paths."""
        yield from self.stem.parameters()
        yield from self.parts.parameters()

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """Those of the task's head."""
        return self.heads[task].parameters()

    def used(self, configuration: Mapping[str, Any] | None = None) -> tuple[list[str], list[int]]:
        """The names of the parts that a configuration runs, in order, and the paths that are there in the end."""
        names, there, reached = [], {0}, {0}
        module = 0
        for name, part in self._kept(configuration):
            if part.module > module:
                there, module = set(reached), part.module
            if part.source in there:
                names.append(name)
                reached.add(part.target)
        return names, sorted(reached)

    def extract(self, configuration: Mapping[str, Any] | None = None, tasks: Sequence[str] | None = None) -> MultiPath:
        """The network of a configuration by itself: copies of the parts that it runs, and the heads of ``tasks``, all by
        default, for the paths that are there. It is called without a configuration, and trained like any other."""
        names, there = self.used(configuration)
        small = copy.copy(self)
        small.__dict__["_modules"] = {"stem": copy.deepcopy(self.stem)}
        small.parts = nn.ModuleDict({name: copy.deepcopy(self.parts[name]) for name in names})
        small.tasks = {name: task for name, task in self.tasks.items() if tasks is None or name in tasks}
        small.heads = nn.ModuleDict({name: copy.deepcopy(self.heads[name]) for name in small.tasks})
        for head in small.heads.values():
            merge = cast(Head, head).merge
            for path in set(merge) - set(map(str, there)):
                del merge[path]
        return small.train(self.training)

    def _kept(self, configuration: Mapping[str, Any] | None) -> Iterator[tuple[str, Part]]:
        for name, part in self.parts.items():
            if configuration is None or configuration[name]:
                yield name, cast(Part, part)


class Costs:
    """The multiply-accumulate operations of each task's own network, ``"TASK macs"``, added up from those of parts.

    Args:
        network: its weights are neither read nor copied.
        images: what to count for, such as one image; only the shape counts.
    """

    def __init__(self, network: MultiPath, images: Tensor) -> None:
        self.network = network
        self.of = {name: each.macs for name, each in count(network, images).modules.items()}

    def __call__(self, configuration: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Of a configuration, by default of the whole network."""
        names, there = self.network.used(configuration)
        shared = self.of["stem"] + sum(self.of[f"parts.{name}"] for name in names)
        found: dict[str, float] = {}
        for task in self.network.tasks:
            merged = sum(self.of[f"heads.{task}.merge.{path}"] for path in there)
            found[f"{task} macs"] = shared + merged + self.of[f"heads.{task}.head"]
        return found


def _exchange(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """Strided convolutions down, the activation between them; a 1x1 convolution up."""
    if target < source:
        return nn.Sequential(*conv(widths[source], widths[target]))
    steps: list[nn.Module] = []
    for step in range(source, target):
        after = widths[target] if step == target - 1 else widths[source]
        steps += [nn.Hardswish()] if steps else []
        steps += conv(widths[source], after, 3, 2)
    return nn.Sequential(*steps)


def _size(first: Tensor, path: int) -> tuple[int, int]:
    """The height and width of a path, halved and rounded up as strided convolutions do."""
    height, width = (-(-side // 2**path) for side in first.shape[-2:])
    return height, width


def _joined(found: Mapping[int, Tensor], given: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """What each path has, and what it is given."""
    joined = {path: given[path] + found[path] if path in found else given[path] for path in given}
    return dict(sorted({**found, **joined}.items()))
