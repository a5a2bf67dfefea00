"""Balance: polytask beside torchjd, LibMTL and the plain sum of the losses, in CPU time and memory.

    python -m benchmarks.balance [steps] [memory] [solvers] [losses] [flat] [--quick]

regenerates ``benchmarks/results/balance.json`` and ``balance.md`` when all parts are run. LibMTL is measured where it is
installed, or its wheel is in PYTHONPATH.

- steps: one step with UPGrad, which is a Gramian weighting, beside the plain sum of the losses and beside peers.
- memory: the most that one such step adds, each kind of step in a process of its own.
- solvers: weights from a Gramian.
- losses: a training step of each loss weighting.
- flat: a step of flat regions, beside the passes that it cannot do without.

One thread; figures are CPU time, medians of calls in turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from benchmarks._machine import machine, resident, sentence
from benchmarks._steps import STEPS, TORCHJD, Problem, work
from torch import Tensor

from polytask.balance import MGDA, Balancer, GramianWeighting, LossWeighting, balancers
from polytask.balance.flat import FlatRegions
from polytask.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"

Row: TypeAlias = dict[str, Any]
"""One line of a table: cells by column."""

Call: TypeAlias = Callable[[], object]

ROUNDS = 7
TURN = 0.1
"""Seconds of calls in one turn."""
SPENT = 1.5
"""Seconds after which a function gets no more turns."""
COLD = 3.0
"""Seconds of a first call above which it counts, as what warms up matters little."""

# Time


def cpu(function: Call, calls: int = 1) -> float:
    """CPU seconds of a call."""
    started = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - started) / calls


def in_turns(functions: dict[str, Call], rounds: int = ROUNDS) -> dict[str, Any]:
    """CPU seconds of a call of each function, the median of calls in turns; or how it failed."""
    first: dict[str, float] = {}
    found: dict[str, Any] = {}
    for name, function in functions.items():
        try:
            first[name] = cpu(function)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    taken: dict[str, list[float]] = {name: [seconds] if seconds > COLD else [] for name, seconds in first.items()}
    for i in range(rounds):
        names = list(first)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if sum(taken[name]) < SPENT:
                taken[name].append(cpu(functions[name], max(1, int(TURN / first[name]))))
    return found | {name: statistics.median(values) for name, values in taken.items()}


def judged(value: float | None, bar: float | None) -> Row:
    if value is None or bar is None:
        return {"bar": bar, "met": None}
    return {"bar": bar, "met": "yes" if value <= bar else "no"}


# Steps

CASES = {
    "MLP 1M": (2, 8, 32),
    "MLP 20M": (2, 8, 32),
    "ResNet 1M": (2, 8, 32),
    "ResNet 11M": (2, 8),
    "transformer 1M": (2, 8, 32),
    "transformer 20M": (2, 8, 32),
}
PLAIN_BARS = {("MLP 20M", 8): 2.5, ("MLP 20M", 32): 5.5, ("MLP 1M", 8): 4.0, ("MLP 1M", 32): 10.0}
PEER_BAR = 0.40
SLOW, SLOWEST = 1.0, 2.0
"""Seconds after which a peer that is not near the fastest, and one that is not the fastest, is left out for more tasks."""


def steps(quick: bool) -> list[Row]:
    rows, rate = [], best_rate()
    for network, counts in {"tiny": (2,)}.items() if quick else CASES.items():
        left_out: set[str] = set()
        for count in counts:
            row = step(network, count, left_out, rate)
            rows.append(row)
            print(
                f"  {network}, K = {count}: {row['ratio']:.2f} of the plain step, {row['peer_ratio']:.2f} of torchjd",
                flush=True,
            )
            left_out |= too_slow(row)
    return rows


def best_rate() -> float:
    """FLOPs in a second of this processor's matrix product, at its best."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(cpu(partial(torch.mm, a, b)) for _ in range(10))


def step(network: str, count: int, left_out: set[str], rate: float) -> Row:
    names = [name for name in STEPS if name not in left_out and (is_mlp(network) or not name.startswith("LibMTL"))]
    found = in_turns({name: STEPS[name](Problem(network, count)) for name in names})
    seconds = {name: value for name, value in found.items() if isinstance(value, float)}
    fastest = min((name for name in TORCHJD if name in seconds), key=seconds.__getitem__)
    flops = work(network, count)
    return {
        "network": network,
        "parameters": Problem(network, 0).size,
        "K": count,
        "found": found,
        "fastest": fastest,
        "ratio": seconds["polytask"] / seconds["plain"],
        "peer_ratio": seconds["polytask"] / seconds[fastest],
        "limit": flops["least"] / flops["plain"],
        "fast_limit": flops["least"] / rate / seconds["plain"],
        "peer_limit": flops["least"] / flops["every"],
    }


def is_mlp(network: str) -> bool:
    return network.startswith(("MLP", "tiny"))


def too_slow(row: Row) -> set[str]:
    fastest = row["found"][row["fastest"]]
    seconds = {name: value for name, value in row["found"].items() if isinstance(value, float)}
    return {
        name
        for name, value in seconds.items()
        if name not in ("plain", "polytask", row["fastest"]) and (value > SLOWEST or value > max(SLOW, 1.15 * fastest))
    }


def beside_plain(rows: Sequence[Row]) -> list[Row]:
    return [
        {
            "network": row["network"],
            "parameters, M": row["parameters"] / 1e6,
            "K": row["K"],
            "plain sum, ms": row["found"]["plain"] * 1e3,
            "polytask, ms": row["found"]["polytask"] * 1e3,
            "ratio": row["ratio"],
            **judged(row["ratio"], PLAIN_BARS.get((row["network"], row["K"]))),
            "limit": row["limit"],
            "limit reached": f"{row['limit'] / row['ratio']:.0%}",
            "limit at the best rate": row["fast_limit"],
        }
        for row in rows
    ]


def beside_peers(rows: Sequence[Row]) -> list[Row]:
    peers = [name for name in STEPS if name not in ("plain", "polytask")]
    table = []
    for row in rows:
        found = {name: row["found"].get(name) for name in peers}
        table.append(
            {
                "network": row["network"],
                "K": row["K"],
                **{f"{name}, ms": "fails" if isinstance(v, str) else scaled(v, 1e3) or "-" for name, v in found.items()},
                "torchjd's fastest": row["fastest"].removeprefix("torchjd "),
                "polytask / it": row["peer_ratio"],
                **judged(row["peer_ratio"], None if is_mlp(row["network"]) else PEER_BAR),
                "limit / it": row["peer_limit"],
            }
        )
    return table


def scaled(value: Any, factor: float) -> Any:
    return value * factor if isinstance(value, float) else value


def failures(rows: Sequence[Row]) -> list[str]:
    """How steps failed: each error with where it occurred."""
    where: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, value in row["found"].items():
            if isinstance(value, str):
                where.setdefault((name, value), []).append(f"{row['network']} K = {row['K']}")
    return [f"{name} fails on {', '.join(places)}: `{error}`" for (name, error), places in where.items()]


# Memory

MEMORY_BAR = 300.0
MEASURED = (
    "plain",
    "polytask",
    "torchjd autogram.Engine",
    "torchjd mtl_backward, vmap",
    "torchjd mtl_backward",
    "stacking",
)


def memory(quick: bool) -> list[Row]:
    network, count = ("tiny", 2) if quick else ("MLP 20M", 32)
    rows = []
    for name in MEASURED:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.balance", "--peak", name, network, str(count)]
        child = subprocess.run(command, capture_output=True, text=True)
        lines = child.stdout.splitlines() if child.returncode == 0 else child.stderr.strip().splitlines()
        peak = float(lines[-1]) if child.returncode == 0 else None
        rows.append(
            {
                "step": name,
                "peak extra memory, MB": f"fails: {lines[-1]}" if peak is None else peak,
                **judged(peak, MEMORY_BAR if name == "polytask" else None),
            }
        )
        print(f"  {name}: {rows[-1]['peak extra memory, MB']}", flush=True)
    return rows


def peak(name: str, network: str, count: int) -> float:
    """The most megabytes that a first step adds to this process: its gradients, and all that it needs on the way."""
    for _ in range(2):  # what libraries load and keep is not counted
        STEPS[name](Problem("tiny", 2))()
    function = STEPS[name](Problem(network, count))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is now what is there
    before = resident("VmHWM")
    function()
    return (resident("VmHWM") - before) / 1e6


# Solvers

SOLVER_BARS = {8: 0.5, 32: 1.0, 128: 10.0}
LONG = 2.0
"""Seconds after which a peer is not called again."""


def solvers(quick: bool) -> dict[str, list[Row]]:
    times, exact = [], []
    for count in (2,) if quick else SOLVER_BARS:
        jacobians = [conflicting(count, seed) for seed in range(3 if quick else 21)]
        gramians = [jacobian @ jacobian.T for jacobian in jacobians]
        tasks = [f"task{k}" for k in range(count)]
        losses = dict.fromkeys(tasks, 1.0)
        for name, make in balancers.items():
            balancer = make()
            if not isinstance(balancer, GramianWeighting):
                continue
            balancer.prepare(tasks)
            ours = [cpu(partial(balancer.weigh, gramian, losses)) for gramian in gramians]
            theirs = peer_times(name, count, jacobians)
            milliseconds = statistics.median(ours) * 1e3
            times.append(
                {
                    "method": name,
                    "K": count,
                    "polytask, ms": milliseconds,
                    "torchjd, ms": scaled(theirs, 1e3),
                    "ratio": milliseconds / theirs / 1e3 if isinstance(theirs, float) else None,
                    **judged(milliseconds, SOLVER_BARS.get(count)),
                }
            )
        exact.append(exactness(gramians, losses))
    return {"times": sorted(times, key=lambda row: row["method"]), "exactness": exact}


def conflicting(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2 * count, generator=generator, dtype=torch.float64)


def torchjd_weights(name: str, count: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """torchjd's function of Jacobian and Gramian for a method of polytask."""
    from torchjd import aggregation as A

    if name == "nash":
        aggregator = A.NashMTL(count, max_norm=0.0, update_weights_every=1, optim_niter=20)
        return lambda jacobian, gramian: aggregator(jacobian)
    makers: dict[str, Callable[[], Any]] = {
        "aligned": A.AlignedMTLWeighting,
        "cagrad": lambda: A.CAGradWeighting(0.4),
        "dualproj": A.DualProjWeighting,
        "fairgrad": lambda: A.FairGradWeighting(2.0),
        "gradvac": A.GradVacWeighting,
        "imtl_g": A.IMTLGWeighting,
        "krum": lambda: A.KrumWeighting(1),
        "mgda": A.MGDAWeighting,
        "modo": A.MoDoWeighting,
        "pcgrad": A.PCGradWeighting,
        "sdmgrad": lambda: A.SDMGradWeighting(0.3),
        "upgrad": A.UPGradWeighting,
    }
    if name not in makers:
        return None
    made = makers[name]()
    return lambda jacobian, gramian: made(gramian)


def peer_times(name: str, count: int, jacobians: Sequence[Tensor]) -> float | str | None:
    """The median, of as many calls as take `LONG` or a little more."""
    function = torchjd_weights(name, count)
    if function is None:
        return None
    taken: list[float] = []
    try:
        for jacobian in jacobians:
            gramian = jacobian @ jacobian.T
            taken.append(cpu(partial(function, jacobian, gramian)))
            if sum(taken) > LONG:
                break
    except Exception as error:
        return f"fails: {type(error).__name__}"
    return statistics.median(taken)


def exactness(gramians: Sequence[Tensor], losses: dict[str, float]) -> Row:
    """Squared norms of MGDA's combinations over the least there is, in the worst of ``gramians``.

    ``2 min_k (G w)_k - w^T G w`` of any ``w`` on the simplex bounds the least squared norm from below; polytask's is taken.
    """
    mgda = MGDA()
    mgda.prepare(list(losses))
    theirs = torchjd_weights("mgda", len(losses))
    assert theirs is not None
    worst = {"polytask": 0.0, "torchjd": 0.0}
    for gramian in gramians:
        found = {"polytask": mgda.weigh(gramian, losses), "torchjd": theirs(gramian, gramian)}
        w = found["polytask"]
        least = float(2 * (gramian @ w).min() - w @ gramian @ w)
        for name, w in found.items():
            worst[name] = max(worst[name], float(w @ gramian @ w) / least)
    return {
        "K": len(losses),
        "polytask, squared norm / least": worst["polytask"],
        "torchjd, squared norm / least": worst["torchjd"],
        **judged(worst["polytask"], 1.001),
    }


# Loss weightings


def losses(quick: bool) -> list[Row]:
    network, count = ("tiny", 2) if quick else ("MLP 1M", 8)
    names = [name for name, make in balancers.items() if isinstance(make(), LossWeighting)]
    functions: dict[str, Call] = {"plain": training_step(network, count, None)}
    functions |= {name: training_step(network, count, name) for name in names}
    found = in_turns(functions, 1 if quick else 25)
    rows = []
    for name in names:
        value = found[name]
        ratio = value / found["plain"] if isinstance(value, float) else None
        rows.append(
            {
                "weighting": name,
                "step, ms": scaled(value, 1e3),
                "plain sum, ms": found["plain"] * 1e3,
                "ratio": ratio,
                **judged(ratio, 1.03),
            }
        )
    return rows


def training_step(network: str, count: int, name: str | None) -> Call:
    """A step as `fit` makes it, with AdamW; ``None`` is the plain sum."""
    problem = Problem(network, count)
    parameters = [*problem.shared, *problem.heads.parameters()]
    balancer = None if name is None else balancers[name]()
    if balancer is not None:
        balancer.prepare(list(problem.heads))
        parameters += list(balancer.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        if balancer is None:
            torch.stack(list(problem.losses().values())).sum().backward()
        else:
            balancer.step([problem.losses], problem.shared, Tensor.backward)
        optimizer.step()

    return step


# Flat regions


def flat(quick: bool) -> list[Row]:
    rows = []
    for network, count in [("tiny", 2)] if quick else [("MLP 1M", 2), ("MLP 1M", 8), ("ResNet 1M", 2), ("ResNet 1M", 8)]:
        functions: dict[str, Call] = {"passes": necessary_passes(Problem(network, count))}
        for inner in ("equal", "cagrad"):
            functions[inner] = flat_step(Problem(network, count), FlatRegions(inner))
        found = in_turns(functions)
        for inner in ("equal", "cagrad"):
            ratio = found[inner] / found["passes"]
            rows.append(
                {
                    "network": network,
                    "K": count,
                    "inner": inner,
                    "passes, ms": found["passes"] * 1e3,
                    "flat regions, ms": found[inner] * 1e3,
                    "ratio": ratio,
                    **judged(ratio, 1.1),
                }
            )
    return rows


def flat_step(problem: Problem, balancer: Balancer) -> Call:
    balancer.prepare(list(problem.heads))

    def step() -> None:
        problem.clear()
        balancer.step([problem.losses], problem.shared, Tensor.backward)

    return step


def necessary_passes(problem: Problem, rho: float = 0.05) -> Call:
    """A forward and K backward passes, and for each task a move along its gradient, a forward and a backward pass."""

    def step() -> None:
        problem.clear()
        for name, loss in problem.losses().items():
            parameters = [*problem.shared, *problem.heads[name].parameters()]
            grads = torch.autograd.grad(loss, parameters, retain_graph=True)
            norm = torch.stack([grad.norm() for grad in grads]).norm()
            before = [p.detach().clone() for p in parameters]
            for p, grad in zip(parameters, grads, strict=True):
                p.data.add_(grad, alpha=rho / float(norm))
            problem.loss(name, problem.encoder(problem.inputs)).backward()
            for p, old in zip(parameters, before, strict=True):
                p.data.copy_(old)

    return step


# The page


def table(rows: Sequence[Row]) -> str:
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cell(row[column]) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else f"**{value}**" if value == "no" else str(value)


def page(result: dict[str, Any]) -> str:
    sections = [section for name, found in result["parts"].items() for section in PAGES[name](found)]
    lines = [
        "# Balance beside its peers",
        "",
        f"{sentence(result['machine'])}. One run of {result['minutes']:.0f} minutes.",
        "",
    ]
    lines += [f"CPU time, medians of up to {ROUNDS} turns, unless it says otherwise. Bars:", ""]
    lines += [line for title, _, rows in sections for line in bars(title, rows)]
    for title, text, rows in sections:
        lines += ["", f"## {title}", "", text, "", table(rows)]
    return "\n".join(lines) + "\n"


def bars(title: str, rows: Sequence[Row]) -> list[str]:
    """How many bars of a table are met, and which are not."""
    under = [row for row in rows if row["met"] is not None]
    names = ("network", "method", "weighting", "inner", "step", "K")
    missed = [" ".join(f"{row[name]}" for name in names if name in row) for row in under if row["met"] == "no"]
    if not under:
        return []
    return [
        f"- {title}: {len(under) - len(missed)} of {len(under)} met" + (f"; missed: {', '.join(missed)}." if missed else ".")
    ]


Section: TypeAlias = tuple[str, str, list[Row]]
"""A title, a paragraph and a table."""


def steps_page(rows: list[Row]) -> list[Section]:
    limit = (
        "The limit counts FLOPs: a forward pass, for each task a pass back through the layers that makes no gradient of a "
        "weight, each layer's inner products in the cheaper order, and a whole backward pass; or, where that is less, the "
        "gradients of all tasks and their products. It is a multiple of the plain step's FLOPs; reached is limit / ratio, "
        "more than 100 % where larger matrices run faster. The limit at the best rate is the time of those FLOPs at the "
        "speed of a large matrix product, as a multiple of the plain step's time."
    )
    beside = "A linear head and a squared error for each of K tasks; the step is UPGrad's, its solver included. " + limit
    peers = [
        "All with UPGrad, but for LibMTL, whose own weightings are taken. `mtl_backward` and `backward` go task by task "
        "(`parallel_chunk_size=1`), or all tasks at once (vmap), with `optimize_gramian_computation=True`; stacking is one "
        "call of autograd for each task, into one matrix. A dash: slow with fewer tasks (more than "
        f"{SLOW:g} s and 1.15 times torchjd's fastest, or more than {SLOWEST:g} s), or, for LibMTL, not an MLP. The last "
        "column is the limit over the FLOPs of the gradients of all tasks and their products, which torchjd computes.",
        *failures(rows),
    ]
    return [
        ("One step beside the plain sum of losses", beside, beside_plain(rows)),
        ("One step beside peers", "\n\n".join(peers), beside_peers(rows)),
    ]


def memory_page(rows: list[Row]) -> list[Section]:
    text = "What a first step adds to the most that its process has resident: MLP 20M, K = 32, batch 64, gradients included."
    return [("Memory", text, rows)]


def solvers_page(found: dict[str, list[Row]]) -> list[Section]:
    text = (
        "Weights from the Gramian of a random `(K, 2 K)` matrix, medians over 21 of them (of torchjd as many as take "
        f"{LONG:g} s)."
    )
    exact = "Squared norm of MGDA's combination over the least there is, in the worst of those Gramians."
    return [("Solvers", text, found["times"]), ("MGDA's exactness", exact, found["exactness"])]


def losses_page(rows: list[Row]) -> list[Section]:
    return [("Loss weightings", "A training step with AdamW, MLP 1M, K = 8.", rows)]


def flat_page(rows: list[Row]) -> list[Section]:
    text = (
        "A step of flat regions beside one forward and K backward passes, and for each task the move of the weights, and a "
        "forward and a backward pass from there, written by hand."
    )
    return [("Flat regions", text, rows)]


PARTS: dict[str, Callable[[bool], Any]] = {
    "steps": steps,
    "memory": memory,
    "solvers": solvers,
    "losses": losses,
    "flat": flat,
}
PAGES: dict[str, Callable[[Any], list[Section]]] = {
    "steps": steps_page,
    "memory": memory_page,
    "solvers": solvers_page,
    "losses": losses_page,
    "flat": flat_page,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; some only: nothing is written")
    parser.add_argument("--quick", action="store_true", help="tiny networks, two tasks; nothing is written")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of peers
    if options.peak:
        name, network, count = options.peak
        print(peak(name, network, int(count)))
        return
    started = time.perf_counter()
    result: dict[str, Any] = {"machine": machine(), "parts": {}}
    for name in options.parts or PARTS:
        print(f"{name} ...", flush=True)
        result["parts"][name] = PARTS[name](options.quick)
    result["minutes"] = (time.perf_counter() - started) / 60
    text = page(result)
    if not options.quick and not options.parts:
        write_json(RESULTS / "balance.json", result)
        write_text(RESULTS / "balance.md", text)
    print(text)


if __name__ == "__main__":
    main()
