"""Small data and networks for the tests of training, and runs of them that a test starts in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import polytask as pt
from polytask.training import Fitted, fit
from polytask.training.history import finite

torch.set_num_threads(1)  # sums in two threads have other last bits than sums in one

# Clean processes for runs that a test kills or joins: forked from a server that has imported everything and run nothing.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.training.small", "lightning_fabric", "torchmetrics.classification"])

WIDTH = 12


def tasks() -> list[pt.Task]:
    return [
        pt.Task.classification("colour", classes=3),
        pt.Task.binary("round"),
        pt.Task.regression("weight"),
    ]


def examples(size: int = 96, seed: int = 0, missing: bool = True) -> pt.Examples:
    """Six features and three tasks that depend on them; a third of the labels is missing, unevenly."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 6, generator=generator)
    colour = (x[:, :3] + 0.3 * torch.randn(size, 3, generator=generator)).argmax(1)
    round_ = (x[:, 3] > 0).float()
    weight = x @ torch.arange(6.0) / 3
    if missing:
        colour[torch.rand(size, generator=generator) < 0.2] = -100
        round_[torch.rand(size, generator=generator) < 0.6] = torch.nan
        weight[: size // 4] = torch.nan
    return pt.Examples(x, {"colour": colour, "round": round_, "weight": weight})


def encoder(dropout: float = 0.0, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(6, WIDTH)]
    layers += [nn.BatchNorm1d(WIDTH)] if norm else []
    layers += [nn.ReLU()]
    layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH), nn.Tanh())


def model(seed: int = 0, dropout: float = 0.0, norm: bool = False, sharing: Any = None) -> pt.Model:
    torch.manual_seed(seed)
    return pt.Model(encoder(dropout, norm), tasks(), sharing=sharing, width=WIDTH)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules have the same state, bit for bit."""
    states = a.state_dict(), b.state_dict()
    return list(states[0]) == list(states[1]) and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def distance(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> float:
    """The largest difference between two modules' parameters and buffers."""
    states = [m.state_dict() if isinstance(m, nn.Module) else m for m in (a, b)]
    assert list(states[0]) == list(states[1])
    return max(float((states[0][k].double() - states[1][k].double()).abs().max()) for k in states[0])


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


class Noisy(torch.utils.data.Dataset[Any]):
    """Examples under a random transform that draws from torch's global generator."""

    def __init__(self, data: pt.Examples) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        inputs, targets = self.data[index]
        return inputs + 0.1 * torch.randn(6), targets


def run_that_is_killed(kind: str, out: str | None) -> Fitted:
    """One of the runs that must survive a kill; ``kind`` names the data it reads."""
    data = examples(240)
    train: Any
    if kind == "examples":
        train = data
    elif kind == "loader":
        train = DataLoader(Noisy(data), batch_size=16, shuffle=True)
    elif kind == "generator":
        train = DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(5))
    elif kind == "workers":
        train = DataLoader(Noisy(data), batch_size=16, shuffle=True, num_workers=1)
    else:
        sources: dict[str, Any] = {name: data.only([name]) for name in ("colour", "round", "weight")}
        sources["round"] = DataLoader(Noisy(sources["round"]), batch_size=16, shuffle=True)
        train = pt.Mixture(sources, sampling="temperature", batch_size=16)
    return fit(
        model(dropout=0.3, norm=True),
        train,
        examples(64, seed=1),
        steps=40 if kind == "workers" else 120,
        batch_size=16,
        balance="uncertainty",
        accumulate=2 if kind == "examples" else 1,
        clip=1.0,
        evaluate_every=10,
        checkpoint_every=3,
        conflicts=kind != "mixture",
        lr=1e-2,
        out=out,
    )


def write_end(kind: str, out: str) -> None:
    """Run, or go on with, the run in the folder ``out``, and write how it ended."""
    fitted = run_that_is_killed(kind, out)
    end = {"model": fitted.model.state_dict(), "history": json.dumps(finite(without_time(fitted.history)))}
    torch.save(end, Path(out) / "end.pt")
