"""One step of many losses, as polytask and its peers make it: networks, steps, and the work that a step needs at least."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from polytask.balance import UPGrad
from polytask.balance.engine.graph import segments
from polytask.balance.engine.uses import Use

# Networks


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.embed(tokens)).mean(1)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.skip(x))


Built: TypeAlias = tuple[nn.Module, Tensor, int]
"""An encoder, a batch for it, and the width of what comes out."""


def mlp(width: int, depth: int) -> Built:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(64, width), width


def resnet(channels: int, blocks: int) -> Built:
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    inputs = channels
    for stage in range(4):
        for block in range(blocks):
            layers.append(Block(inputs, channels << stage, 2 if stage and not block else 1))
            inputs = channels << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(32, 3, 32, 32), inputs


def transformer(width: int, layers: int, heads: int) -> Built:
    return Transformer(width, layers, heads), torch.randint(0, 1000, (16, 64)), width


NETWORKS: dict[str, Callable[[], Built]] = {
    "tiny": partial(mlp, 16, 2),
    "MLP 1M": partial(mlp, 512, 4),
    "MLP 20M": partial(mlp, 2048, 5),
    "ResNet 1M": partial(resnet, 16, 3),
    "ResNet 11M": partial(resnet, 64, 2),
    "transformer 1M": partial(transformer, 128, 5, 4),
    "transformer 20M": partial(transformer, 512, 6, 8),
}


class Problem:
    """A network of `NETWORKS` with a linear head and a squared error for each of ``count`` tasks; always the same."""

    def __init__(self, network: str, count: int) -> None:
        torch.manual_seed(0)
        self.encoder, self.inputs, width = NETWORKS[network]()
        self.heads = nn.ModuleDict({f"task{k}": nn.Linear(width, 1) for k in range(count)})
        self.shared = list(self.encoder.parameters())

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.shared)

    def loss(self, name: str, features: Tensor) -> Tensor:
        loss: Tensor = (self.heads[name](features) - int(name[4:]) / len(self.heads)).square().mean()
        return loss

    def losses(self) -> dict[str, Tensor]:
        return self.losses_of(self.encoder(self.inputs))

    def losses_of(self, features: Tensor) -> dict[str, Tensor]:
        return {name: self.loss(name, features) for name in self.heads}

    def clear(self) -> None:
        for p in (*self.shared, *self.heads.parameters()):
            p.grad = None


# Steps: each takes a problem and gives what makes one step on it

Step = Callable[[], None]


def plain(problem: Problem) -> Step:
    def step() -> None:
        problem.clear()
        torch.stack(list(problem.losses().values())).sum().backward()

    return step


def polytask(problem: Problem) -> Step:
    balancer = UPGrad()
    balancer.prepare(list(problem.heads))

    def step() -> None:
        problem.clear()
        balancer.step([problem.losses], problem.shared, Tensor.backward)

    return step


def stacking(problem: Problem) -> Step:
    """What most code does: task by task a gradient of all parameters, flat, into one matrix."""
    from polytask.balance.upgrad import weights

    def step() -> None:
        problem.clear()
        losses = problem.losses()
        jacobian = torch.zeros(len(losses), problem.size)
        for row, (name, loss) in zip(jacobian, losses.items(), strict=True):
            own = list(problem.heads[name].parameters())
            grads = torch.autograd.grad(loss, [*problem.shared, *own], retain_graph=True)
            row[:] = torch.cat([grad.flatten() for grad in grads[: len(problem.shared)]])
            for p, grad in zip(own, grads[len(problem.shared) :], strict=True):
                p.grad = grad
        found = weights((jacobian @ jacobian.T).double()).float() @ jacobian
        for p, grad in zip(problem.shared, found.split([p.numel() for p in problem.shared]), strict=True):
            p.grad = grad.view_as(p)

    return step


def torchjd_mtl(problem: Problem, at_once: bool) -> Step:
    from torchjd import aggregation, autojac

    upgrad = aggregation.UPGrad()

    def step() -> None:
        problem.clear()
        features = problem.encoder(problem.inputs)
        losses = list(problem.losses_of(features).values())
        autojac.mtl_backward(losses, features, parallel_chunk_size=None if at_once else 1)
        autojac.jac_to_grad(problem.shared, upgrad, optimize_gramian_computation=True)

    return step


def torchjd_backward(problem: Problem, at_once: bool) -> Step:
    from torchjd import aggregation, autojac

    upgrad = aggregation.UPGrad()

    def step() -> None:
        problem.clear()
        losses = list(problem.losses().values())
        # Shared parameters only: a Gramian of all would have the heads in it. The heads get nothing, in torchjd's favour.
        autojac.backward(losses, inputs=problem.shared, parallel_chunk_size=None if at_once else 1)
        autojac.jac_to_grad(problem.shared, upgrad, optimize_gramian_computation=True)

    return step


def torchjd_engine(problem: Problem) -> Step:
    from torchjd import aggregation, autogram

    weighting = aggregation.UPGradWeighting()
    engine = autogram.Engine(problem.encoder, batch_dim=None)

    def step() -> None:
        problem.clear()
        losses = torch.stack(list(problem.losses().values()))
        losses.backward(weighting(engine.compute_gramian(losses)))

    return step


def libmtl(problem: Problem, method: str) -> Step:
    """LibMTL's own class. The package needs a torchvision of its time when it is imported, its weightings do not."""
    if "LibMTL" not in sys.modules:
        found = importlib.util.find_spec("LibMTL")
        if found is None:
            raise ImportError("LibMTL is not installed: have its wheel in PYTHONPATH")
        sys.modules["LibMTL"] = types.ModuleType("LibMTL")
        sys.modules["LibMTL"].__path__ = list(found.submodule_search_locations or ())
    made: Any = getattr(importlib.import_module("LibMTL.weighting"), method)()
    made.task_num, made.device, made.rep_grad = len(problem.heads), torch.device("cpu"), False
    made.get_share_params = problem.encoder.parameters
    made.zero_grad_share_params = partial(problem.encoder.zero_grad, set_to_none=False)
    made.init_param()

    def step() -> None:
        problem.clear()
        made.backward(torch.stack(list(problem.losses().values())))

    return step


TORCHJD: dict[str, Callable[[Problem], Step]] = {
    "torchjd mtl_backward": partial(torchjd_mtl, at_once=False),
    "torchjd mtl_backward, vmap": partial(torchjd_mtl, at_once=True),
    "torchjd backward": partial(torchjd_backward, at_once=False),
    "torchjd backward, vmap": partial(torchjd_backward, at_once=True),
    "torchjd autogram.Engine": torchjd_engine,
}
STEPS: dict[str, Callable[[Problem], Step]] = {
    "plain": plain,
    "polytask": polytask,
    **TORCHJD,
    "stacking": stacking,
    "LibMTL IMTL": partial(libmtl, method="IMTL"),
    "LibMTL PCGrad": partial(libmtl, method="PCGrad"),
}


# Work


def counted(function: Callable[[], Any]) -> tuple[int, Any]:
    """FLOPs of the matrix products and convolutions in a call, and what it gives."""
    with FlopCounterMode(display=False) as counter:
        value = function()
    return counter.get_total_flops(), value


def work(network: str, count: int) -> dict[str, int]:
    """FLOPs of a plain step, of the least that a Gramian step needs, and of one that makes every task's gradient.

    The least is a forward pass, for each task a pass back through the layers that makes no gradient of a weight, inner
    products of each layer in the cheaper order, and a whole backward pass; or every task's gradient, where that is less.
    """
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):  # the processor's fused attention is not counted
        problem = Problem(network, count)
        forward, losses = counted(problem.losses)
        first = next(iter(losses.values()))
        uses = [use for segment in segments([first], problem.shared, sys.maxsize) for use in segment.uses]
        edges = [GradientEdge(node, 0) for node in dict.fromkeys(use.node for use in uses)]
        back, _ = counted(lambda: torch.autograd.grad(first, edges, retain_graph=True))
        total = torch.stack(list(losses.values())).sum()
        whole, _ = counted(lambda: torch.autograd.grad(total, problem.shared))
    by_layers = forward + count * back + sum(2 * products(use, count) for use in uses) + whole
    every = forward + count * whole + 2 * count**2 * problem.size
    return {"plain": forward + whole, "least": min(by_layers, every), "every": every}


def products(use: Use, count: int) -> int:
    """Multiplications for the inner products of a weight's gradients, in the cheaper order: see `rows_are_cheaper`."""
    if use.parameter.ndim < 2:
        return 0
    rows, out, width = use.rows, len(use.parameter), use.parameter[0].numel()
    if use.node.name() == "EmbeddingBackward0":
        return count**2 * rows * width
    by_rows = rows**2 * (width + count * out) + count**2 * rows * out
    return min(by_rows, count * rows * width * out + count**2 * width * out)
