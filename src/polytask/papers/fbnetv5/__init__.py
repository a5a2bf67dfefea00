"""FBNetV5: one search run finds a network for each of several tasks.

The search is in `polytask.shrink.search`, on any network: `search_tasks` where architectures are evaluated, `OneRun` where a
super-network's weights are trained by the way. Here three tasks search the paper's kind of space, each for its network:

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.fbnetv5 import Costs, MultiPath, ResolutionPath
>>> from polytask.shrink.search import Distributions, Goal, MultiTaskReinforce, OneRun, Validated, choose
>>> data, seeded = pt.multidigits(tasks=("left", "right", "ink"), size=300), torch.manual_seed(0)
>>> images, targets = data.train[:]
>>> train = pt.Examples(images.reshape(-1, 1, 11, 11), targets)
>>> network = MultiPath(data.tasks, [ResolutionPath(8), ResolutionPath(16)], modules=2, channels=1, stem=1, width=16)
>>> costs = Costs(network, train.inputs[:1])
>>> goals = {t: Goal(t, "lower", cost=f"{t} macs", target=0.6 * costs()[f"{t} macs"]) for t in network.tasks}
>>> reinforce = MultiTaskReinforce(Distributions(network.space, goals), samples=9)
>>> fitted = pt.fit(OneRun(network, reinforce, goals, costs, warm_up=20), train, steps=56, lr=3e-3)
>>> held_out = data.validation.inputs.reshape(-1, 1, 11, 11), data.validation.targets
>>> found = choose(reinforce.distributions, Validated(network, [held_out], [train[:64]], costs), goals, samples=4)
>>> small = {task: network.extract(trial.configuration, [task]) for task, trial in found.chosen.items()}
>>> list(small), int(reinforce.updates), all(goals[t].fits(trial.values) for t, trial in found.chosen.items())
(['left', 'right', 'ink'], 4, True)

The paper has no public code: what is known of it is its summary, and the rest is a reconstruction. Its search space is built
of blocks of `FBNetV3`, and its proxy tasks are labels that other models give to ImageNet's images; any `Task` may be one.
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.fbnetv5 import cells, digits
from polytask.papers.fbnetv5.fbnetv3 import FBNetV3, InvertedResidual
from polytask.papers.fbnetv5.picture import plot
from polytask.papers.fbnetv5.supernet import FBNETV3_PATHS, Costs, MultiPath, ResolutionPath

__all__ = ["FBNETV3_PATHS", "PAPER", "Costs", "FBNetV3", "InvertedResidual", "MultiPath", "ResolutionPath"]

_cells = partial(Claim, run=cells.measure_cells, better="lower", needs=cells.FILES, seeds=20)
_digits = partial(Claim, run=digits.measure_digits, better="higher", needs=digits.FILES, seeds=5)

_AGAINST = {
    "separate": (
        "apart",
        "than separate runs that share the evaluations out",
        "the cost of a search does not grow with tasks",
    ),
    "unweighed": ("weights", "than one run without importance weights", "not in its summary"),
    "joint": ("joint", "than one distribution for all tasks, by their mean reward", "not in its summary"),
    "random": ("random", "than random search, which shares its evaluations too", "not in its summary"),
}


PAPER = Paper(
    slug="fbnetv5",
    title="FBNetV5: Neural Architecture Search for Multiple Tasks in One Run",
    family="compression",
    verbs=("share", "balance", "shrink", "measure"),
    reference="arXiv 2111.10007",
    claims=(
        *(
            _cells(
                name=f"{name}, {kind}",
                statement=f"after {cells.BUDGET} evaluations of cells one run leaves less regret in {what} {than}",
                method=f"cells one run{suffix}",
                baseline=f"cells {arm}{suffix}",
                claimed=claimed,
                comment="NAS-Bench-201, three tasks on three devices: percentage points, mean over tasks. The settings of "
                "each way of searching are chosen for it alone, on other seeds.",
            )
            for kind, suffix, what in (
                ("probable", "", "the most probable cells"),
                ("best", " best", "the best that were measured"),
            )
            for arm, (name, than, claimed) in _AGAINST.items()
        ),
        _digits(
            name="random networks",
            statement="trained from scratch, what one run finds for each task is better than random networks as large",
            method="one run",
            baseline="random",
            claimed="better than the best networks before at fewer operations, on three tasks",
            comment="Mean of a digit's accuracy, the ink's R2 and the foreground's F1, in percent.",
        ),
        _digits(
            name="the whole network",
            statement="and with half of the operations no worse by more than a point than the whole network",
            method="one run",
            baseline="whole",
            margin=-1.0,
            claimed="not in its summary",
        ),
        _digits(
            name="one run",
            statement="and no worse by more than half a point than what each task finds in a run of its own, at three times "
            "the cost",
            method="one run",
            baseline="apart",
            margin=-0.5,
            claimed="one run for all tasks, at the cost of one",
        ),
    ),
    scales=tuple(
        Scale(
            name=f"FBNetV3-{size}, ImageNet",
            build=partial(FBNetV3, size),
            parameters=parameters,
            source=f"the authors' table, which counts {weights} weights of convolutions and linear layers; here with batch "
            "norms and biases",
        )
        for size, weights, parameters in (
            ("A", "8,542,224", 8_598_464),
            ("C", "9.91 M", 9_973_800),
            ("E", "10.70 M", 10_772_872),
            ("G", "16.51 M", 16_623_888),
        )
    ),
    plot=plot,
)
