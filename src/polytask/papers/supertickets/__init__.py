"""SuperTickets: a smaller architecture and a lottery ticket in it, drawn from a supernet in one run, moved between tasks.

`two_in_one` takes any network with batch norms, and any losses; its parts are in `polytask.shrink`.

>>> import torch
>>> from polytask.papers.supertickets import NORMS, Architecture, Classifier, HighResolutionNet, Schedule, two_in_one
>>> _ = torch.manual_seed(0)
>>> sizes = Architecture(inputs=1, stem=(4,), stages=(((1,), (4,)), ((1, 1), (4, 8))), kernels=(3, 5), expansion=2)
>>> build = lambda classes: HighResolutionNet(sizes, Classifier(sizes, classes, raised=(4, 8), last=8))
>>> network, images, labels = build(3), torch.randn(32, 1, 8, 8), torch.randint(0, 3, (32,))
>>> losses = lambda network, batch: {"class": torch.nn.functional.cross_entropy(network(batch[0]), batch[1])}
>>> optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
>>> schedule = Schedule(epochs=4, rho=0.01, warm=1, look=1, interval=1, final=0.3, budget=60_000, search=2, reuse=True)
>>> tickets = two_in_one(
...     network, losses, lambda epoch: [(images, labels)], optimizer, schedule, inputs=[images[:1]], norms=NORMS
... )
>>> [drawn.sparsity for drawn in tickets], tickets[-1].macs <= 60_000
([0.1, 0.2, 0.3, 0.3], True)
>>> other = build(5)  # another task: the encoder's architecture, weights and masks, and a new head
>>> masks = tickets[-1].ticket.draw(other, part="encoder")
>>> with masks.held(other):
...     _ = other(images).sum().backward()  # train as usual

The supernet is described in `polytask.papers.supertickets.supernet`, the claims' experiment in
`polytask.papers.supertickets.digits`.
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.supertickets.comparison import FILES, measure
from polytask.papers.supertickets.picture import plot
from polytask.papers.supertickets.supernet import (
    NORMS,
    Architecture,
    Block,
    Classifier,
    Dense,
    Encoder,
    HighResolutionNet,
    imagenet,
    segmentation,
)
from polytask.papers.supertickets.training import Drawn, Schedule, two_in_one

__all__ = [
    "NORMS",
    "PAPER",
    "Architecture",
    "Block",
    "Classifier",
    "Dense",
    "Drawn",
    "Encoder",
    "HighResolutionNet",
    "Schedule",
    "imagenet",
    "segmentation",
    "two_in_one",
]

_claim = partial(Claim, run=measure, needs=FILES, seeds=5, better="higher")
_SOURCE = "counted in the authors' code, {:,} parameters, less the {:,} of batch norms that serve distillation alone"

PAPER = Paper(
    slug="supertickets",
    title="SuperTickets: Drawing Task-Agnostic Lottery Tickets from Supernets via Jointly Architecture Searching and "
    "Parameter Pruning",
    family="compression",
    verbs=("share", "shrink", "measure"),
    reference="ECCV 2022, arXiv 2207.03677",
    claims=(
        _claim(
            name="without retraining",
            statement="a ticket drawn while the network was searched and pruned in one run classifies better than the "
            "searched network pruned in the end, at 90 %",
            method="supertickets 0.9",
            baseline="one-shot 0.9",
            claimed="better trade-offs than search, then prune, with and without retraining; its tables were not read",
        ),
        _claim(
            name="with retraining",
            statement="and better than search, then pruning by magnitude, then training on, in as many steps, at 90 %",
            method="supertickets 0.9",
            baseline="retrained 0.9",
            claimed="better trade-offs than search, then prune, with and without retraining",
        ),
        _claim(
            name="with retraining at 70 %",
            statement="and so at 70 %",
            method="supertickets 0.7",
            baseline="retrained 0.7",
            claimed="better trade-offs than search, then prune, with and without retraining",
        ),
        _claim(
            name="other scores",
            statement="and better than the best of magnitude, SNIP, GraSP, SynFlow and random masks, trained on, at 90 %",
            method="supertickets 0.9",
            baseline="best 0.9",
            claimed="better than the five ways to prune",
            comment="The best is chosen on validation data in each seed. At 90 % one ranking of all magnitudes leaves this "
            "small network a twentieth of some layers; SynFlow is made to spare such layers.",
        ),
        _claim(
            name="plain",
            statement="and better than a plain network of as many parameters",
            method="supertickets 0.9",
            baseline="dense 0.9",
            claimed="an ablation of ours",
            comment="The plain network's few weights are dense, and its operations are not made equal. A supernet that was "
            "made for 13 million parameters has little to offer at some thousand.",
        ),
        _claim(
            name="moved",
            statement="MNIST's ticket, trained on 600 images of clothes, is at most 2 points worse there than a ticket that "
            "was found on them",
            method="moved",
            baseline="own",
            margin=-2,
            claimed="tickets are task-agnostic: they transfer",
            comment="300 test images. Both are trained on the clothes for as long; the moved one has seen digits before.",
        ),
        _claim(
            name="masks",
            statement="and better than the same stored weights with random masks of the same share in each layer",
            method="moved",
            baseline="shuffled",
            claimed="an ablation of ours",
        ),
        _claim(
            name="coming back",
            statement="at 90 % a ticket is better where pruned weights can come back than where they cannot",
            method="supertickets 0.9",
            baseline="frozen 0.9",
            claimed="connections that change are better; its ablation was not read",
        ),
        _claim(
            name="no reset",
            statement="and than where all weights take part between tickets",
            method="supertickets 0.9",
            baseline="reset 0.9",
            claimed="an option of the authors' code",
        ),
    ),
    scales=(
        Scale(
            name="classification, 1,000 classes",
            build=imagenet,
            parameters=13_243_868,
            source=_SOURCE.format(13_339_772, 95_904),
        ),
        Scale(
            name="segmentation, Cityscapes",
            build=partial(segmentation, 19),
            parameters=10_110_235,
            source=_SOURCE.format(10_200_091, 89_856),
        ),
        Scale(
            name="segmentation, ADE20K",
            build=partial(segmentation, 150),
            parameters=10_122_156,
            source=_SOURCE.format(10_212_012, 89_856),
        ),
    ),
    plot=plot,
)
