"""Evolution of structure and weights together, for a whole population at once.

The evolutionary algorithm of the product-unit networks' family, which the paper uses (A. and F. Martinez-Estudillo,
Hervas-Martinez, Garcia-Pedrajas, *Evolutionary product unit based neural networks for regression*, Neural Networks 19,
2006). There is no crossover: the best tenth is mutated in its weights, the rest in its structure. Every step works on all
networks in one batched operation. The population is 100 by default where the paper has 1000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from polytask.papers.product_unit.projection import Targets, solve_outputs
from polytask.papers.product_unit.units import Networks, Units, without_constants

WEIGHT_RANGE = 5.0
OUTPUT_RANGE = 10.0
"""New weights are uniform in [-5, 5], new output coefficients in [-10, 10]."""


def fitness(mse: Tensor) -> Tensor:
    """``A = 1 / (1 + MSE)``: 1 exactly when the error is 0; an error that overflowed has fitness 0."""
    return (1 / (1 + mse)).nan_to_num(0.0)


@dataclass(frozen=True)
class Evolution:
    """The settings of a search.

    Args:
        units: the kind of hidden unit.
        nodes: the least and the most hidden nodes, ``(M_min, M_max)``.
        population: the number of networks ``P``; ``10 P`` random ones compete for the first generation.
        generations: the most generations.
        patience: stop when neither the best nor the mean fitness has improved for so many generations.
        ridge: ``None`` evolves the output layer too, as in the paper; a number above 0 solves it for every network by
            `solve_outputs`, so that evolution searches structures and weights alone.
    """

    units: Units
    nodes: tuple[int, int]
    population: int = 100
    generations: int = 100
    patience: int = 20
    ridge: float | None = None

    def run(self, features: Tensor, targets: Targets, generator: Generator) -> Networks:
        """Evolve, and return the last population by falling fitness, led by the fittest network ever seen.

        Args:
            features: ``units.features`` of the scaled inputs, ``(N, I)``.
            targets: scaled targets.
            generator: the source of all randomness.
        """

        def judge(networks: Networks) -> tuple[Networks, Tensor]:
            if self.ridge is not None:
                outputs = solve_outputs(networks.hidden(self.units, features), targets, self.ridge)
                networks = Networks(networks.weights, networks.links, outputs)
            return networks, fitness(targets.mse(networks.predict(self.units, features)))

        elite = max(1, self.population // 10)
        steps = Steps()
        first = random_networks(10 * self.population, features.shape[1], targets.values.shape[1], self.nodes, generator)
        networks, scores = judge(first)
        champion, champion_score = networks[scores.argmax()], scores.max()
        best_mean, waited = scores.new_zeros(()), 0
        for _ in range(self.generations):
            order = scores.argsort(descending=True, stable=True)[: self.population]
            order[-elite:] = order[:elite]  # the best tenth replaces the worst
            networks, scores = networks[order], scores[order]
            fittest, fittest_scores = mutate_weights(networks[:elite], scores[:elite], steps, judge, generator)
            changed = mutate_structure(networks[elite:], 1 - scores[elite:], self.nodes, self.units, generator)
            others, other_scores = judge(changed)
            networks, scores = Networks.cat([fittest, others]), torch.cat([fittest_scores, other_scores])
            improved = bool(scores.max() > champion_score) or bool(scores.mean() > best_mean)
            waited = 0 if improved else waited + 1
            best_mean = torch.maximum(best_mean, scores.mean())
            if scores.max() > champion_score:
                champion, champion_score = networks[scores.argmax()], scores.max()
            if waited == self.patience:
                break
        order = scores.argsort(descending=True, stable=True)
        return Networks.cat([champion[None], networks[order]])


def random_networks(count: int, inputs: int, tasks: int, nodes: tuple[int, int], generator: Generator) -> Networks:
    """Random networks: a uniform number of nodes between the bounds, each node with a random non-empty set of inputs."""
    least, most = nodes
    sizes = torch.randint(least, most + 1, (count, 1), generator=generator)
    networks = Networks(
        torch.zeros(count, inputs, most, dtype=torch.double),
        torch.zeros(count, inputs, most, dtype=torch.bool),
        torch.zeros(count, 1 + most, tasks, dtype=torch.double),
    )
    networks.outputs[:, 0] = _uniform((count, tasks), OUTPUT_RANGE, generator)
    for size in range(most):
        add_node(networks, torch.where(size < sizes.squeeze(1))[0], nodes, generator)
    return networks


@dataclass
class Steps:
    """The variances ``a_1`` (weights), ``a_2`` (outputs) of parametric mutation, adapted by the one-fifth success rule."""

    weights: float = 0.5
    outputs: float = 1.0
    successes: tuple[float, ...] = ()

    def record(self, success: float) -> None:
        """Take the share of mutations that improved their network; every fifth time grow or shrink the steps by a tenth."""
        self.successes += (success,)
        if len(self.successes) == 5:
            rate = sum(self.successes) / 5
            factor = 1.1 if rate > 0.2 else 0.9 if rate < 0.2 else 1.0
            self.weights, self.outputs, self.successes = self.weights * factor, self.outputs * factor, ()


def mutate_weights(
    networks: Networks,
    scores: Tensor,
    steps: Steps,
    judge: Callable[[Networks], tuple[Networks, Tensor]],
    generator: Generator,
) -> tuple[Networks, Tensor]:
    """Parametric mutation: normal noise of variance ``a T`` with temperature ``T = 1 - A``, by simulated annealing.

    A change of fitness ``dA`` is accepted with probability ``min(1, exp(dA / T))``. At ``T = 0`` nothing moves.
    """
    temperature = 1 - scores
    deviation = temperature.sqrt()[:, None, None]
    present = torch.nn.functional.pad(networks.nodes, (1, 0), value=True).unsqueeze(-1)
    weights = networks.weights + _normal(networks.weights, generator) * deviation * steps.weights**0.5 * networks.links
    outputs = networks.outputs + _normal(networks.outputs, generator) * deviation * steps.outputs**0.5 * present
    mutated, reached = judge(Networks(weights.clamp(-WEIGHT_RANGE, WEIGHT_RANGE), networks.links, outputs))
    gain = reached - scores
    steps.record(float((gain > 0).double().mean()))
    chance = torch.rand(len(scores), generator=generator, dtype=torch.double)
    accepted = (gain >= 0) | (chance < (gain / temperature.clamp_min(1e-12)).exp())
    chosen = torch.where(accepted)[0]
    result = networks[torch.arange(len(scores))]
    result.put(chosen, mutated[chosen])
    return result, torch.where(accepted, reached, scores)


def mutate_structure(
    networks: Networks, temperature: Tensor, nodes: tuple[int, int], units: Units, generator: Generator
) -> Networks:
    """Structural mutation: each kind of change with probability ``T``, one at random when none was drawn.

    A change touches ``dmin + floor(u T (dmax - dmin))`` nodes or links, with ``u`` uniform in [0, 1).
    """
    count = len(temperature)
    result = networks[torch.arange(count)]
    drawn = torch.rand(count, len(CHANGES), generator=generator, dtype=torch.double) < temperature[:, None]
    one = torch.randint(len(CHANGES), (count,), generator=generator)
    drawn |= torch.nn.functional.one_hot(one, len(CHANGES)).bool() & ~drawn.any(1, keepdim=True)
    for column, (change, least, most) in enumerate(CHANGES):
        u = torch.rand(count, generator=generator, dtype=torch.double)
        times = least + (u * temperature * (most - least)).floor()
        for done in range(most):
            rows = torch.where(drawn[:, column] & (done < times))[0]
            if len(rows):
                change(result, rows, nodes, generator)
    return without_constants(result, units)


def add_node(networks: Networks, rows: Tensor, nodes: tuple[int, int], generator: Generator) -> None:
    """In each of ``rows`` with fewer than ``M_max`` nodes, a new node with a random non-empty set of inputs; in place."""
    rows, node = _pick(~networks.nodes, rows, generator)
    shape = (len(rows), networks.links.shape[1])
    links = torch.rand(shape, generator=generator) < 0.5
    links |= torch.nn.functional.one_hot(torch.randint(shape[1], shape[:1], generator=generator), shape[1]).bool()
    networks.links[rows, :, node] = links
    networks.weights[rows, :, node] = _uniform(shape, WEIGHT_RANGE, generator) * links
    networks.outputs[rows, 1 + node] = _uniform((len(rows), networks.outputs.shape[2]), OUTPUT_RANGE, generator)


def delete_node(networks: Networks, rows: Tensor, nodes: tuple[int, int], generator: Generator) -> None:
    """In each of ``rows`` with more than ``M_min`` nodes, one node less; in place."""
    present = networks.nodes
    rows, node = _pick(present & (present.sum(1, keepdim=True) > nodes[0]), rows, generator)
    _remove(networks, rows, node)


def add_link(networks: Networks, rows: Tensor, nodes: tuple[int, int], generator: Generator) -> None:
    """In each of ``rows``, a link to an input that a node did not have; in place."""
    free = ~networks.links & networks.nodes.unsqueeze(1)
    rows, place = _pick(free.flatten(1), rows, generator)
    networks.links.view(len(networks.links), -1)[rows, place] = True
    networks.weights.view(len(networks.weights), -1)[rows, place] = _uniform((len(rows),), WEIGHT_RANGE, generator)


def delete_link(networks: Networks, rows: Tensor, nodes: tuple[int, int], generator: Generator) -> None:
    """In each of ``rows``, one link less, of a node that keeps at least one; in place."""
    spare = networks.links & (networks.links.sum(1, keepdim=True) > 1)
    rows, place = _pick(spare.flatten(1), rows, generator)
    networks.links.view(len(networks.links), -1)[rows, place] = False
    networks.weights.view(len(networks.weights), -1)[rows, place] = 0.0


def fuse_nodes(networks: Networks, rows: Tensor, nodes: tuple[int, int], generator: Generator) -> None:
    """In each of ``rows`` with more than ``M_min`` nodes, two nodes become one; in place.

    Common links take the mean weight, a link of only one parent stays with probability 0.5, the outputs add up. Two equal
    product units fuse without a change of the function.
    """
    present = networks.nodes
    rows, first = _pick(present & (present.sum(1, keepdim=True) > max(1, nodes[0])), rows, generator)
    others = present.clone()
    others[rows, first] = False
    rows, second = _pick(others, rows, generator)
    one, other = networks.links[rows, :, first], networks.links[rows, :, second]
    common = one & other
    kept = common | ((one ^ other) & (torch.rand(one.shape, generator=generator) < 0.5))
    kept |= (one | other) & ~kept.any(1, keepdim=True)
    total = networks.weights[rows, :, first] + networks.weights[rows, :, second]
    networks.links[rows, :, first] = kept
    networks.weights[rows, :, first] = torch.where(common, total / 2, total) * kept
    networks.outputs[rows, 1 + first] += networks.outputs[rows, 1 + second]
    _remove(networks, rows, second)


CHANGES = ((delete_node, 1, 2), (delete_link, 1, 6), (add_node, 1, 2), (add_link, 1, 6), (fuse_nodes, 1, 2))
"""The structural mutations in the order in which they are tried, with the least and the most changes of each."""


def _remove(networks: Networks, rows: Tensor, node: Tensor) -> None:
    networks.links[rows, :, node] = False
    networks.weights[rows, :, node] = 0.0
    networks.outputs[rows, 1 + node] = 0.0


def _pick(candidates: Tensor, rows: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Those of ``rows`` that have a candidate, and for each a random one: ``(P, C)`` bool, ``(R,)`` to two ``(R',)``."""
    rows = rows[candidates[rows].any(1)]
    lottery = torch.rand(len(rows), candidates.shape[1], generator=generator)
    return rows, lottery.masked_fill(~candidates[rows], -1.0).argmax(1)


def _uniform(shape: tuple[int, ...], bound: float, generator: Generator) -> Tensor:
    return (torch.rand(shape, generator=generator, dtype=torch.double) * 2 - 1) * bound


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.double)
