"""What a report shows of the results: in which order, who leads, and what may be compared with what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from polytask.errors import InputError
from polytask.report.words import listed, plural

Results = Mapping[str, Any]
"""The results of a comparison, schema 1."""
Row = Mapping[str, Any]
"""One method's entry in the results."""

SCHEMA = 1
PLAIN = "hard+equal"
"""The plain sum of the losses over one shared encoder, which equal time is measured by."""
SAME_SPEED = 1.06
"""A step at most this many times as long as the plain sum's was not trained again: its figures stand for both views."""


def check(results: Results) -> None:
    """Raise `InputError` unless ``results`` are of the schema that this version of polytask renders."""
    schema = results.get("schema") if isinstance(results, Mapping) else None
    if schema != SCHEMA:
        raise InputError(f"results of schema {schema!r}, expected schema {SCHEMA} as `polytask compare` writes it")


def joint(results: Results) -> list[Row]:
    """Methods and controls, the largest delta_m first; those without one last."""
    rows = [row for row in results["methods"] if row["role"] in ("method", "control")]
    return sorted(rows, key=lambda row: -row["delta_m"]["mean"] if row["delta_m"] else math.inf)


def ordered(results: Results) -> list[Row]:
    """All rows as tables show them: baselines, then `joint`, then yardsticks."""
    baselines = [row for row in results["methods"] if row["role"] == "baseline"]
    return [*baselines, *joint(results), *yardsticks(results)]


def yardsticks(results: Results) -> list[Row]:
    """The rows that stand outside the comparison, such as gradient boosting."""
    return [row for row in results["methods"] if row["role"] == "yardstick"]


def level(deltas: Mapping[str, Row]) -> list[str]:
    """The names whose interval reaches that of the best mean: none of them can be called better than another."""
    if not deltas:
        return []
    best = max(deltas.values(), key=lambda found: found["mean"])
    return [name for name, found in deltas.items() if found["high"] >= best["low"]]


def deltas(results: Results) -> dict[str, Row]:
    """delta_m by name at equal steps, best first."""
    return {row["name"]: row["delta_m"] for row in joint(results) if row["delta_m"]}


def at_equal_time(results: Results) -> dict[str, tuple[int | None, Row | None]]:
    """For each joint row its steps and delta_m when every arm may take the time of the plain sum.

    A method whose step is as fast as the plain sum's keeps its figures; one that was not trained again has ``None``.
    """
    rows = joint(results)
    plain = next((row["step_milliseconds"] for row in rows if row["name"] == PLAIN), None)
    found: dict[str, tuple[int | None, Row | None]] = {}
    for row in rows:
        again, own = row["equal_time"], row["step_milliseconds"]
        if again:
            found[row["name"]] = (again["steps"], again["delta_m"])
        elif plain and own and own <= SAME_SPEED * plain:
            found[row["name"]] = (row["steps"], row["delta_m"])
        else:
            found[row["name"]] = (None, None)
    return found


def who_leads(found: Mapping[str, Row], where: str) -> str:
    """A sentence that names a leader only where its interval lies apart from every other one."""
    names = level(found)
    if not names:
        return f"{where}, delta_m is not defined for any method."
    if len(found) == 1:
        return f"{where}, {names[0]} is the only one that was measured."
    if len(names) == 1:
        return f"{where}, {names[0]} leads the ways to train together: its interval lies above every other one."
    if len(names) == len(found):
        return f"{where}, there is no single leader: the intervals of all {len(names)} overlap with the best one's."
    shown = listed(names) if len(names) <= 5 else f"{', '.join(names[:4])} and {len(names) - 4} more"
    return f"{where}, there is no single leader: the intervals of {shown} overlap."


def tally(found: Mapping[str, Row]) -> str:
    """A sentence that counts who is better, undecided and worse against one model for each task."""
    counts = [
        (sum(delta.get("verdict") == word for delta in found.values()), word) for word in ("better", "undecided", "worse")
    ]
    said = listed([f"{amount} {word}" for amount, word in counts if amount])
    return f"Against one model for each task: {said}." if said else ""


def beside_yardstick(results: Results, yardstick: Row) -> str:
    """A sentence on where a yardstick is ahead of, behind, or level with the joint methods, task by task."""
    ahead: list[str] = []
    behind: list[str] = []
    even: list[str] = []
    for task in results["data"]["tasks"]:
        name, sign = task["name"], 1 if task["higher_is_better"] else -1
        rivals = [row["tasks"][name] for row in joint(results) if row["tasks"].get(name)]
        own = yardstick["tasks"].get(name)
        if not own or not rivals:
            continue
        best = max(rivals, key=lambda rival: sign * rival["mean"])
        overlap = own["low"] <= best["high"] and best["low"] <= own["high"]
        (even if overlap else ahead if sign * (own["mean"] - best["mean"]) > 0 else behind).append(name)
    parts = [(ahead, "ahead of"), (behind, "behind"), (even, "level with")]
    said = [f"{what} the best joint model on {listed(names)}" for names, what in parts if names]
    return f"{yardstick['name'].capitalize()}, one model a task, is {'; '.join(said)}." if said else ""


def highlighted(results: Results, most: int = 3) -> list[Row]:
    """The rows that learning curves label: single-task, plain sum, tuned weights, and the best ``most`` other methods."""
    rows = [row for row in ordered(results) if row["curves"]]
    always = [row for row in rows if row["role"] != "method" or row["name"] == PLAIN]
    others = [row for row in rows if row not in always]
    return [*always, *others[:most]]


def facts(results: Results) -> list[str]:
    """The size of the comparison, in a few words each."""
    budget, sizes = results["budget"], results["data"]["sizes"]
    return [
        plural(len(results["data"]["tasks"]), "task"),
        f"{plural(len(joint(results)), 'way')} to train together",
        plural(len(budget["seeds"]), "seed"),
        f"{budget['steps']:,} steps of {budget['batch_size']}",
        f"{sizes['train']:,} training and {sizes['test']:,} test examples",
    ]


def controls(results: Results) -> list[tuple[str, Row]]:
    """The rows that any method has to beat, with what each is: one model a task, the plain sum, tuned weights, the best."""
    found = [("one model for each task", row) for row in results["methods"] if row["role"] == "baseline"]
    rows = joint(results)
    found += [("plain sum of the losses", row) for row in rows if row["name"] == PLAIN]
    found += [("static weights, tuned" if row["weights"] else "control", row) for row in rows if row["role"] == "control"]
    methods = [row for row in rows if row["role"] == "method" and row["name"] != PLAIN]
    found += [("largest mean delta_m", row) for row in methods[:1]]
    return [*found, *(("yardstick", row) for row in yardsticks(results))]


def text_of(value: Any) -> str:
    """A value of the provenance as text."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {text_of(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(text_of, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "not given" if value is None else str(value)
