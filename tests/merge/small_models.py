"""Vectors and models to mask, which several tests share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

A = torch.tensor([1.0, 0.0, 2.0, -1.0])
B = torch.tensor([1.0, 1.0, -1.0, 0.0])

# Numbers whose sums, differences and quarters float32 holds exactly, so that a tie is a tie in any arithmetic.
exact = st.integers(-64, 64).map(lambda value: value / 16)
exact_scales = st.sampled_from([0.25, 0.5, 1.0, 2.0])
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def vectors(count: int) -> st.SearchStrategy[Tensor]:
    """``count`` vectors of one length as the rows of a tensor."""
    return st.integers(1, 20).flatmap(
        lambda n: st.lists(st.lists(exact, min_size=n, max_size=n), min_size=count, max_size=count).map(torch.tensor)
    )


def models(dtype: torch.dtype = torch.float32, tasks: int = 3, seed: int = 0) -> tuple[dict[str, Tensor], dict]:
    """A base and experts of a few tensors of awkward sizes; each expert leaves about half of the coordinates alone."""
    random = torch.Generator().manual_seed(seed)
    sizes = {"layer.weight": (5, 7), "layer.bias": (7,), "norm.weight": (1,), "scale": (), "empty": (0, 3)}
    base = {name: torch.randn(size, generator=random).to(dtype) for name, size in sizes.items()}
    experts: dict[str, dict[str, Tensor]] = {}
    for task in range(tasks):
        moved = {
            name: theta
            + (0.1 * torch.randn(theta.shape, generator=random) * (torch.rand(theta.shape, generator=random) < 0.5)).to(
                dtype
            )
            for name, theta in base.items()
        }
        experts[f"task {task}"] = moved
    return base, experts


class Network(nn.Module):
    """A network with everything that a state dict may hold: BatchNorm's statistics, integers, a scalar."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.second = nn.Linear(5, 3)
        self.register_buffer("table", torch.arange(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.norm(self.first(x)).relu())
        return out


def tuned(base: nn.Module, seed: int) -> dict[str, Tensor]:
    """A few real steps from ``base`` on data of its own: weights and running statistics move."""
    module = Network()
    module.load_state_dict(base.state_dict())
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        module(torch.randn(16, 6) + seed).square().sum(1).mean().backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
