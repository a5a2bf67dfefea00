"""Theory and control: sweeps of Monte Carlo on multitasking Hebbian networks, beside plain loops over spins; and the heads
of many value functions as one layer, beside a loop over tasks.

    python -m benchmarks.control [--quick]

regenerates ``benchmarks/results/control.json`` and ``control.md``. What is compared runs in turn, again and again; a ratio
is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks._machine import machine
from benchmarks._page import Row, page
from benchmarks._timing import ratio, seconds

from polytask.files import write_json, write_text
from polytask.nn.heads import HeadBank
from polytask.papers.multitask_hebbian import diluted_patterns, heat_bath, hierarchical_state, magnetisations, stored

RESULTS = Path(__file__).parent / "results"
DILUTION, BETA, CHAINS, TURN = 0.2, 5.0, 100, 10
TASKS, ACTIONS, EXAMPLES, GAMMA = 100, 18, 256, 0.99

Array = np.ndarray[Any, np.dtype[np.float64]]
Loop = Callable[[Array, Array], Array]


def by_couplings(factors: Array) -> Loop:
    """A sweep in place, spin by spin: the field is a row of the couplings times the state. Odds below which a spin is 1."""
    couplings = factors.T @ factors / factors.shape[1]
    np.fill_diagonal(couplings, 0.0)

    def sweep(state: Array, drawn: Array) -> Array:
        for i in range(len(state)):
            odds = 0.5 * (1 + np.tanh(BETA * (couplings[i] @ state)))
            state[i] = 1.0 if drawn[i] < odds else -1.0
        return state

    return sweep


def by_factors(factors: Array) -> Loop:
    """The same from the magnetisations, which a spin that changes updates: a spin's work does not grow with their number."""
    columns = np.ascontiguousarray(factors.T)
    own = np.square(columns).sum(1) / len(columns)

    def sweep(state: Array, drawn: Array) -> Array:
        m = state @ columns / len(state)
        for i in range(len(state)):
            odds = 0.5 * (1 + np.tanh(BETA * (columns[i] @ m - own[i] * state[i])))
            new = 1.0 if drawn[i] < odds else -1.0
            if new != state[i]:
                m += (new - state[i]) / len(state) * columns[i]
                state[i] = new
        return state

    return sweep


def sweeps(rounds: int, sites: int, patterns: int = 10) -> dict[str, Any]:
    """Seconds of a sweep each way, from the same state; and whether the same drawn numbers give the same states."""
    generator = torch.Generator().manual_seed(0)
    factors = diluted_patterns(patterns, sites, DILUTION, generator)
    sweeper = stored(factors).sweeper()
    state = next(islice(heat_bath(sweeper, hierarchical_state(factors, generator), BETA, generator), 10, None))
    loops = {"couplings": by_couplings(factors.double().numpy()), "factors": by_factors(factors.double().numpy())}
    rng, found = np.random.default_rng(0), {}

    def ours() -> None:
        next(islice(heat_bath(sweeper, state, BETA, generator), TURN - 1, None))

    for name, loop in loops.items():
        pairs = [
            (seconds(ours) / TURN, seconds(lambda loop=loop: loop(state.double().numpy().copy(), rng.random(sites))))
            for _ in range(rounds + 1)
        ][1:]
        found[name] = {
            "ratio": statistics.median(theirs / mine for mine, theirs in pairs),
            "ours": statistics.median(mine for mine, _ in pairs),
            "theirs": statistics.median(theirs for _, theirs in pairs),
        }
    chains = state.expand(CHAINS, -1).contiguous()
    many = [seconds(lambda: next(heat_bath(sweeper, chains, BETA, generator))) / CHAINS for _ in range(3)]
    return {**found, "chains": statistics.median(many), **agreement(factors, state, loops, rounds)}


def agreement(factors: torch.Tensor, state: torch.Tensor, loops: dict[str, Loop], rounds: int) -> dict[str, Any]:
    """Whether sweeps with the same drawn numbers end in the same states, and the mean magnetisations with others."""
    sweeper, same = stored(factors).sweeper(), True
    mine, theirs = state, state.double().numpy().copy()
    for seed in range(rounds):
        chain = heat_bath(sweeper, mine, BETA, torch.Generator().manual_seed(seed))
        drawn = torch.rand(state.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double).numpy()
        mine, theirs = next(chain), loops["factors"](theirs, drawn)
        same &= bool((mine.numpy() == theirs).all())
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    chain = islice(heat_bath(sweeper, state, BETA, generator), 2 * rounds)
    means = {"ours": torch.stack([magnetisations(factors, s) for s in chain]).mean(0).tolist()}
    looped, plain = [], state.double().numpy().copy()
    for _ in range(2 * rounds):
        plain = loops["factors"](plain, rng.random(len(plain)))
        looped.append(magnetisations(factors, torch.from_numpy(plain.copy())))
    means["theirs"] = torch.stack(looped).mean(0).tolist()
    differences = [abs(a - b) for a, b in zip(means["ours"], means["theirs"], strict=True)]
    return {"same": same, "magnetisations": means, "difference": max(differences)}


def heads(rounds: int, width: int) -> dict[str, float]:
    """Seconds of a step of temporal differences, forward and backward, by one bank of heads and by a loop over tasks."""
    generator = torch.Generator().manual_seed(0)
    bank, target = HeadBank(width, TASKS, ACTIONS), HeadBank(width, TASKS, ACTIONS)
    loops = [torch.nn.ModuleList(torch.nn.Linear(width, ACTIONS) for _ in range(TASKS)) for _ in range(2)]
    features, ahead = torch.randn(2, EXAMPLES, width, generator=generator)
    features.requires_grad_()
    action = torch.randint(ACTIONS, (EXAMPLES,), generator=generator)
    cumulants = (torch.rand(EXAMPLES, TASKS, generator=generator) < 0.01).float()
    with torch.no_grad():  # the same weights both ways
        for whole, each in zip((bank, target), loops, strict=True):
            for i, head in enumerate(each):
                head.weight.copy_(whole.weight[:, i])
                head.bias.copy_(whole.bias[:, i])

    def ours() -> float:
        with torch.no_grad():
            wanted = cumulants + GAMMA * target.mean(ahead)
        loss = 0.5 * (wanted - bank.taken(features, action)).square().mean()
        loss.backward()
        return loss.item()

    def theirs() -> float:
        losses = []
        for i, (head, slow) in enumerate(zip(*loops, strict=True)):
            with torch.no_grad():
                wanted = cumulants[:, i] + GAMMA * slow(ahead).mean(1)
            found = head(features).gather(1, action[:, None])[:, 0]
            losses.append(0.5 * (wanted - found).square().mean())
        loss = torch.stack(losses).mean()
        loss.backward()
        return loss.item()

    return {**ratio(ours, theirs, rounds), "difference": abs(ours() - theirs()) / theirs()}


def rows(results: dict[str, Any]) -> list[Row]:
    each = results["sweeps"]
    plain, factors, bank = each["couplings"]["ratio"], each["factors"]["ratio"], results["heads"]["ratio"]
    return [
        ("a sweep, times faster than numpy spin by spin, rows of couplings", f"{plain:.0f} x", "20 x", plain >= 20),
        ("the same, spin by spin by magnetisations", f"{factors:.0f} x", "20 x", factors >= 20),
        ("the same states where the same numbers are drawn", "yes" if each["same"] else "no", "yes", each["same"]),
        ("mean magnetisations with other numbers differ by at most", f"{each['difference']:.4f}", "", None),
        ("milliseconds of a sweep", f"{1000 * each['factors']['ours']:.2f}", "", None),
        (f"of each of {CHAINS} chains at once", f"{1000 * each['chains']:.2f}", "", None),
        (f"a step of {TASKS} heads x {ACTIONS} actions against a loop", f"{bank:.3f} x", "0.1 x", bank <= 0.1),
        ("milliseconds of the step", f"{1000 * results['heads']['ours']:.1f}", "", None),
    ]


def written(about: dict[str, Any], results: dict[str, Any]) -> str:
    words = [
        f"Regenerated by `python -m benchmarks.control`. {TURN} sweeps, and one of a loop, run in turn; ratios are",
        "medians over the rounds, drawing random numbers included. A network of",
        f"{results['sites']:,} spins and 10 patterns, a fifth of each blank, at the temperature 0.2, after ten sweeps.",
    ]
    words += [
        f"Heads: features of width {results['width']:,} of {EXAMPLES} transitions, all tasks' targets and losses, and",
        "gradients of heads and features.",
    ]
    return page("Theory and control: Monte Carlo, and values", about, words, rows(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds on a smaller network, nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    about = machine()
    sites = 1000 if quick else 5000
    width = 512 if quick else 4096
    results: dict[str, Any] = {"sites": sites, "sweeps": sweeps(5 if quick else 31, sites), "width": width}
    results["heads"] = heads(5 if quick else 11, width)
    print(json.dumps(results, indent=1))
    print(written(about, results))
    if not quick:
        write_json(RESULTS / "control.json", {"machine": about, **results})
        write_text(RESULTS / "control.md", written(about, results))


if __name__ == "__main__":
    main()
