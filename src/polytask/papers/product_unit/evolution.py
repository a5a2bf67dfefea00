"""Evolution of structure and weights together, for a whole population at once.

The evolutionary algorithm of the product-unit networks' family (Martinez-Estudillo, Martinez-Estudillo, Hervas-Martinez
and Garcia-Pedrajas, *Evolutionary product unit based neural networks for regression*, Neural Networks 19, 2006), which the
paper uses: no crossover; the best tenth is mutated in its weights, the rest in its structure. The population size here is
100 where the paper has 1000; each step works on all networks in one batched operation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from polytask.papers.product_unit.projection import masked_mse
from polytask.papers.product_unit.units import Networks, Units, without_constants

NODE_CHANGES = (1, 2)
LINK_CHANGES = (1, 6)
"""The least and the most nodes, or links, that one structural mutation changes."""


def fitness(mse: Tensor) -> Tensor:
    """``A = 1 / (1 + MSE)``: 1 exactly when the error is 0. An infinite or undefined error has fitness 0."""
    return (1 / (1 + mse)).nan_to_num(0.0)


@dataclass
class Evolution:
    """The search.

    Args:
        units: the kind of hidden unit.
        nodes: the least and the most hidden nodes, ``(M_min, M_max)``.
        population: the number of networks; the paper's family uses 1000, 100 is enough for small data.
        generations: the most generations.
        patience: stop after so many generations without a gain in the best and the mean fitness; 20 as in the paper.
        generator: the source of randomness.
    """

    units: Units
    nodes: tuple[int, int]
    generator: Generator
    population: int = 100
    generations: int = 100
    patience: int = 20

    weight_step: float = 0.5
    output_step: float = 1.0
    weight_range: float = 5.0
    output_range: float = 10.0

    def run(self, features: Tensor, targets: Tensor) -> Networks:
        """The final population, the fittest network first, then the others by falling fitness.

        Args:
            features: ``units.features`` of the scaled inputs, ``(N, I)``.
            targets: scaled targets, ``(N, K)``, NaN where missing.
        """
        score = _Scorer(self.units, features, targets)
        networks = self.random(10 * self.population, features.shape[1], targets.shape[1])
        scores = score(networks)
        best, waited, successes = (-1.0, -1.0), 0, []
        elite = max(1, self.population // 10)
        champion, champion_score = networks[0], -1.0
        for generation in range(self.generations):
            order = scores.argsort(descending=True, stable=True)[: self.population]
            networks, scores = networks[order], scores[order]
            if scores[0] > champion_score:
                champion, champion_score = networks[0], float(scores[0])
            reached = (float(scores[0]), float(scores.mean()))
            waited = 0 if reached[0] > best[0] or reached[1] > best[1] else waited + 1
            best = (max(best[0], reached[0]), max(best[1], reached[1]))
            if waited == self.patience or champion_score == 1.0:
                break
            networks.put(torch.arange(self.population - elite, self.population), networks[torch.arange(elite)])
            scores[-elite:] = scores[:elite]
            fittest, rest = torch.arange(elite), torch.arange(elite, self.population)
            moved, moved_scores, success = self.mutate_weights(networks[fittest], scores[fittest], score)
            restructured = self.mutate_structure(networks[rest], 1 - scores[rest])
            networks.put(fittest, moved)
            networks.put(rest, restructured)
            scores = torch.cat([moved_scores, score(restructured)])
            successes.append(success)
            if generation % 5 == 4:
                self._adapt(sum(successes[-5:]) / 5)
        order = scores.argsort(descending=True, stable=True)
        return _joined(champion, networks[order])
