"""The claims' experiment: the same updates one task at a time, with all tasks so far, and without a curriculum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polytask.claim import Measurements
from polytask.data import Curriculum, Schedule
from polytask.papers.timescales.curricula import cumulative, single, sliding
from polytask.papers.timescales.damage import ablated, accuracies, on_scans, perturbed, probed, retrained
from polytask.papers.timescales.network import Gated, LeakyRNN, MemoryNetwork
from polytask.papers.timescales.tasks import BitStream, chance, name_of
from polytask.papers.timescales.timescales import network_timescales
from polytask.training import Fitted, fit

WIDTH, HEADS, UPDATES, CHECK, BATCH, TESTS, RATE = 64, 40, 800, 50, 64, 16, 3e-3
"""Neurons, tasks, updates of each network, updates between tests, sequences in a batch, batches of a test, Adam's rate."""
ABLATED, DISTURBED, AGAIN = 3, 0.1, 100
"""Neurons taken out, 5 %; the size of the weights' perturbation; updates of retraining."""
TASKS = [name_of(n) for n in range(2, HEADS + 2)]
CURRICULA: dict[str, Callable[[list[str]], Curriculum]] = {
    "single": single,
    "cumulative": cumulative,
    "sliding": partial(sliding, heads=3),
}


class Solved:
    """A listener of `polytask.fit` that keeps the weights with which each N was first solved: ``states[N]``."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.states: dict[int, dict[str, Any]] = {}

    def step(self, step: int, losses: dict[str, float]) -> None:
        pass

    def record(self, record: dict[str, Any]) -> None:
        progress = record["validation"]["network"]["progress"]
        if progress == int(progress) and int(progress) not in self.states:
            self.states[int(progress)] = deepcopy(self.network.state_dict())

    def close(self) -> None:
        pass

    @property
    def largest(self) -> int:
        """The largest N that was solved, 1 where none was."""
        return max(self.states, default=1)

    def at(self, n: int) -> MemoryNetwork:
        """A copy of the network as it was when it had solved this N, or else as it is."""
        network = deepcopy(self.network)
        if n in self.states:
            network.load_state_dict(self.states[n])
        return network


def train(
    rule: str, curriculum: Curriculum, core: nn.Module, one_head: bool, updates: int, seed: int
) -> tuple[MemoryNetwork, Solved, Fitted]:
    """A network of one run; the weights that solved each N; and what `polytask.fit` says of it."""
    network = MemoryNetwork(core, HEADS, one_head)
    seen = Solved(network)
    stream = BitStream(rule, curriculum, TASKS, BATCH, CHECK, TESTS, seed)
    adam: Any = partial(torch.optim.Adam, lr=RATE)
    fitted = fit(
        network,
        stream,
        stream.held_out,
        steps=updates,
        evaluate_every=CHECK,
        optimizer=adam,
        clip=2.0,
        schedule="constant",
        monitor="network/progress",
        seed=seed,
        listeners=[seen],
    )
    return network, seen, fitted


def measure(seed: int, data: Path, updates: int = UPDATES, width: int = WIDTH) -> Measurements:
    """Of each arm ``"RULE CURRICULUM solved"``, the largest N; and of two curricula on parity what became of the network.

    Damage is done to both networks as they were when they had solved the same N, the largest that both did; accuracies are
    then relative to the intact network's, in percent. ``"old"`` is the accuracy over all earlier N above chance, 1 for all
    right; ``"target accuracy"`` the same at the N that the cumulative curriculum reached. ``"retrained"`` is the accuracy at
    the next N after some updates of the disturbed network, ``"probed"`` that of a new readout alone, both in percent.
    """
    found: dict[str, float] = {}
    runs: dict[str, Solved] = {}
    for rule in ("parity", "dms"):
        for name in CURRICULA if rule == "parity" else ("single", "cumulative"):
            torch.manual_seed(seed)
            core = LeakyRNN(width)
            _, seen, fitted = train(rule, CURRICULA[name](TASKS), core, name == "single", updates, seed)
            found[f"{rule} {name} solved"] = seen.largest
            found |= _taus(f"{rule} {name}", seen, measured=name != "sliding")
            if rule == "parity":
                runs[name] = seen
                found |= {f"parity {name} at {int(r['step'])}": _newest(r) for r in fitted.history}
    for name in ("single", "cumulative"):
        torch.manual_seed(seed)
        _, seen, _ = train("parity", CURRICULA[name](TASKS), Gated(width, "gru"), name == "single", updates, seed)
        found[f"gru {name} solved"] = seen.largest
    target = max(runs["cumulative"].largest, 2)
    torch.manual_seed(seed)
    alone, _, _ = train("parity", Schedule({0: [name_of(target)]}), LeakyRNN(width), False, updates, seed)
    found["target accuracy none"] = _above(alone, target, seed)
    found["target accuracy cumulative"] = _above(runs["cumulative"].at(target), target, seed)
    common = max(min(runs["single"].largest, runs["cumulative"].largest), 2)
    found["common"] = common
    for name in ("single", "cumulative"):
        found |= {f"{name} {what}": value for what, value in _aftermath(runs[name], common, seed).items()}
    return found


def _aftermath(seen: Solved, common: int, seed: int) -> dict[str, float]:
    network = seen.at(common)
    tasks = [name_of(n) for n in range(2, common + 1)]
    newest, generator = tasks[-1], torch.Generator().manual_seed(seed)
    found = {f"old {n}": _above(network, n, seed) for n in range(2, common)}
    result = {"old": sum(found.values()) / max(len(found), 1), **found}
    result["scans"] = sum(on_scans(network, "parity", tasks, min(64, 3 * common), seed).values()) / len(tasks)
    intact = accuracies(network, "parity", [newest], seed=seed)[newest]

    def relative(damaged: MemoryNetwork) -> float:
        return 100 * accuracies(damaged, "parity", [newest], seed=seed)[newest] / intact

    width = network.readout.in_features
    gone = [torch.randperm(width, generator=generator)[:ABLATED].tolist() for _ in range(10)]
    result["ablated"] = sum(relative(ablated(network, neurons)) for neurons in gone) / len(gone)
    noisy = [perturbed(network, DISTURBED, generator) for _ in range(10)]
    result["perturbed"] = sum(map(relative, noisy)) / len(noisy)
    result["retrained"] = 100 * retrained(noisy[0], "parity", common + 1, AGAIN, BATCH, RATE, seed)[1]
    result["probed"] = 100 * probed(network, "parity", common + 1, seed=seed)
    return result


def _taus(name: str, seen: Solved, measured: bool) -> dict[str, float]:
    """Means over neurons, as each N was solved, of trained constants; and of the network's at the first N and the last."""
    found, first, last = {}, min(seen.states, default=0), seen.largest
    for n in seen.states:
        core = seen.at(n).core
        assert isinstance(core, LeakyRNN)
        found[f"{name} tau {n}"] = float(core.tau.detach().mean())
        if measured and n in (first, last):
            found[f"{name} network tau {n}"] = float(network_timescales(core).nanmean())
    for what in ("tau", "network tau") if measured else ("tau",):
        found[f"{name} first {what}"] = found.get(f"{name} {what} {first}", 1.0)
        found[f"{name} last {what}"] = found.get(f"{name} {what} {last}", 1.0)
    return found


def _newest(record: Mapping[str, Any]) -> float:
    return max(int(task[1:]) for task in record["validation"] if task != "network")


def _above(network: MemoryNetwork, n: int, seed: int) -> float:
    """The accuracy above chance, 1 for all right."""
    luck = chance("parity", n)
    return (accuracies(network, "parity", [name_of(n)], seed=seed)[name_of(n)] - luck) / (1 - luck)
