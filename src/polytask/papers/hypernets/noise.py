"""Networks out of noise: whether 20 of them know better than one network how sure to be.

500 MNIST digits of 14 x 14 pixels train a perceptron, 196-64-10; or a generator of such perceptrons, out of ``z ~ N(0, I)``
of 8 numbers, by hidden layers of 64 and 32, all weights at once; 4 networks see each batch of 50. So that they do not become
one network, a term pulls each weight's distribution towards N(0, 0.1^2) (`polytask.share.hypernetwork.Spread`), weighed less
than a bound on the likelihood would have it. Each side has four trials by Adam, of which 500 validation digits choose by the
negative log-likelihood: of learning rates and lengths; or, with the term, of learning rates and its weight, at the greater
length. Tests are 2,000 digits, and as many printed letters, which no network has seen. Beside them stand the generator
without the term, and five networks that were trained apart as validation would have the one, a deep ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.claim import Measurements
from polytask.data.examples import Examples
from polytask.papers.hypernets.glyphs import Glyphs, Part, accuracy, perceptron
from polytask.share import penalties
from polytask.share.hypernetwork import MLP, Hyperfan, HyperNetwork, Noise, Spread
from polytask.training import fit

SIZES: dict[Part, int] = {"train": 500, "validation": 500, "test": 2000}
MEMBERS, NETWORKS, APART, BATCH = 4, 20, 5, 50
LENGTHS, RATES, GENERATOR_RATES = (150, 300), (3e-3, 1e-2), (1e-3, 3e-3)
PRIOR, WEIGHTS = 0.1, (1e-3, 1e-2)
"""The prior's standard deviation, and the term's weight in parts of that in a bound on the likelihood."""


class Ensemble(nn.Module):
    """Trains a classifier, or all members of a generator of classifiers, on the same task (`polytask.model.Losses`).

    Args:
        network: gives logits ``(N, classes)``, or ``(N, members, classes)`` as of ``Noise(members=4)``.
        task: the name of the targets, ``(N,)`` integers.
    """

    def __init__(self, network: nn.Module, task: str) -> None:
        super().__init__()
        self.network, self.task = network, task

    def losses(self, batch: tuple[Tensor, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The mean cross-entropy over members, and what the generator's terms add."""
        inputs, targets = batch
        with penalties(self) as found:
            logits = self.network(inputs)
        members = logits if logits.dim() == 3 else logits[:, None]
        labels = targets[self.task].repeat_interleave(members.shape[1])
        return {self.task: F.cross_entropy(members.flatten(0, 1), labels) + sum(found)}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters."""
        return self.parameters()


def generator(weight: float) -> HyperNetwork:
    """The generator, with the term of this weight, or without it for 0."""
    network = HyperNetwork(perceptron(), Noise(8, members=MEMBERS), MLP((64, 32)), residual=False, start=Hyperfan())
    if weight:
        network.terms.append(Spread(weight / SIZES["train"], std=PRIOR, samples=4))
    return network


@torch.no_grad()
def probabilities(network: nn.Module, images: Tensor, seed: int) -> Tensor:
    """Of a network, or the mean over `NETWORKS` draws of a generator's, or over those of a list."""
    torch.manual_seed(seed)
    if isinstance(network, nn.ModuleList):
        logits = torch.stack([one(images) for one in network])
    else:
        logits = network.each(images, NETWORKS) if isinstance(network, HyperNetwork) else network(images)[None]
    return logits.softmax(-1).mean(0)


def entropy(p: Tensor) -> Tensor:
    """Of each row, in nats."""
    entropies: Tensor = torch.special.entr(p).sum(1)
    return entropies


def judged(network: nn.Module, digits: tuple[Tensor, Tensor], letters: Tensor, seed: int) -> dict[str, float]:
    """Likelihood, calibration and accuracy on digits; entropy on both, and how well it tells letters from digits."""
    from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

    images, labels = digits
    p, odd = probabilities(network, images, seed), probabilities(network, letters, seed)
    entropies = torch.cat([entropy(p), entropy(odd)])
    is_letter = torch.tensor([0] * len(p) + [1] * len(odd))
    found = {
        "nll": float(F.nll_loss(p.clamp(min=1e-12).log(), labels)),
        "ece": 100 * float(multiclass_calibration_error(p, labels, 10, n_bins=15)),
        "accuracy": accuracy(p, labels),
        "entropy on digits": float(entropy(p).mean()),
        "entropy on letters": float(entropy(odd).mean()),
        "auroc": 100 * float(binary_auroc(entropies, is_letter)),
    }
    if isinstance(network, HyperNetwork):
        with torch.no_grad():
            weights = network.layout.flatten(network.weights(100))
        # How much of the weights' mean square is variance over z.
        found["spread"] = 100 * float(weights.var(0).mean() / weights.square().mean())
    return found


def measure_noise(seed: int, data: Path) -> Measurements:
    """What `judged` finds of the ``single`` network, the ``noise`` generator, that ``alone`` without its term, and of
    networks trained ``apart``.
    """
    glyphs = Glyphs(data, seed)
    train, validation, test = (glyphs.part("mnist", part, size) for part, size in SIZES.items())
    letters, _ = glyphs.part("notmnist", "test", SIZES["test"])
    examples = Examples(train[0], {"digit": train[1]})

    def trained(build: Callable[[], nn.Module], lr: float, steps: int, start: int = seed) -> nn.Module:
        torch.manual_seed(start)
        network = build()
        fit(Ensemble(network, "digit"), examples, steps=steps, batch_size=BATCH, lr=lr, seed=start)
        return network

    def nll(network: nn.Module) -> float:
        return float(F.nll_loss(probabilities(network, validation[0], seed).clamp(min=1e-12).log(), validation[1]))

    tried = {(lr, steps): trained(perceptron, lr, steps) for lr in RATES for steps in LENGTHS}
    chosen = min(tried, key=lambda settings: nll(tried[settings]))
    apart = [trained(perceptron, *chosen, start=1000 * seed + i) for i in range(APART)]
    alone = [(partial(generator, 0.0), lr, steps) for lr in GENERATOR_RATES for steps in LENGTHS]
    noise = [(partial(generator, weight), lr, max(LENGTHS)) for weight in WEIGHTS for lr in GENERATOR_RATES]
    found = {
        "single": tried[chosen],
        "noise": min((trained(*settings) for settings in noise), key=nll),
        "alone": min((trained(*settings) for settings in alone), key=nll),
        "apart": nn.ModuleList(apart),
    }
    each = {side: judged(network, test, letters, seed) for side, network in found.items()}
    return {f"{side} {what}": value for side, values in each.items() for what, value in values.items()}
