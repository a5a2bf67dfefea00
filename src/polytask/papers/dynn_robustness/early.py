"""EarlyAttack on the digits, noise beside it, its transfer, and what rules of exiting do against it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from polytask.measure.attacks import noise
from polytask.papers.dynn_robustness.attack import early_attack
from polytask.papers.dynn_robustness.training import only_exits
from polytask.route import EarlyExit, early_fooled, efficacy, exit_costs, view

STEPS, RATE, ALPHAS = 300, 0.03, (1.0, 0.1, 0.01)
"""Of Adam, and what is tried. The authors take up to 1000 steps of 0.01, which lead as far, and alphas from 0.001 to 40."""
SCALE = 1 / 0.3081
"""The distance is that of normalised pixels, as in the authors' code."""

Images = tuple[Tensor, Tensor]


@torch.no_grad()
def accuracy(network: EarlyExit, images: Tensor, labels: Tensor) -> float:
    """Of the answers, in percent."""
    return 100 * float((view(network)(images).argmax(1) == labels).float().mean())


def early(
    made: Mapping[str, EarlyExit],
    temperatures: Mapping[str, Tensor],
    choice: Images,
    few: Images,
    test: Images,
    generator: torch.Generator,
) -> dict[str, float]:
    """Of each network: success, distance, what the exits and the last exit answer, and what other rules would have answered.

    ``NAME early A`` is the success on the held-out ``choice`` for each alpha; the best is taken, the largest of equals.
    All others are of ``few`` test images: ``NAME early`` and ``NAME noise`` (success), ``NAME distance`` (the mean L2),
    ``NAME attacked RULE`` (accuracy), and ``NAME early to OTHER``. ``NAME clean RULE`` and ``NAME saved RULE`` are accuracy
    and the part of the operations saved on test images. ``sdn attacked one`` and ``sdn early one`` are of an attack that was
    made for the network with its last early exit alone.
    """
    attack = partial(early_attack, steps=STEPS, lr=RATE, scale=SCALE, generator=generator)
    found: dict[str, float] = {}
    crafted: dict[str, Tensor] = {}
    images, labels = few
    for name, network in made.items():
        for alpha in ALPHAS:
            tried = attack(network, choice[0], alpha)
            found[f"{name} early {alpha:g}"] = 100 * float(tried.reached.float().mean())
        best = max(ALPHAS, key=lambda alpha: found[f"{name} early {alpha:g}"])
        attacked = attack(network, images, best).images
        distances = (attacked - images).flatten(1).norm(dim=1)
        noisy = noise(images, distances, generator)
        crafted[name] = attacked
        found |= {
            f"{name} alpha": best,
            f"{name} distance": float(distances.mean()),
            f"{name} early": _share(early_fooled(network, images, attacked)),
            f"{name} noise": _share(early_fooled(network, images, noisy)),
            f"{name} noisy exits": accuracy(network, noisy, labels),
        }
        for rule, ruled in rules(network, temperatures[name]).items():
            found[f"{name} attacked {rule}"] = accuracy(ruled, attacked, labels)
            found[f"{name} clean {rule}"] = accuracy(ruled, *test)
            found[f"{name} saved {rule}"] = 100 * efficacy(ruled.run(test[0]).exits, exit_costs(ruled, images))
    one = only_exits(made["sdn"], [len(made["sdn"].thresholds) - 1])
    on_one = attack(one, images, found["sdn alpha"]).images
    found |= {"sdn early one": _share(early_fooled(one, images, on_one)), "sdn attacked one": accuracy(one, on_one, labels)}
    for name, other in (("sdn", "ic"), ("ic", "sdn")):
        found[f"{name} early to {other}"] = _share(early_fooled(made[other], images, crafted[name]))
    return found


def rules(network: EarlyExit, temperatures: Tensor) -> dict[str, EarlyExit]:
    """The network with other rules of exiting, its weights shared.

    ``exits``: as it is. ``agree``: two exits in a row have to agree. ``strict``: a threshold of 0.99. ``calibrated``:
    confidence is that of calibrated logits. ``unsure``: where no exit is sure enough, the last one answers, and not the
    surest. ``fewer``: the last early exit alone. ``last``: no early exit.
    """
    changed = {rule: copy.copy(network) for rule in ("exits", "agree", "strict", "calibrated", "unsure")}
    for made in changed.values():
        made._buffers = {name: None if tensor is None else tensor.clone() for name, tensor in network._buffers.items()}
    changed["agree"].agree, changed["unsure"].answer = 2, "last"
    changed["strict"].thresholds.fill_(0.99)
    changed["calibrated"].temperatures.copy_(temperatures)
    fewer = {"last": only_exits(network, []), "fewer": only_exits(network, [len(network.thresholds) - 1])}
    return changed | fewer


def _share(which: Tensor) -> float:
    return 100 * float(which.float().mean())
