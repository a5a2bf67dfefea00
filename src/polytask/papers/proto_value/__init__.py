"""Proto-value networks: features for acting, learned without reward from the values of many random sets of observations.

`polytask.data.control` records transitions; any policy's will do. With Atari's games and the paper's sizes,

    transitions = record(environment("atari/pong"), 1_000_000)
    sets = NetworkIndicators(RandomNetworks(100), tasks=100)
    model = ProtoValues(ImpalaEncoder(), sets, transitions.actions)
    pt.fit(model, TransitionBatches(transitions, 256), steps=1_562_500, optimizer=adam(256), schedule="constant")
    values, returns = act_on_features(environment("atari/pong"), model.values.encoder.requires_grad_(False), 4096)

and in four rooms, where everything is known exactly:

>>> import torch
>>> import polytask as pt
>>> walk, seeded = rooms(), torch.manual_seed(0)
>>> sets = TableCumulants((torch.rand(104, 50) < 0.1).float())
>>> encoder = torch.nn.Embedding.from_pretrained(0.1 * torch.randn(104, 10), freeze=False)
>>> model = ProtoValues(encoder, sets, actions=4, width=10, gamma=0.9, rate=0.25)
>>> basis = leading(successor(walk.matrix, 0.9), 10)
>>> before = subspace_error(model.features(torch.arange(104)), basis)
>>> fitted = pt.fit(model, [walk.transitions()] * 50, steps=200, lr=0.03)
>>> subspace_error(model.features(torch.arange(104)), basis) < 0.8 * before
True
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.nn.heads import HeadBank
from polytask.paper import Paper, Scale
from polytask.papers.proto_value.cumulants import (
    Cumulants,
    HashIndicators,
    NetworkCumulants,
    NetworkIndicators,
    TableCumulants,
)
from polytask.papers.proto_value.dqn import DoubleDQN, act_on_features
from polytask.papers.proto_value.four_rooms import measure_rooms
from polytask.papers.proto_value.lspi import LinearValues, lspi
from polytask.papers.proto_value.minatar import measure
from polytask.papers.proto_value.model import ProtoValues, adam
from polytask.papers.proto_value.networks import ImpalaEncoder, RandomNetworks, SmallEncoder
from polytask.papers.proto_value.picture import plot, value_maps
from polytask.papers.proto_value.tabular import Walk, leading, rooms, subspace_error, successor

__all__ = [
    "PAPER",
    "Cumulants",
    "DoubleDQN",
    "HashIndicators",
    "ImpalaEncoder",
    "LinearValues",
    "NetworkCumulants",
    "NetworkIndicators",
    "ProtoValues",
    "RandomNetworks",
    "SmallEncoder",
    "TableCumulants",
    "Walk",
    "act_on_features",
    "adam",
    "leading",
    "lspi",
    "rooms",
    "subspace_error",
    "successor",
    "value_maps",
]

_rooms = partial(Claim, run=measure_rooms, better="lower", seeds=5)
_game = partial(Claim, run=measure, better="higher", seeds=5)
_ROOMS = "Ten features for each of 104 states; the mean squared sine of the angles to the ten leading singular vectors."
_GAME = (
    "Breakout of MinAtar: 30,000 random transitions, of which 10,000 have rewards; 1,000 updates without reward, where the "
    "paper has 1.5 million; mean return of 50 episodes."
)


PAPER = Paper(
    slug="proto_value",
    title="Proto-Value Networks: Scaling Representation Learning with Auxiliary Tasks",
    family="theory_and_control",
    verbs=("share", "balance", "scale", "measure"),
    reference="ICLR 2023, arXiv 2304.12567",
    claims=(
        _rooms(
            name="more sets",
            statement="features of 100 sets are nearer to the successor representation's singular vectors than those of 10",
            method="sets 100 error",
            baseline="sets 10 error",
            claimed="with many tasks the features span the top singular vectors",
            comment=_ROOMS,
        ),
        _rooms(
            name="random features",
            statement="features of 100 sets are nearer to them than random features",
            method="sets 100 error",
            baseline="random error",
            claimed="",
            comment=_ROOMS,
        ),
        _rooms(
            name="random cumulants in rooms",
            statement="features of 100 sets are nearer to them than those of 100 random networks' outputs",
            method="sets 100 error",
            baseline="numbers 100 error",
            claimed="indicators beat random cumulants, on Atari",
            comment=_ROOMS + " By theory both have the same limit, and numbers tell more of a state than a rare set does.",
        ),
        _rooms(
            name="rare sets",
            statement="features of 10 sets of a twentieth of the states are nearer to them than those of 10 of a hundredth",
            method="sets 10 error",
            baseline="rare 10 error",
            claimed="",
            comment=_ROOMS,
        ),
        *(
            _game(
                name=name,
                statement=f"a linear policy on frozen features of 100 sets earns more than one on {words}",
                method="sets 100 return",
                baseline=f"{arm} return",
                claimed=claimed,
                comment=_GAME,
            )
            for name, arm, words, claimed in (
                ("one task", "sets 1", "those of one set", "more tasks help, together with width"),
                ("random encoder", "random encoder", "those of the encoder before training", ""),
                ("pixels", "pixels", "pixels", ""),
                ("hashing", "hash", "those of 100 sets by hashing", "indicators by networks beat those by hashing"),
                (
                    "random cumulants",
                    "numbers",
                    "those of 100 random networks' outputs",
                    "indicators beat random cumulants",
                ),
            )
        ),
        _game(
            name="DQN",
            statement="a linear policy on frozen features of 100 sets earns at most half a brick less than DQN end to end",
            method="sets 100 return",
            baseline="dqn return",
            margin=-0.5,
            claimed="linear policies on frozen features are comparable to established agents",
            comment=_GAME + " DQN trains the same encoder on the same 10,000 rewards, for as many updates.",
        ),
    ),
    scales=(
        Scale(
            name="Impala encoder, width 8, 4,096 features",
            build=ImpalaEncoder,
            parameters=133_082_752,
            source="a count by the layers of the paper's code",
        ),
        Scale(
            name="Impala encoder, width 1, 512 features",
            build=partial(ImpalaEncoder, 1, 512),
            parameters=2_080_720,
            source="a count by the layers of the paper's code",
        ),
        Scale(
            name="heads of 100 tasks and 18 actions on 4,096 features",
            build=partial(HeadBank, 4096, 100, 18),
            parameters=7_374_600,
            source="m A (d + 1)",
        ),
    ),
    plot=plot,
)
