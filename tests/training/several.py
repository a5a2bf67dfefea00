"""Runs that a test starts in several processes at once."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from tests.training.small import examples, model, processes, without_time
from torch import Tensor, nn

import polytask as pt
from polytask.balance import Balancer, Estimated, LossMGDA, Uncertainty, UPGrad
from polytask.errors import PolytaskError
from polytask.share import MHR, Adapter, Insertable, LoRA, SMoRA
from polytask.training import checkpoint, fabric, fit

SETTINGS: dict[str, Any] = {"steps": 6, "batch_size": 32, "evaluate_every": 2, "clip": 1.0, "conflicts": True}


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def together(run: Callable[..., Any], world: int, folder: Path, *args: Any) -> list[Any]:
    """``run(rank, world, *args)`` in ``world`` processes as ``torchrun`` would start them; what each gave."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [processes.Process(target=_rank, args=(run, rank, world, port, folder, args)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    for process in started:
        process.kill()
    assert [process.exitcode for process in started] == [0] * world, [process.exitcode for process in started]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


def _rank(run: Callable[..., Any], rank: int, world: int, port: int, folder: Path, args: tuple[Any, ...]) -> None:
    # What torchrun sets, by which Fabric knows that it need not start processes itself.
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    warnings.filterwarnings("ignore", message=".*find_unused_parameters.*")
    torch.save(run(rank, world, *args), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def several(world: int) -> Any:
    made = fabric(devices=world, accelerator="cpu", strategy="ddp")
    made.launch()
    return made


class Product(Balancer):
    """Compares gradients, and writes them itself: each task's share of the step is its gradient times its norm."""

    def backward(self, losses: Any, shared: Any, backward: Any) -> None:
        norms = []
        for loss in losses.values():
            grads = torch.autograd.grad(loss, shared, retain_graph=True)
            norms.append(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
        total = torch.stack([n * loss for n, loss in zip(norms, losses.values(), strict=True)]).sum()
        own = list({id(p): p for p in self.parameters_of_all}.values())
        for p, g in zip(own, torch.autograd.grad(total, own, allow_unused=True), strict=True):
            if g is not None:
                p.grad = g if p.grad is None else p.grad + g

    parameters_of_all: tuple[nn.Parameter, ...] = ()


def balancer(name: str, network: nn.Module) -> Any:
    if name == "product":
        made = Product()
        made.parameters_of_all = tuple(network.parameters())
        return made
    if name.startswith("estimated by "):
        return Estimated(UPGrad(), name.removeprefix("estimated by "))
    if name == "mgda of losses":
        return LossMGDA(normalise="l2")
    return Uncertainty() if name == "uncertainty" else name


def ended(fitted: Any, balance: Any = None) -> dict[str, Any]:
    return {
        "model": fitted.model.state_dict(),
        "balancer": balance.state_dict() if isinstance(balance, Balancer) else {},
        "history": without_time(fitted.history),
        "step": fitted.step,
    }


def on_examples(rank: int, world: int, balance: str, accumulate: int, out: str | None, steps: int = 6) -> dict[str, Any]:
    network = model()
    used = balancer(balance, network)
    fitted = fit(
        network, examples(96), examples(48, seed=1), **{**SETTINGS, "steps": steps}, balance=used, accumulate=accumulate,
        optimizer=sgd, fabric=several(world) if world > 1 else None, out=out,
    )  # fmt: skip
    return ended(fitted, used)


INSERTED: dict[str, Insertable] = {
    "lora": LoRA(rank=2),
    "adapter": Adapter(bottleneck=3),
    "mhr": MHR(skills=3, heads=2),
    "smora": SMoRA(rank=6, active=2, balance=1e-2),
}


def on_an_adapted_network(rank: int, world: int, method: str, balance: str) -> dict[str, Any]:
    """Something inserted into a network that was trained before, and trained with tasks whose labels are missing."""
    network = model(sharing=INSERTED[method])
    for parameter in network.inserted.parameters():  # type: ignore[union-attr]
        nn.init.normal_(parameter, std=0.3)
    fitted = fit(
        network, examples(96), **{**SETTINGS, "conflicts": False}, balance=balance, optimizer=sgd,
        fabric=several(world) if world > 1 else None,
    )  # fmt: skip
    return ended(fitted)


class Stop:
    """Stops every process after the third step."""

    def step(self, step: int, losses: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    def record(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def stopped(rank: int, world: int, out: str) -> dict[str, Any]:
    with contextlib.suppress(KeyboardInterrupt):
        fit(
            model(), examples(96), examples(48, seed=1), **SETTINGS, balance=Uncertainty(), optimizer=sgd,
            fabric=several(world), out=out, listeners=[Stop()],
        )  # fmt: skip
    return {}


def on_mixture(rank: int, world: int, tasks_per_step: str) -> dict[str, Any]:
    data, network = examples(96), model()
    sources = pt.Mixture(
        {name: data.only([name]) for name in data.targets}, batch_size=32, tasks_per_step=tasks_per_step, sampling="uniform"
    )
    fitted = fit(network, sources, steps=8, optimizer=sgd, fabric=several(world) if world > 1 else None)
    return ended(fitted)


def on_loaders_of_other_tasks(rank: int, world: int) -> dict[str, Any]:
    """The first process never sees a label of ``weight``, the second none of ``round``."""
    halves = parted()
    network = model()
    used = Uncertainty()
    batches = [halves[rank][i : i + 16] for i in range(0, 48, 16)] if world > 1 else joined()
    fitted = fit(network, batches, steps=6, optimizer=sgd, balance=used, fabric=several(world) if world > 1 else None)
    return ended(fitted, used)


def parted() -> list[pt.Examples]:
    data = examples(96)
    names = ("colour", "round"), ("colour", "weight")
    return [data.subset(torch.arange(i * 48, i * 48 + 48)).only(names[i]) for i in range(2)]


def joined() -> list[Any]:
    """The batches that the two processes have together, with missing labels where one has none."""
    halves, batches = parted(), []
    for i in range(0, 48, 16):
        (x, a), (y, b) = halves[0][i : i + 16], halves[1][i : i + 16]
        absent = torch.full((16,), torch.nan)
        targets = {
            "colour": torch.cat([a["colour"], b["colour"]]),
            "round": torch.cat([a["round"], absent]),
            "weight": torch.cat([absent, b["weight"]]),
        }
        batches.append((torch.cat([x, y]), targets))
    return batches


class Bad(nn.Module):
    """Has a loss that is NaN at its third step in the second process."""

    def __init__(self, rank: int, counted: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.rank, self.calls = rank, 0
        self.tasks = ("fine", "bad")
        if counted:
            self.label_counts = lambda batch: {name: torch.tensor(4) for name in self.tasks}

    def losses(self, batch: Any) -> dict[str, Tensor]:
        self.calls += 1
        loss = self.weight.square().sum()
        return {"fine": loss, "bad": loss * (math.nan if self.rank == 1 and self.calls == 3 else 1.0)}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield self.weight


def with_nan(rank: int, world: int, counted: bool, out: str) -> dict[str, Any]:
    network = Bad(rank, counted)
    try:
        fit(network, [0] * 6, fabric=several(world), out=out)
    except PolytaskError as error:
        return {"error": str(error), "weight": network.weight.detach()}
    return {}


def in_pieces(rank: int, world: int, out: str | None, listeners: Any = (), **settings: Any) -> dict[str, Any]:
    """Training with the parameters sharded over the processes."""
    made = fabric(devices=world, accelerator="cpu", strategy="fsdp")
    made.launch()
    network, used = model(), Uncertainty()
    chosen: dict[str, Any] = SETTINGS | {"conflicts": False, "balance": used} | settings
    try:
        fitted = fit(
            network, examples(96), examples(48, seed=1), **chosen, optimizer=adam, fabric=made, out=out, listeners=listeners
        )
    except KeyboardInterrupt:
        return {}
    except PolytaskError as error:
        return {"error": str(error)}
    pieces = sum(p.to_local().numel() for p in network.parameters())  # type: ignore[operator]
    return {**ended(fitted, used), "model": checkpoint.whole(network.state_dict()), "pieces": pieces}


def in_pieces_stopped(rank: int, world: int, out: str) -> dict[str, Any]:
    return in_pieces(rank, world, out, [Stop()])


def in_pieces_by_gradients(rank: int, world: int) -> dict[str, Any]:
    return in_pieces(rank, world, None, balance=Product())


def in_pieces_by_representation(rank: int, world: int) -> dict[str, Any]:
    return in_pieces(rank, world, None, balance=Estimated(UPGrad(), "representation"))


def adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2)


if __name__ == "__main__":  # under a real torchrun
    torch.save(on_examples(int(os.environ["RANK"]), 2, "uncertainty", 1, None), f"{sys.argv[1]}/{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()
