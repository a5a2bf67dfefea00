"""Settings of a merge by validation: a grid, evolution or optuna, with a journal from which a killed search goes on."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeAlias

from polytask.errors import InputError, optional
from polytask.journal import append_line, open_journal

Settings: TypeAlias = dict[str, Any]
"""Values by name, such as a rule's fields."""

FORMAT = "polytask search 1"
"""What a journal says it is, with the version of its layout."""

STEP = 0.25
"""The first steps of the evolution strategy, as a share of each range: their standard deviation."""

LARGEST_GRID = 10_000
"""Settings of the largest space that is searched without a budget."""

DRAWS = 100
"""So many proposals in a row may be settings that were tried; then one is drawn anywhere."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Args:
        low, high: finite, ``low < high``.
        count: ``None`` for one number; else the setting is a list of so many, each of which is searched, as for one weight
            of each model.
        log: whether steps are of the logarithm, for what ranges over orders of magnitude; ``low`` is above 0 then.
    """

    low: float
    high: float
    count: int | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high - self.low) and self.low < self.high):
            raise InputError(f"a range from {self.low} to {self.high}: expected finite numbers, the first below the second")
        if self.log and not (self.low > 0 and math.log(self.low) < math.log(self.high)):
            raise InputError(f"a logarithmic range from {self.low} to {self.high}: expected numbers above 0 that are apart")
        if self.count is not None and self.count < 1:
            raise InputError(f"a range of {self.count} numbers: expected at least one")

    def at(self, share: float) -> float:
        """The number at a share of the way, from 0 to 1."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return float(min(max(value, self.low), self.high))

    def share(self, value: float) -> float:
        """How far along ``value`` is, from 0 to 1."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        tried: settings and their score, in the order in which they were tried.
    """

    tried: list[tuple[Settings, float]]

    @property
    def best(self) -> Settings:
        """The settings of the best score; of equal ones, those that were tried first."""
        return max(self.tried, key=lambda pair: pair[1])[0]

    @property
    def score(self) -> float:
        """The best score."""
        return max(score for _, score in self.tried)


def search(
    evaluate: Callable[[Settings], float],
    space: Mapping[str, Range | Iterable[Any]],
    *,
    budget: int | None = None,
    start: Mapping[str, Any] | None = None,
    sampler: Literal["auto", "grid", "evolution", "optuna"] = "auto",
    seed: int = 0,
    path: Path | str | None = None,
) -> Found:
    """The settings that score best, as for a merge on validation data:

    >>> import torch
    >>> from polytask.merge import TIES, merge_state_dicts
    >>> base, models = {"w": torch.zeros(2)}, [{"w": torch.tensor([1.0, 0.1])}, {"w": torch.tensor([3.0, -0.1])}]
    >>> def on_validation_data(merged):
    ...     return -float((merged["w"] - torch.tensor([1.2, 0.0])).square().sum())
    >>> space = {"density": [0.5, 1.0], "scale": [0.2, 0.4, 0.6, 0.8, 1.0]}
    >>> found = search(lambda s: on_validation_data(merge_state_dicts(TIES(**s), models, base)), space)
    >>> found.best, len(found.tried)
    ({'density': 0.5, 'scale': 0.6}, 10)
    >>> merged = merge_state_dicts(TIES(**found.best), models, base)

    The samplers:

    - ``"grid"``: all combinations of choices; the last name varies fastest.
    - ``"evolution"``: a (1+1)-evolution strategy. Ranges and choices, in their order, are stretched to [0, 1]; the best
      so far moves by a Gaussian step, cut off at the bounds, and a child that is not worse takes its place. The step grows
      by ``exp(0.8 / d)`` when it does and shrinks by ``exp(-0.2 / d)`` when it does not, ``d = sqrt(1 + n)`` for ``n``
      numbers, so that it stays where one child in five succeeds (Rechenberg's rule, in the form of Hansen, Arnold and Auger,
      *Evolution strategies*, 2015); it never shrinks so far that choices stay as they are.
    - ``"optuna"``: the tree-structured Parzen estimator of optuna, with its defaults. It needs the extra ``search``.
    - ``"auto"``: the grid when all combinations fit in the budget, else evolution.

    No settings are evaluated twice, and all that is random depends on the seed alone.

    Args:
        evaluate: from settings to their score on *validation* data; higher is better. The same settings must have the same
            score whenever it is asked. The settings are the callback's to keep.
        space: by name a `Range`, or choices in a sensible order: values that JSON has, of which lists may be one.
        budget: how many settings to evaluate at most, those of the journal included. A space with ranges needs one, and one
            of more than 10,000 settings.
        start: settings to try first. Without them the evolution strategy starts in the middle.
        sampler: see above.
        seed: of what is random.
        path: the journal, a file of JSON lines: what is searched, then the settings and the score of each evaluation as soon
            as it is done. A search whose journal is there goes on, evaluates nothing again, and ends as one that was not
            interrupted; with a larger budget it goes further. The journal does not know what ``evaluate`` does: for other
            models or data, give another path. One process at a time may use it.

    Raises:
        InputError: the space, start, budget or sampler do not fit each other; a score is not a finite number; the journal is
            of another search.
        MissingExtra: optuna is asked for and not installed.
    """
    where = _Space(space)
    if budget is not None and budget < 1:
        raise InputError(f"budget {budget}: expected at least 1")
    if sampler not in ("auto", "grid", "evolution", "optuna"):
        raise InputError(f"sampler {sampler!r}: expected 'auto', 'grid', 'evolution' or 'optuna'")
    if sampler == "auto":
        sampler = "grid" if where.size is not None and (budget is None or where.size <= budget) else "evolution"
    if where.size is None and sampler == "grid":
        raise InputError(f"sampler 'grid': setting {where.ranges[0]!r} is a range, expected choices")
    if budget is None and (where.size is None or where.size > LARGEST_GRID):
        why = f"setting {where.ranges[0]!r} is a range" if where.size is None else f"there are {where.size:,} settings"
        raise InputError(f"no budget: expected one, since {why}")
    first = None if start is None else where.checked(start)
    known: dict[str, float] = {}
    proposals = _SAMPLERS[sampler](where, first, seed, known)
    about = {"search": FORMAT, "sampler": _name(sampler), "seed": seed, "space": where.about, "start": first}
    recorded = [] if path is None else _lines(Path(path), about)

    limit = min(number for number in (budget, where.size) if number is not None)
    tried: list[tuple[Settings, float]] = []
    settings = next(proposals)
    while True:
        key, own = _text(settings), copy.deepcopy(settings)
        if len(tried) < len(recorded):
            score = _replayed(recorded, len(tried), key, path)
        else:
            score = _number(evaluate(copy.deepcopy(settings)), key)
            if path is not None:
                append_line(Path(path), {"settings": settings, "score": score})
        known[key] = score
        tried.append((own, score))
        if len(tried) == limit:
            return Found(tried)
        settings = proposals.send(score)


def _number(score: Any, key: str) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor of several numbers raises the last
        raise InputError(f"settings {key} score {type(score).__name__}, expected a number") from error
    if not math.isfinite(number):
        raise InputError(f"settings {key} score {number}, expected a finite number")
    return number


# What may be tried


class _Space:
    """Settings as points of the unit cube: a coordinate for each number of a range, and one for each list of choices.

    Attributes:
        axes: the range or the choices of each setting.
        size: how many settings there are, or ``None`` if there are ranges.
        choices: of each coordinate, the number of choices, which share it evenly; 0 for a number of a range.
        about: the space as JSON has it.
    """

    def __init__(self, space: Mapping[str, Range | Iterable[Any]]) -> None:
        if not space:
            raise InputError("nothing to search, expected at least one setting")
        self.axes = {name: axis if isinstance(axis, Range) else _choices(name, axis) for name, axis in space.items()}
        self.ranges = [name for name, axis in self.axes.items() if isinstance(axis, Range)]
        sizes = [len(axis) for axis in self.axes.values() if not isinstance(axis, Range)]
        self.size = None if self.ranges else math.prod(sizes)
        self.choices = [
            count
            for axis in self.axes.values()
            for count in ([0] * (axis.count or 1) if isinstance(axis, Range) else [len(axis)])
        ]
        self.about = {name: asdict(axis) if isinstance(axis, Range) else axis for name, axis in self.axes.items()}

    def settings(self, point: Iterable[float]) -> Settings:
        """What is at a point."""
        coordinates = iter(point)
        found: Settings = {}
        for name, axis in self.axes.items():
            if not isinstance(axis, Range):
                found[name] = axis[min(int(next(coordinates) * len(axis)), len(axis) - 1)]
            elif axis.count is None:
                found[name] = axis.at(next(coordinates))
            else:
                found[name] = [axis.at(next(coordinates)) for _ in range(axis.count)]
        return found

    def point(self, settings: Settings) -> list[float]:
        """Where settings are; of choices, the middle of their cell."""
        found: list[float] = []
        for name, axis in self.axes.items():
            value = settings[name]
            if isinstance(axis, Range):
                found += [axis.share(number) for number in ([value] if axis.count is None else value)]
            else:
                found.append((axis.index(value) + 0.5) / len(axis))
        return found

    def grid(self) -> Iterator[Settings]:
        """All settings of a space without ranges."""
        axes = [axis for axis in self.axes.values() if not isinstance(axis, Range)]
        for values in itertools.product(*axes):
            yield dict(zip(self.axes, values, strict=True))

    def anywhere(self, random: Random, known: Mapping[str, float]) -> list[float]:
        """A point, each as likely as any other, of settings that are not known."""
        while True:
            point = [random.random() for _ in self.choices]
            if _text(self.settings(point)) not in known:
                return point

    def checked(self, start: Mapping[str, Any]) -> Settings:
        """Settings to start from, in the order of the space, with a choice's own value."""
        if odd := sorted(start.keys() ^ self.axes.keys()):
            raise InputError(f"setting {odd[0]!r} is not in both the start and the space")
        found: Settings = {}
        for name, axis in self.axes.items():
            value = start[name]
            if isinstance(axis, Range):
                numbers = [value] if axis.count is None else list(value) if isinstance(value, list | tuple) else []
                inside = [isinstance(number, int | float) and axis.low <= number <= axis.high for number in numbers]
                if len(inside) != (axis.count or 1) or not all(inside):
                    many = "a number" if axis.count is None else f"{axis.count} numbers"
                    raise InputError(f"start: {name} {value!r}: expected {many} from {axis.low:g} to {axis.high:g}")
                found[name] = float(value) if axis.count is None else [float(number) for number in numbers]
            elif value in axis:
                found[name] = axis[axis.index(value)]
            else:
                raise InputError(f"start: {name} {value!r}: expected one of {', '.join(map(repr, axis))}")
        return found


def _choices(name: str, axis: Iterable[Any]) -> list[Any]:
    if isinstance(axis, str | Mapping) or not isinstance(axis, Iterable):
        raise InputError(f"setting {name!r}: {axis!r}, expected a Range or a list of choices")
    choices = list(axis)
    if not choices:
        raise InputError(f"setting {name!r} has no choices, expected at least one")
    for i, choice in enumerate(choices):
        try:
            _text(choice)
        except (TypeError, ValueError) as error:
            raise InputError(f"setting {name!r}: choice {choice!r}, expected a value that JSON has") from error
        if choice in choices[:i]:
            raise InputError(f"setting {name!r} has the choice {choice!r} twice")
    return choices


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


# Samplers: generators that yield settings which are not known, and are sent their score


Sampler: TypeAlias = Generator[Settings, float, None]


def _grid(space: _Space, start: Settings | None, seed: int, known: Mapping[str, float]) -> Sampler:
    if start is not None:
        yield start
    for settings in space.grid():
        if _text(settings) not in known:
            yield settings


def _evolution(space: _Space, start: Settings | None, seed: int, known: Mapping[str, float]) -> Sampler:
    random, step, damping = Random(seed), STEP, math.sqrt(1 + len(space.choices))
    least = [0.5 / count if count else 0.0 for count in space.choices]
    parent = [0.5] * len(space.choices) if start is None else space.point(start)
    best = yield space.settings(parent) if start is None else start

    def near() -> list[float]:
        moved = (u + random.gauss(0, max(step, floor)) for u, floor in zip(parent, least, strict=True))
        return [min(max(u, 0.0), 1.0) for u in moved]

    while True:
        children = (near() for _ in range(DRAWS))
        child = next((c for c in children if _text(space.settings(c)) not in known), None)
        if child is None:
            child = space.anywhere(random, known)
        score = yield space.settings(child)
        succeeds = score >= best
        if succeeds:
            parent, best = child, score
        step = min(step * math.exp((succeeds - 0.2) / damping), 1.0)


def _optuna(space: _Space, start: Settings | None, seed: int, known: Mapping[str, float]) -> Sampler:
    optuna = optional("optuna", "search")
    ours, talk = Random(seed), optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    finally:
        optuna.logging.set_verbosity(talk)
    kinds: dict[str, Any] = {}
    for name, axis in space.axes.items():
        if isinstance(axis, Range):
            kinds |= {f"{name}.{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(axis.count or 1)}
        elif all(isinstance(choice, int | float) for choice in axis):
            kinds[name] = optuna.distributions.IntDistribution(0, len(axis) - 1)
        else:
            kinds[name] = optuna.distributions.CategoricalDistribution(range(len(axis)))

    def point(parameters: Mapping[str, float]) -> list[float]:
        """Ranges are asked for as shares, choices by number."""
        pairs = zip(parameters.values(), space.choices, strict=True)
        return [(value + 0.5) / count if count else value for value, count in pairs]

    def tell(at: Iterable[float], score: float) -> None:
        """Add what optuna did not ask for."""
        numbers = [min(int(u * count), count - 1) if count else u for u, count in zip(at, space.choices, strict=True)]
        parameters = dict(zip(kinds, numbers, strict=True))
        study.add_trial(optuna.trial.create_trial(params=parameters, distributions=kinds, value=score))

    if start is not None:
        tell(space.point(start), (yield start))
    while True:
        for _ in range(DRAWS):
            trial = study.ask(kinds)
            settings = space.settings(point({name: trial.params[name] for name in kinds}))
            if _text(settings) not in known:
                study.tell(trial, (yield settings))
                break
            study.tell(trial, known[_text(settings)])
        else:
            at = space.anywhere(ours, known)
            tell(at, (yield space.settings(at)))


_SAMPLERS: dict[str, Callable[[_Space, Settings | None, int, Mapping[str, float]], Sampler]] = {
    "grid": _grid,
    "evolution": _evolution,
    "optuna": _optuna,
}


def _name(sampler: str) -> str:
    """The sampler; what another version of optuna proposes may be something else."""
    return f"optuna {optional('optuna', 'search').__version__}" if sampler == "optuna" else sampler


# The journal


def _lines(path: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The evaluations in a journal, which is begun if it is not there."""
    found = open_journal(path, about, lambda theirs: _check(path, theirs, about))
    for number, line in enumerate(found, 2):
        if line.keys() != {"settings", "score"} or not isinstance(line["score"], int | float):
            raise InputError(f"{path}: line {number}: expected settings and a score")
    return found


def _check(path: Path, found: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Raise `InputError` unless the journal is of this search."""
    for name, value in about.items():
        theirs, ours = found.get(name), json.loads(_text(value))
        if name == "space" and isinstance(theirs, dict) and theirs.keys() == ours.keys():
            name, theirs, ours = next(
                ((f"range or choices of {each!r}", theirs[each], ours[each]) for each in ours if theirs[each] != ours[each]),
                ("order of settings", list(theirs), list(ours)),
            )
        if theirs != ours:
            raise InputError(f"{path}: the journal of another search, whose {name} is {_text(theirs)}, here {_text(ours)}")


def _replayed(recorded: list[dict[str, Any]], index: int, key: str, path: Path | str | None) -> float:
    """The score that the journal has for the settings ``key``, which are tried now."""
    settings, score = recorded[index]["settings"], float(recorded[index]["score"])
    if _text(settings) != key or not math.isfinite(score):
        raise InputError(f"{path}: line {index + 2}: {_text(recorded[index])}, expected a score of the settings {key}")
    return score
