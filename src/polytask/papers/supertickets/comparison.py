"""The claims' arms: two in one against search, then prune; tickets moved to another task; with and without coming back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polytask.claim import Measurements
from polytask.papers._idx import MNIST, idx_files
from polytask.papers.supertickets.digits import (
    INTERVALS,
    SEARCH,
    Split,
    accuracy,
    dense,
    fitted,
    load,
    losses,
    searched,
    size,
    supernet,
)
from polytask.papers.supertickets.training import Drawn
from polytask.shrink import (
    Masks,
    Ticket,
    grasp_masks,
    magnitude_masks,
    maskable,
    random_masks,
    shuffled,
    snip_masks,
    synflow_masks,
)

FILES = MNIST + idx_files("fashion_mnist", "train600", "test300")
TRAIN, VALIDATION, TEST = 4000, 1000, 2000
SPARSITIES, MAIN = (0.5, 0.7, 0.9), 0.9
"""Shares of weights that are pruned, and the one at which everything is compared."""


def measure(seed: int, data: Path) -> Measurements:
    """Test accuracies in percent, ``"ARM SPARSITY"``, of arms that took the same steps and have the same operations.

    ``supertickets`` search and prune in one run. ``one-shot`` searches for as long and prunes the largest magnitudes in the
    end; ``retrained`` searches for half of the steps, prunes, and trains on with its masks for the other half, and so do
    ``random``, ``snip``, ``grasp`` and ``synflow`` by their scores; ``best`` is the one of these and of ``retrained`` that
    does best on validation data. ``dense`` is a plain network of as many parameters. ``frozen`` and ``reset`` are
    ``supertickets`` whose pruned weights never come back, and whose weights all take part between tickets.
    On clothes: ``moved`` trains MNIST's ticket with a new head, its masks fixed, ``shuffled`` the same stored weights with
    random masks of the same share in each layer, ``own`` a ticket found on the clothes themselves.
    """
    whole, test = load(data, "mnist", "train10k"), load(data, "mnist", "t10k")[:TEST]
    order = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(seed))
    train, validation = whole[order[:TRAIN]], whole[order[TRAIN : TRAIN + VALIDATION]]
    clothes, unseen = load(data, "fashion_mnist", "train600"), load(data, "fashion_mnist", "test300")
    torch.manual_seed(seed)
    start = supernet()
    two, found = two_in_one_arms(start, train, test, seed)
    ticket, stored = found
    return {
        **two,
        **one_after_the_other(start, train, validation, test, seed),
        **dense_arms(two, train, test, seed),
        **transfer(start, ticket, stored, clothes, unseen, seed),
    }


def two_in_one_arms(
    start: nn.Module, train: Split, test: Split, seed: int
) -> tuple[dict[str, float], tuple[Drawn, nn.Module]]:
    """SuperTickets at each sparsity and their ablations at one; the ticket to move, and the network that it is from."""
    measured: dict[str, float] = {}
    kept: dict[str, tuple[Drawn, nn.Module]] = {}
    runs = [("supertickets", "changing", sparsity) for sparsity in SPARSITIES]
    runs += [(connectivity, connectivity, MAIN) for connectivity in ("frozen", "reset")]
    for arm, connectivity, sparsity in runs:
        network = copy.deepcopy(start)
        times: dict[str, Any] = {"interval": 1, "final": sparsity, "connectivity": connectivity, "reuse": True}
        drawn = fitted(network, train, INTERVALS, seed, **searched(INTERVALS), **times)
        last, name = drawn[-1], f"{arm} {sparsity}"
        kept[name] = last, network
        measured[name] = accuracy(built(start, last.ticket), train, test)
        measured[f"{name} macs"] = last.macs
        measured[f"{name} weights"] = parameters(last.ticket)
        measured[f"{name} back"] = 100 * came_back(drawn)
    return measured, kept[f"supertickets {MAIN}"]


def one_after_the_other(start: nn.Module, train: Split, validation: Split, test: Split, seed: int) -> dict[str, float]:
    """Search, then prune, by magnitude and by other scores, with and without training on."""
    measured: dict[str, float] = {}
    long, short = copy.deepcopy(start), copy.deepcopy(start)
    fitted(long, train, INTERVALS, seed, **searched(INTERVALS))
    drawn = fitted(short, train, SEARCH, seed, **searched(SEARCH))
    measured["retrained macs"] = drawn[-1].macs
    batches = [train[i : i + 256] for i in (0, 256)]

    def loss(network: nn.Module, batch: Split) -> torch.Tensor:
        return losses(network, batch)["class"]

    others: dict[str, Callable[[], Masks]] = {
        "snip": lambda: snip_masks(short, loss, batches, MAIN),
        "grasp": lambda: grasp_masks(short, loss, batches, MAIN),
        "synflow": lambda: synflow_masks(short, train.images[:1], sparsity=MAIN, rounds=20),
    }
    arms = {f"retrained {sparsity}": magnitude_masks(short, sparsity) for sparsity in SPARSITIES}
    arms |= {f"{name} {MAIN}": make() for name, make in others.items()}
    arms[f"random {MAIN}"] = random_masks(short, MAIN)
    validated = {}
    for name, masks in arms.items():
        network = copy.deepcopy(short)
        fitted(network, train, INTERVALS - SEARCH, seed + 500, masks=masks)
        measured[name] = accuracy(network, train, test)
        validated[name] = accuracy(network, train, validation)
    best = max((name for name in validated if name.endswith(f" {MAIN}")), key=lambda name: validated[name])
    measured[f"best {MAIN}"] = measured[best]
    for sparsity in SPARSITIES:
        network = copy.deepcopy(long)
        magnitude_masks(network, sparsity).apply(network)
        measured[f"one-shot {sparsity}"] = accuracy(network, train, test)
    return measured


def dense_arms(two: dict[str, float], train: Split, test: Split, seed: int) -> dict[str, float]:
    """Plain networks of as many parameters as the tickets have left."""
    measured = {}
    for sparsity in SPARSITIES:
        torch.manual_seed(seed)
        network = dense(int(two[f"supertickets {sparsity} weights"]))
        fitted(network, train, INTERVALS, seed)
        measured[f"dense {sparsity}"] = accuracy(network, train, test)
        measured[f"dense {sparsity} weights"] = size(network)
    return measured


def transfer(
    start: nn.Module, moved: Drawn, stored: nn.Module, clothes: Split, unseen: Split, seed: int
) -> dict[str, float]:
    """MNIST's ticket on clothes, beside random masks of its weights, and a ticket found on the clothes."""
    network = copy.deepcopy(start)
    times: dict[str, Any] = {"interval": 1, "final": MAIN, "reuse": True}
    own = fitted(network, clothes, INTERVALS, seed, **searched(INTERVALS), **times)[-1].ticket
    torch.manual_seed(seed)
    random = Ticket.of(stored, shuffled(moved.ticket.masks))
    measured = {}
    for name, ticket in {"moved": moved.ticket, "shuffled": random, "own": own}.items():
        torch.manual_seed(seed + 1000)
        network = supernet()
        masks = ticket.draw(network, part="encoder")
        fitted(network, clothes, INTERVALS - SEARCH, seed + 500, masks=masks)
        measured[name] = accuracy(network, clothes, unseen)
    return measured


def built(start: nn.Module, ticket: Ticket) -> nn.Module:
    """The ticket's network."""
    network = copy.deepcopy(start)
    ticket.draw(network)
    return network


def parameters(ticket: Ticket) -> int:
    """How many parameters a ticket has left, those included that are not masked."""
    network = supernet()
    ticket.draw(network)
    masked = sum(weight.numel() for weight in maskable(network).values())
    return size(network) - masked + sum(int(mask.sum()) for mask in ticket.masks.keep.values())


def came_back(drawn: list[Drawn]) -> float:
    """The share of the last ticket's weights that an earlier one, of the same architecture, had left out."""
    *earlier, last = [found.ticket.masks for found in drawn if found.macs == drawn[-1].macs]
    back = total = 0
    for name, mask in last.keep.items():
        left_out = torch.stack([~masks.keep[name] for masks in earlier]).any(0)
        back, total = back + int((mask & left_out).sum()), total + int(mask.sum())
    return back / total
