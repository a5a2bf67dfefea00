"""What early exits do to a network's robustness: how attacks carry over, what they cost, and an attack on the exits alone.

The parts are in `polytask.route` (`EarlyExit`, `fooling`, `slowing`, `early_only`) and `polytask.measure.attacks`; here are
EarlyAttack in one call, the paper's networks and its ways of training.

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.dynn_robustness import digits_network, early_attack, train
>>> from polytask.route import early_fooled, exit_costs
>>> _ = torch.manual_seed(0)
>>> labels = torch.arange(128) % 2
>>> images = (0.3 + 0.4 * labels[:, None, None, None] + 0.2 * torch.randn(128, 1, 8, 8)).clamp(0, 1)
>>> network = digits_network(exits=(1, 3), size=8, widths=(4, 4, 4, 4, 4), classes=2)
>>> costs = exit_costs(network, images)
>>> final = [cost / costs[-1] for cost in costs[:-1]]  # what the weights of the exits' losses come to
>>> network = train(network, pt.Examples(images, {"bright": labels}), final, epochs=3, batch_size=16, lr=1e-2)
>>> attacked = early_attack(network, images[:8], alpha=0.5, steps=60, after=40, lr=0.1)
>>> bool((early_fooled(network, images[:8], attacked.images) == attacked.reached).all())
True

The claims are about MNIST, of which some of 10,000 training digits are used: see `polytask.papers.dynn_robustness.digits`.
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.dynn_robustness.attack import early_attack
from polytask.papers.dynn_robustness.digits import FILES, measure
from polytask.papers.dynn_robustness.networks import (
    Normalise,
    digits_network,
    heads_for,
    mobilenet,
    resnet56,
    vgg16,
)
from polytask.papers.dynn_robustness.picture import plot
from polytask.papers.dynn_robustness.training import (
    milestones,
    only_exits,
    published,
    train,
    train_exits,
    with_exits,
)

__all__ = [
    "PAPER",
    "Normalise",
    "digits_network",
    "early_attack",
    "heads_for",
    "milestones",
    "mobilenet",
    "only_exits",
    "published",
    "resnet56",
    "train",
    "train_exits",
    "vgg16",
    "with_exits",
]

_higher = partial(Claim, run=measure, needs=FILES, seeds=5, better="higher")
_lower = partial(Claim, run=measure, needs=FILES, seeds=5, better="lower")

_TRANSFER = "attacks on a network with exits carry over better than those on a static one; its tables were not seen"
_ADVICE = "design advice; what exactly was not seen"
_WEAK = (
    "The two directions have other targets: networks without exits, and one with. A target that is easier to fool is fooled "
    "more by whatever comes; the two claims after this one hold them beside what carries over between static networks."
)
_SHARED = "On exits that were trained on the static network as it is; the other network without exits shares no weights."

PAPER = Paper(
    slug="dynn_robustness",
    title="Dynamic Neural Network is All You Need: Understanding the Robustness of Dynamic Mechanisms in Neural Networks",
    family="dynamic",
    verbs=("route", "measure"),
    reference="ICCV workshops 2023, arXiv 2308.08709",
    claims=(
        _higher(
            name="transfer",
            statement="attacks on a network with exits fool static ones more often than the other way round, in percent",
            method="sdn to statics",
            baseline="statics to sdn",
            claimed=_TRANSFER,
            comment=_WEAK,
        ),
        _higher(
            name="from exits",
            statement="and more often than attacks on another static network do",
            method="sdn to statics",
            baseline="static to other",
            claimed="not in its tables",
            comment="The control: what carries over between two static networks, the mean of both directions.",
        ),
        _lower(
            name="to exits",
            statement="and attacks on static networks fool one with exits less often than another static one",
            method="statics to sdn",
            baseline="static to other",
            claimed="not in its tables",
        ),
        _higher(
            name="sum",
            statement="attacks on the sum of all exits carry over better than those on the exit that fires",
            method="sdn sum to statics",
            baseline="sdn to statics",
            claimed="not in its tables",
        ),
        _higher(
            name="transfer, exits alone",
            statement="where exits alone were trained, attacks on them fool a static network more often than the reverse",
            method="ic to statics",
            baseline="statics to ic",
            claimed=_TRANSFER,
            comment=_SHARED,
        ),
        _lower(
            name="effort",
            statement="a successful attack on a network with exits costs fewer operations than one on a static network",
            method="sdn effort",
            baseline="static effort",
            claimed="exits make attacks more efficient; figures were not seen",
            comment="PGD, each image until its first success, forward and back through the blocks that ran. It has the same "
            "budget of pixels and steps everywhere, and what did not succeed is paid for too.",
        ),
        _lower(
            name="effort, exits alone",
            statement="and so does one on exits that were trained on the static network",
            method="ic effort",
            baseline="static effort",
            claimed="exits make attacks more efficient; figures were not seen",
        ),
        _lower(
            name="shallow",
            statement="attacks on a static network carry over less to it with a first early exit alone than with a third",
            method="static to ic first",
            baseline="static to ic third",
            claimed="number and place of exits change robustness against attacks on the static network",
        ),
        _higher(
            name="early attack",
            statement="EarlyAttack has all early exits wrong and the last right on more images than noise of its length, by "
            "50 points at least",
            method="sdn early",
            baseline="sdn noise",
            margin=50,
            claimed="the exits are an attack surface of their own; figures were not seen",
            comment="alpha is chosen on 24 held-out images, of three; 300 steps, each three times as long as the authors', "
            "who take 1000. The settings were chosen after a look at seeds 0 to 2.",
        ),
        _higher(
            name="early attack, exits alone",
            statement="and more than noise on exits that were trained on the static network",
            method="ic early",
            baseline="ic noise",
            claimed="the exits are an attack surface of their own; figures were not seen",
        ),
        _lower(
            name="damage",
            statement="what a network answers to EarlyAttack is right less often than its last exit, by 30 points at least",
            method="sdn attacked exits",
            baseline="sdn attacked last",
            margin=30,
            claimed="a comparison with the whole network shows nothing",
        ),
        _higher(
            name="carried",
            statement="EarlyAttack carries over to a network of other weights more often than noise",
            method="sdn early to ic",
            baseline="sdn noise",
            claimed="measured between architectures; figures were not seen",
        ),
        _higher(
            name="agreement",
            statement="two exits in a row that have to agree make more answers to EarlyAttack right",
            method="sdn attacked agree",
            baseline="sdn attacked exits",
            claimed=_ADVICE,
            comment="The attack does not know the rule. Its images leave the exits unsure: where none reaches its threshold "
            "the surest answers, which no rule of leaving changes.",
        ),
        _higher(
            name="threshold",
            statement="and so does a threshold of 0.99 in place of 0.9",
            method="sdn attacked strict",
            baseline="sdn attacked exits",
            claimed=_ADVICE,
            comment="As for agreement.",
        ),
        _higher(
            name="calibration",
            statement="and so does a temperature for each exit, fitted on held-out images",
            method="sdn attacked calibrated",
            baseline="sdn attacked exits",
            claimed=_ADVICE,
            comment="After three epochs exits are less sure than they might be, so that temperatures lie below 1 and make "
            "more images leave early.",
        ),
        _higher(
            name="last answer",
            statement="and so does the last exit's answer where no exit is sure, in place of the surest exit's",
            method="sdn attacked unsure",
            baseline="sdn attacked exits",
            claimed="not in its tables",
        ),
        _higher(
            name="one exit",
            statement="the network with its last early exit alone answers more images right, of an attack made for that",
            method="sdn attacked one",
            baseline="sdn attacked exits",
            claimed=_ADVICE,
        ),
        _lower(
            name="slowdown",
            statement="an attack that makes exits unsure leaves less work saved than noise of the same size",
            method="sdn saved attacked",
            baseline="sdn saved noise",
            claimed="not in its tables",
        ),
        _lower(
            name="slowdown carried",
            statement="and so does one that was made for a network of other weights",
            method="sdn saved from ic",
            baseline="sdn saved noise",
            claimed="not in its tables",
        ),
    ),
    scales=(
        Scale(
            name="VGG-16 with batch norms, six internal classifiers, ten classes",
            build=vgg16,
            parameters=15_253_578 + 215_105,
            source="counted from the layers: the network, and classifiers on 1,024 to 8,192 inputs",
        ),
        Scale(
            name="MobileNet with five internal classifiers, ten classes",
            build=mobilenet,
            parameters=3_217_226 + 266_294,
            source="counted from the layers; the authors' code has five there",
        ),
        Scale(
            name="ResNet-56 with six internal classifiers, ten classes",
            build=resnet56,
            parameters=855_770 + 35_906,
            source="counted from the layers: the network, and two classifiers on 256, 512 and 1,024 inputs each",
        ),
    ),
    plot=plot,
)
