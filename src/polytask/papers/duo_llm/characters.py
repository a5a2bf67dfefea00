"""The claims on characters of Shakespeare: a small duo model, all its patterns, routers, and two controls.

Six layers of width 96, feed-forward parts of 384 and 24; contexts of 64 characters; `STEPS` steps of 16 with AdamW. The
first 90 % of the text train, contexts of the rest are tried under all 64 patterns.

The oracle looks at the character that it is to predict: part of what it gains is that the least of several losses is low
whatever they are. Two controls measure that: the pattern whose prediction has the least entropy, which looks at nothing; and
an oracle over as many models that are not patterns, but the big model with noise on its weights, as much as makes their mean
loss that of the patterns.
"""

from __future__ import annotations

import copy
import gzip
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.claim import Measurements
from polytask.data.examples import Examples
from polytask.papers.duo_llm.model import DuoLM
from polytask.papers.duo_llm.oracle import Tried, try_patterns
from polytask.papers.duo_llm.routing import with_routers
from polytask.route import alternatives_of, choosing, watched_choices
from polytask.training import fit

FILES = ("tinyshakespeare/input.txt.gz",)

LAYERS, CONTEXT, BATCH = 6, 64, 16
WIDTH, BIG, SMALL = 96, 384, 24
STEPS, ROUTER_STEPS, SEQUENCES = 600, 80, 32
BUDGETS = (1, 3, 5)
RANDOM = 10


def characters(data: Path) -> tuple[Tensor, Tensor, int]:
    """Codes of the first 90 % of the text and of the rest, and how many there are."""
    text = gzip.decompress((data / FILES[0]).read_bytes()).decode()
    codes = {character: code for code, character in enumerate(sorted(set(text)))}
    every = torch.tensor([codes[character] for character in text])
    return every[: len(every) * 9 // 10], every[len(every) * 9 // 10 :], len(codes)


def contexts(codes: Tensor, count: int, generator: torch.Generator) -> Examples:
    """Random pieces of the text, and the characters that come next."""
    starts = torch.randint(len(codes) - CONTEXT, (count,), generator=generator)
    rows = codes[starts[:, None] + torch.arange(CONTEXT + 1)]
    return Examples(rows[:, :-1].contiguous(), {"next": rows[:, 1:].contiguous()})


def measure(seed: int, data: Path) -> Measurements:
    """In nats per character: ``oracle``, ``fixed``, ``random`` (an oracle over ten patterns), ``surest`` and ``mean at B``
    for B big layers, 0 to 6; ``router at B``, how many layers it makes big, ``router layers at B``, and the best fixed
    pattern with as many, ``fixed for the router at B``, for the budgets 1, 3 and 5; ``noise at 3``, the oracle over 20
    models with noise, and ``noise mean at 3``. ``least at B`` is the share of tokens on which even the oracle gains less
    than 0.01 over small layers alone.
    """
    training, rest, vocabulary = characters(data)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = DuoLM(vocabulary, WIDTH, LAYERS, 4, big=BIG, small=SMALL)
    examples = contexts(training, STEPS * BATCH, generator)
    fit(model, examples, steps=STEPS, batch_size=BATCH, lr=2e-3, clip=1.0, seed=seed)
    tokens, labels = contexts(rest, SEQUENCES, generator)[:]
    targets = labels["next"]
    assert isinstance(tokens, Tensor)
    tried = try_patterns(model.eval(), tokens, targets)
    measured: dict[str, float] = {}
    for big in range(LAYERS + 1):
        some = tried.having(big)
        drawn = torch.randperm(len(some.patterns), generator=generator)[:RANDOM]
        measured |= {
            f"oracle at {big}": float(some.oracle.mean()),
            f"fixed at {big}": some.fixed,
            f"random at {big}": float(some.losses[drawn].amin(0).mean()),
            f"surest at {big}": float(some.surest.mean()),
            f"mean at {big}": float(some.losses.mean()),
            f"least at {big}": float((tried.having(0).losses[0] - some.oracle < 0.01).float().mean()),
        }
    measured |= noise(model, tokens, targets, tried.having(3), generator)
    for big in BUDGETS:
        routed = with_routers(model, examples, {0: big / LAYERS}, steps=ROUTER_STEPS, batch_size=BATCH, seed=seed)
        with torch.no_grad(), watched_choices() as chances:
            loss = F.cross_entropy(routed(tokens).flatten(0, 1), targets.flatten())
        used = float(sum((layer.argmax(-1) == 0).float().mean() for layer in chances))
        measured |= {f"router at {big}": float(loss), f"router layers at {big}": used}
        measured[f"fixed for the router at {big}"] = between(measured, used)
    return measured


def between(measured: Measurements, layers: float) -> float:
    """The best fixed pattern's loss at a number of big layers that need not be whole: on the line between its neighbours."""
    low = min(int(layers), LAYERS - 1)
    part = layers - low
    return (1 - part) * measured[f"fixed at {low}"] + part * measured[f"fixed at {low + 1}"]


@torch.no_grad()
def noise(model: DuoLM, tokens: Tensor, targets: Tensor, tried: Tried, generator: torch.Generator) -> dict[str, float]:
    """The oracle over as many big models with noise on the weights as there are patterns, of the same mean loss."""
    wanted, count = float(tried.losses.mean()), len(tried.patterns)
    draws = [[torch.randn(p.shape, generator=generator) * p.std() for p in model.parameters()] for _ in range(count)]

    def losses(size: float, some: int) -> Tensor:
        found = []
        for draw in draws[:some]:
            noisy = copy.deepcopy(model)
            for parameter, step in zip(noisy.parameters(), draw, strict=True):
                parameter.add_(size * step)
            with choosing(noisy, [0] * len(alternatives_of(noisy))):
                chances = noisy(tokens)
            found.append(F.cross_entropy(chances.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets))
        return torch.stack(found)

    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if float(losses(middle, 4).mean()) < wanted else (low, middle)
    every = losses(low, count)
    return {"noise at 3": float(every.amin(0).mean()), "noise mean at 3": float(every.mean())}
