"""GFUCB: bandits that share an unknown representation act by the optimism of one joint confidence set.

Each round every task chooses, so that the sum over tasks of the largest values that some function of several heads has, near
the joint least squares solution, is large: what one task sees narrows what all others have to explore.

>>> import torch
>>> generator = torch.Generator().manual_seed(0)
>>> encoder = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4), torch.nn.Tanh())
>>> agent = Linearised(MultiHead(encoder, tasks=3, width=4), beta=0.01, every=10, steps=50, lr=0.01)
>>> which = torch.randn(3, 8, generator=generator)  # a task rewards what points its way
>>> for _ in range(50):
...     candidates = torch.randn(3, 5, 8, generator=generator)  # five actions for each of three tasks
...     actions = agent.choose(candidates)
...     played = candidates[torch.arange(3), actions]
...     agent.learn(played, (played * which).sum(1) / 8)
>>> candidates = torch.randn(3, 400, 8, generator=generator)
>>> reward = torch.einsum("mad,md->ma", candidates, which)
>>> best = agent.means(candidates).argmax(1)
>>> bool((reward[torch.arange(3), best] > reward.mean(1) + reward.std(1)).all())
True
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.gfucb.bandit import Independent, Player, Round, play
from polytask.papers.gfucb.digits import ACTIONS, ROUNDS, TASKS, image_rounds, measure
from polytask.papers.gfucb.finite import FiniteClass, Member, members
from polytask.papers.gfucb.horizons import COUNT, EPISODES, HORIZON, MAPS, grouped_tasks, measure_episodes
from polytask.papers.gfucb.mdp import OptimisticValues, TabularTasks, bellman_error, run_episodes
from polytask.papers.gfucb.network import MultiHead, convolutional, mlp
from polytask.papers.gfucb.neural import FineTuned, Greedy, Learner, Linearised
from polytask.papers.gfucb.optimism import joint_choice, joint_value, separable_choice
from polytask.papers.gfucb.picture import plot

__all__ = [
    "PAPER",
    "FineTuned",
    "FiniteClass",
    "Greedy",
    "Independent",
    "Learner",
    "Linearised",
    "Member",
    "MultiHead",
    "OptimisticValues",
    "Player",
    "Round",
    "TabularTasks",
    "bellman_error",
    "convolutional",
    "grouped_tasks",
    "image_rounds",
    "joint_choice",
    "joint_value",
    "members",
    "mlp",
    "play",
    "run_episodes",
    "separable_choice",
]

_claim = partial(Claim, run=measure, better="lower", seeds=5)
_COMMENT = (
    f"Regret per task over {ROUNDS} rounds; {TASKS} tasks, {ACTIONS} images a round, scikit-learn's digits. What each "
    "arm explores by, its radius or chance to draw, was chosen from four values on the same other rounds; networks, their "
    "training and its length are the same."
)


def _at_scale() -> MultiHead:
    return MultiHead(convolutional(width=10), tasks=10)


PAPER = Paper(
    slug="gfucb",
    title="Provable General Function Class Representation Learning in Multitask Bandits and MDPs",
    family="theory_and_control",
    verbs=("share", "balance", "measure"),
    reference="NeurIPS 2022, arXiv 2205.15701",
    claims=(
        _claim(
            name="together",
            statement="ten tasks with one representation have less regret than each with a network of its own",
            method="joint regret",
            baseline="independent regret",
            claimed="pooled exploration of M tasks beats M independent algorithms",
            comment=_COMMENT,
        ),
        _claim(
            name="four tasks",
            statement="four tasks with one representation have less regret than each with a network of its own",
            method="joint of 4 regret",
            baseline="independent regret of four",
            claimed="the regret of a task falls with their number",
            comment=_COMMENT,
        ),
        _claim(
            name="more tasks",
            statement="the same four tasks have less regret among ten than alone",
            method="joint regret of four",
            baseline="joint of 4 regret",
            claimed="the regret of a task falls with their number",
            comment=_COMMENT,
        ),
        _claim(
            name="raw pixels",
            statement="ten tasks with a learned representation have less regret than LinUCB on pixels",
            method="joint regret",
            baseline="pixels regret",
            claimed="general representations pay where linear ones are not enough",
            comment=_COMMENT,
        ),
        _claim(
            name="optimism",
            statement="optimism has less regret than acting greedily on the same representation",
            method="joint regret",
            baseline="greedy regret",
            claimed="",
            comment=_COMMENT
            + " Greedy was best without any action drawn. The paper does not compare the two, as far as is known.",
        ),
        _claim(
            name="known representation",
            statement="where the representation is known, LinUCB has less regret than where it is learned",
            method="oracle regret",
            baseline="joint regret",
            claimed="the price of the representation is a term of the bound",
            comment=_COMMENT + " A check of the setting: true classes as features.",
        ),
        Claim(
            name="finite horizons",
            statement=f"{COUNT} tasks of {HORIZON} steps with one unknown representation have less regret than each alone",
            run=measure_episodes,
            method="episodes joint",
            baseline="episodes independent",
            better="lower",
            claimed="the regret bound for MDPs pays for the class of representations once, not for each task",
            comment=f"Regret of values per task over {EPISODES} episodes; made tasks that are linear in one of {MAPS} "
            "groupings of their states, and optimism at every step. The radius of each arm was chosen from four values on "
            "the same other tasks.",
            seeds=5,
        ),
    ),
    scales=(
        Scale(
            name="a convolutional network for images of 28 x 28, 10 tasks",
            build=_at_scale,
            parameters=1_199_982,
            source="a count by layers, 320 + 18,496 + 1,179,776 + 1,290 + 100; the paper's own network is not known",
        ),
    ),
    plot=plot,
)
