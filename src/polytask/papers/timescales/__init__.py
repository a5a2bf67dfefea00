"""Long timescales in recurrent networks: leaky neurons learn to remember more and more bits, by one curriculum or another.

Tasks of growing memory follow one another in training. With one at a time, read out by one head, time constants of single
neurons can grow; with all so far, a head for each, they stay near 1 and the network as a whole becomes slow.

>>> import torch
>>> import polytask as pt
>>> tasks = [name_of(n) for n in range(2, 6)]
>>> stream = BitStream("dms", cumulative(tasks), tasks, batch_size=64, length=25, tests=4)
>>> seeded = torch.manual_seed(0)
>>> network = MemoryNetwork(LeakyRNN(32), heads=4)
>>> fitted = pt.fit(network, stream, stream.held_out, steps=200, evaluate_every=25, lr=5e-3, schedule="constant", clip=2.0,
...                 monitor="network/progress")
>>> fitted.score >= 2  # the largest N that was solved
True
>>> accuracies(network, "dms", ["n2"])["n2"] > 0.95
True
>>> bool((network.core.tau >= 1).all()), network_timescales(network.core, steps=200, trials=4, lags=20).shape
(True, torch.Size([32]))

Training as in the paper is ``pt.fit(network, stream, stream.held_out, steps=600_000, evaluate_every=600, clip=2.0,
optimizer=sgd, schedule="constant", monitor="network/progress")`` with networks and streams of their defaults.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.timescales.curricula import MeanAndNewest, cumulative, single, sliding, solved
from polytask.papers.timescales.damage import (
    ablated,
    accuracies,
    accuracies_on,
    on_scans,
    perturbed,
    probed,
    retrained,
    scans,
    slowed,
)
from polytask.papers.timescales.experiment import BATCH, UPDATES, WIDTH, Solved, measure
from polytask.papers.timescales.network import CONTINUOUS, Gated, LeakyRNN, MemoryNetwork
from polytask.papers.timescales.picture import plot
from polytask.papers.timescales.tasks import (
    BitStream,
    biased_bits,
    chance,
    draw,
    fair_bits,
    labels,
    match,
    name_of,
    parity,
)
from polytask.papers.timescales.timescales import (
    Decay,
    autocorrelation,
    fit_decay,
    isolated_timescale,
    network_timescales,
)

__all__ = [
    "CONTINUOUS",
    "PAPER",
    "BitStream",
    "Decay",
    "Gated",
    "LeakyRNN",
    "MeanAndNewest",
    "MemoryNetwork",
    "Solved",
    "ablated",
    "accuracies",
    "accuracies_on",
    "autocorrelation",
    "biased_bits",
    "chance",
    "cumulative",
    "draw",
    "fair_bits",
    "fit_decay",
    "isolated_timescale",
    "labels",
    "match",
    "name_of",
    "network_timescales",
    "on_scans",
    "parity",
    "perturbed",
    "probed",
    "retrained",
    "scans",
    "sgd",
    "single",
    "sliding",
    "slowed",
    "solved",
]


def sgd(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """The paper's optimizer for leaky networks: gradient descent, rate 0.05, Nesterov momentum 0.1."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.1, nesterov=True)


_claim = partial(Claim, run=measure, seeds=5)
_more = partial(_claim, better="higher")
_COMMENT = (
    f"{WIDTH} neurons, {UPDATES} updates of Adam on batches of {BATCH} for each network; the paper has 500 neurons, plain "
    "gradient descent, and hundreds of thousands of updates."
)
_DAMAGE = "Parity; both networks as they were when they had solved the same N, the largest that both did. "


def _at_scale(core: Any) -> MemoryNetwork:
    return MemoryNetwork(core(500))


PAPER = Paper(
    slug="timescales",
    title="Emergent mechanisms for long timescales depend on training curriculum and affect performance in memory tasks",
    family="theory_and_control",
    verbs=("share", "balance", "measure"),
    reference="ICLR 2024, arXiv 2309.12927",
    claims=(
        *(
            _more(
                name=f"{title}: reach",
                statement=f"with all tasks so far a network solves {title} of a larger N than one at a time",
                method=f"{rule} cumulative solved",
                baseline=f"{rule} single solved",
                claimed="many heads train faster and reach larger N",
                comment=_COMMENT,
            )
            for rule, title in (("parity", "parity"), ("dms", "delayed match"))
        ),
        _more(
            name="reach of a window",
            statement="with a window of three tasks a network solves parity of a larger N than one at a time",
            method="parity sliding solved",
            baseline="parity single solved",
            claimed="between the two",
            comment=_COMMENT,
        ),
        _more(
            name="reach of a GRU",
            statement="with all tasks so far a GRU solves parity of a larger N than one at a time",
            method="gru cumulative solved",
            baseline="gru single solved",
            claimed="the multi-head curriculum lets GRU and LSTM reach larger N",
            comment=_COMMENT,
        ),
        _more(
            name="no curriculum",
            statement="at the N that is reached with all tasks so far, training on that task alone is less accurate",
            method="target accuracy cumulative",
            baseline="target accuracy none",
            claimed="without a curriculum training fails beyond small N",
            comment=_COMMENT,
        ),
        *(
            _more(
                name=f"{title}: time constants",
                statement=f"on {title} the last networks' mean time constant is larger with one task at a time",
                method=f"{rule} single last tau",
                baseline=f"{rule} cumulative last tau",
                claimed="one head: constants grow with N; many heads: they stay near 1",
                comment=_COMMENT,
            )
            for rule, title in (("parity", "parity"), ("dms", "delayed match"))
        ),
        _more(
            name="constants grow",
            statement="with one parity at a time the mean time constant is larger at the last N solved than at the first",
            method="parity single last tau",
            baseline="parity single first tau",
            claimed="one head: trained constants increase with N",
            comment=f"{_COMMENT} Single heads reach a small N here, where constants still fall from what they start from.",
        ),
        *(
            _more(
                name=f"{title}: the network slows",
                statement=f"on {title} with all tasks so far, activity decays more slowly at the last N than at the first",
                method=f"{rule} cumulative last network tau",
                baseline=f"{rule} cumulative first network tau",
                claimed="many heads: timescales of the network lengthen through recurrence",
                comment=f"{_COMMENT} Means over neurons of the slowest fitted constant.",
            )
            for rule, title in (("parity", "parity"), ("dms", "delayed match"))
        ),
        _more(
            name="forgetting",
            statement="earlier N are more accurate, above chance, with all tasks so far than with one at a time",
            method="cumulative old",
            baseline="single old",
            claimed="one head forgets smaller N",
            comment=_DAMAGE + "Earlier N read out by their heads, or by the one.",
        ),
        _more(
            name="ablation",
            statement="with 5 % of the neurons removed, accuracy stays higher with all tasks so far",
            method="cumulative ablated",
            baseline="single ablated",
            claimed="many heads are more robust to ablation",
            comment=_DAMAGE + _COMMENT,
        ),
        _more(
            name="perturbation",
            statement="with weights disturbed by a tenth, accuracy stays higher with all tasks so far",
            method="cumulative perturbed",
            baseline="single perturbed",
            claimed="many heads are more robust to perturbation",
            comment=_DAMAGE + _COMMENT,
        ),
        _more(
            name="retraining",
            statement="a disturbed network learns the next N better in 100 updates if it was trained on all tasks so far",
            method="cumulative retrained",
            baseline="single retrained",
            claimed="many heads re-train faster",
            comment=_DAMAGE + _COMMENT,
        ),
        _more(
            name="beyond the trained N",
            statement="a new linear readout of the next N is more accurate on a network trained on all tasks so far",
            method="cumulative probed",
            baseline="single probed",
            claimed="many heads generalise beyond the trained N",
            comment=_DAMAGE + _COMMENT,
        ),
        _more(
            name="real sequences",
            statement="on pixels of digits, read row by row, accuracy over all N is higher with all tasks so far",
            method="cumulative scans",
            baseline="single scans",
            comment=_DAMAGE + "Networks that were trained on drawn bits; scikit-learn's digits.",
        ),
    ),
    scales=(
        Scale("leaky, 500 neurons, 100 heads", partial(_at_scale, LeakyRNN), 352_200, "a count by layers of released code"),
        Scale("LSTM, 500 units, 100 heads", partial(_at_scale, Gated), 1_106_200, "a count by layers of released code"),
    ),
    plot=plot,
)
