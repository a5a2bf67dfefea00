"""Tables: polytask beside scikit-learn, on real tables.

    python benchmarks/tables.py [accuracy] [speed] [memory] [--seeds 3]

regenerates ``benchmarks/results/tables.json`` and ``tables.md``, and the figures in ``docs/tables.md`` (all three parts by
default; a part that is not run keeps its last result). The accuracy part reads the data sets in the folder POLYTASK_DATA.

- accuracy: one model for all targets of a table, with no settings given, and scikit-learn's HistGradientBoosting, one model
  for each target, on the same rows, columns and splits. A seed is of the split and of the models.
- speed: reading a CSV file of a million rows and preprocessing it, against polars and scikit-learn's ColumnTransformer.
- memory: five million rows of forty columns, from a CSV file to training steps, and the most memory that took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from polytask.comparison.yardstick import gradient_boosting_yardstick
from polytask.data import DataSet
from polytask.data.table import Schema, load_table, read_table
from polytask.files import write_json, write_text
from polytask.fitting import Recipe
from polytask.statistics import t_interval
from polytask.training import evaluate, fit

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs" / "tables.md"
MARK = "<!-- figures -->\n"
SPEED_ROWS = 1_000_000
MEMORY_ROWS, MEMORY_STEPS = 5_000_000, 300
REPEATS = 3


# Accuracy


def census_income(folder: Path) -> tuple[pl.DataFrame, list[str]]:
    """Income above 50,000, never married, and a college degree, the targets of the multi-task literature."""
    frame = read_table(folder / "census_income" / "census_income_99762.csv.gz")
    college = pl.col("education").str.contains("degree") & (pl.col("education") != "Some college but no degree")
    frame = frame.with_columns(college.alias("college"), (pl.col("marital_stat") == "Never married").alias("never_married"))
    return frame.drop("education", "marital_stat", "instance_weight"), ["income_50k", "never_married", "college"]


def telco_churn(folder: Path) -> tuple[pl.DataFrame, list[str]]:
    """Churn, the kind of contract, the way of paying."""
    return read_table(folder / "telco_churn" / "telco_churn.csv.gz"), ["Churn", "Contract", "PaymentMethod"]


def hillstrom_email(folder: Path) -> tuple[pl.DataFrame, list[str]]:
    """Visit, conversion and spend after an e-mail."""
    return read_table(folder / "hillstrom_email" / "hillstrom.csv.gz"), ["visit", "conversion", "spend"]


def physionet_static(folder: Path) -> tuple[pl.DataFrame, list[str]]:
    """Death, days in hospital and two severity scores from age, gender, height, weight and ward; -1 is missing."""
    with np.load(folder / "physionet2012_seta" / "physionet2012_seta.npz") as arrays:
        static, outcomes = arrays["static"].astype(float), arrays["outcomes"].astype(float)
    features = dict(zip(["age", "gender", "height", "ward", "weight"], static.T, strict=True))
    targets = {"death": outcomes[:, 5], "days": outcomes[:, 3], "saps": outcomes[:, 1], "sofa": outcomes[:, 2]}
    frame = pl.DataFrame(features | targets)
    return frame.with_columns(pl.when(pl.all() >= 0).then(pl.all())), list(targets)


TABLES: list[Callable[[Path], tuple[pl.DataFrame, list[str]]]] = [
    census_income,
    telco_churn,
    hillstrom_email,
    physionet_static,
]


def accuracy(seeds: int) -> list[dict[str, Any]]:
    """For each table and target both models' main metric on each seed's test part."""
    folder = Path(os.environ.get("POLYTASK_DATA", ""))
    if not os.environ.get("POLYTASK_DATA") or not folder.is_dir():
        sys.exit("the accuracy part needs the data sets: set POLYTASK_DATA to their folder")
    records = []
    for table in TABLES:
        frame, targets = table(folder)
        runs = []
        for seed in range(seeds):
            data = load_table(frame, targets, seed=seed)
            ours, seconds, cpu = trained(data, seed)
            started = time.process_time()
            trees = gradient_boosting_yardstick(data, seed)
            runs.append((ours, trees, seconds, cpu, time.process_time() - started))
            found = {task.name: (ours[task.name][task.metric], trees[task.name][task.metric]) for task in data.tasks}
            print(table.__name__, seed, f"{seconds:.0f} s", found, flush=True)
        for task in data.tasks:
            pairs = [(ours[task.name][task.metric], trees[task.name][task.metric]) for ours, trees, *_ in runs]
            records.append(
                {
                    "table": table.__name__,
                    "rows": sum(data.provenance["rows"].values()),
                    "target": task.name,
                    "kind": task.kind,
                    "metric": task.metric,
                    "higher_is_better": task.higher_is_better,
                    "polytask": [ours for ours, _ in pairs],
                    "gradient_boosting": [trees for _, trees in pairs],
                    "seconds": statistics.median(run[2] for run in runs),
                    "cpu_seconds": statistics.median(run[3] for run in runs),
                    "gradient_boosting_cpu_seconds": statistics.median(run[4] for run in runs),
                }
            )
    return records


def trained(data: DataSet, seed: int) -> tuple[dict[str, dict[str, float]], float, float]:
    """The test metrics of a model with no settings given, and the wall and CPU seconds that it took."""
    recipe = Recipe(seed=seed)
    model = recipe.build(data)
    started, cpu = time.perf_counter(), time.process_time()
    fit(model, data.train, data.validation, seed=seed, **recipe.settings_for(data))
    return evaluate(model, data.test), time.perf_counter() - started, time.process_time() - cpu


def accuracy_table(records: list[dict[str, Any]]) -> str:
    lines = [
        "| table (rows) | target | metric | polytask | gradient boosting | difference, 95 % interval | |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        sign = 1 if record["higher_is_better"] else -1
        pairs = list(zip(record["polytask"], record["gradient_boosting"], strict=True))
        gains = [sign * 100 * (ours - trees) / abs(trees) for ours, trees in pairs]
        gain = t_interval(gains) if len(gains) > 1 else None
        mean = statistics.mean(gains)
        verdict = "better" if gain and gain.low > 0 else "within 1 % or better" if mean > -1 else "worse by more than 1 %"
        bounds = f" [{gain.low:+.2f}, {gain.high:+.2f}]" if gain else ""
        means = [statistics.mean(record[model]) for model in ("polytask", "gradient_boosting")]
        lines.append(
            f"| {record['table']} ({record['rows']:,}) | {record['target']} | {record['metric']} | {means[0]:.4f} | "
            f"{means[1]:.4f} | {mean:+.2f} %{bounds} | {verdict} |"
        )
    return "\n".join(lines)


# Speed


def speed() -> dict[str, Any]:
    """Median seconds for reading and preprocessing a CSV file of a million rows, by polytask and through scikit-learn."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        synthetic(SPEED_ROWS, 40, seed=0).write_csv(path)
        steps = {"polytask": our_preprocessing, "scikit_learn": their_preprocessing, "scikit_learn_scaled": their_scaling}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for _ in range(REPEATS):
            for name, step in steps.items():
                started, cpu = time.perf_counter(), time.process_time()
                step(path)
                times[name].append((time.perf_counter() - started, time.process_time() - cpu))
                print(name, f"{times[name][-1][0]:.1f} s", flush=True)
    wall = {name: statistics.median(t for t, _ in values) for name, values in times.items()}
    cpu_seconds = {name: statistics.median(t for _, t in values) for name, values in times.items()}
    return {"rows": SPEED_ROWS, "columns": 40, "seconds": wall, "cpu_seconds": cpu_seconds}


def our_preprocessing(path: Path) -> None:
    frame = read_table(path).drop("y")
    schema = Schema.fit(frame[: len(frame) * 6 // 10])
    schema.transform(frame)


def their_preprocessing(path: Path) -> None:
    """The same steps: median and indicator for missing numbers, quantiles, codes for categories that are not rare."""
    from sklearn.preprocessing import QuantileTransformer

    transform_with_columns(path, QuantileTransformer(n_quantiles=256, subsample=200_000, random_state=0))


def their_scaling(path: Path) -> None:
    """With plain standard scores in place of quantiles, which cost less than what polytask does."""
    from sklearn.preprocessing import StandardScaler

    transform_with_columns(path, StandardScaler())


def transform_with_columns(path: Path, scaler: Any) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    frame = pl.read_csv(path).drop("y")
    numbers = [column for column in frame.columns if frame[column].dtype.is_numeric()]
    names = [column for column in frame.columns if column not in numbers]
    codes = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2, min_frequency=3, dtype=np.int32
    )
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median", add_indicator=True), scaler), numbers),
            ("names", codes, names),
        ]
    )
    columns.fit(frame[: len(frame) * 6 // 10])
    torch.from_numpy(np.asarray(columns.transform(frame), dtype=np.float32))


def synthetic(rows: int, columns: int, seed: int) -> pl.DataFrame:
    """A table with a binary target ``y``: half numbers (a tenth missing in some), a quarter counts, a quarter categories."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    signal = np.zeros(rows)
    for i in range(columns - 1):
        if i % 4 < 2:
            column = rng.normal(size=rows).round(4)
            signal += column / columns
            values[f"number_{i}"] = np.where(rng.random(rows) < 0.1, np.nan, column) if i % 8 == 0 else column
        elif i % 4 == 2:
            values[f"count_{i}"] = rng.poisson(5, rows)
        else:
            names = np.array([f"category-{k}" for k in range(10 * (i + 1))])
            values[f"name_{i}"] = pl.Series(names[: len(names)]).gather(rng.integers(0, len(names), rows))
    values["y"] = (signal + rng.normal(size=rows) > 0).astype(np.int64)
    return pl.DataFrame(values).fill_nan(None)


# Memory


def memory() -> dict[str, Any]:
    """The most memory that five million rows take, from a CSV file to training steps, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("wb") as file:
            for part in range(MEMORY_ROWS // 500_000):
                synthetic(500_000, 40, seed=part).write_csv(file, include_header=part == 0)
        size = path.stat().st_size
        child = subprocess.run([sys.executable, __file__, "--measure", path], check=True, capture_output=True, text=True)
    return {"rows": MEMORY_ROWS, "columns": 40, "file_bytes": size, **json.loads(child.stdout.splitlines()[-1])}


def measure(path: Path) -> None:
    """Print what loading ``path`` and training on it takes, as JSON."""
    anonymous = Anonymous()
    started = time.perf_counter()
    data = load_table(path, ["y"])
    loaded = time.perf_counter() - started
    loading_peak = anonymous.peak
    recipe = Recipe(settings={"steps": MEMORY_STEPS, "evaluate_every": MEMORY_STEPS})
    started = time.perf_counter()
    fit(recipe.build(data), data.train, data.validation, **recipe.settings_for(data))
    print(
        json.dumps(
            {
                "load_seconds": loaded,
                "train_seconds": time.perf_counter() - started,
                "steps": MEMORY_STEPS,
                "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "peak_anonymous_bytes": anonymous.peak,
                "peak_anonymous_bytes_loading": loading_peak,
            }
        )
    )


class Anonymous(threading.Thread):
    """Watches this process's anonymous memory; ``peak`` is the most that it saw, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, 1024 * int(status.split("RssAnon:")[1].split()[0]))
            time.sleep(0.05)


# The page


def page(results: dict[str, Any]) -> str:
    parts = [f"Regenerated by `python benchmarks/tables.py`: {results['machine']}."]
    parts += [accuracy_page(results["accuracy"])] if "accuracy" in results else []
    parts += [speed_page(results["speed"])] if "speed" in results else []
    parts += [memory_page(results["memory"])] if "memory" in results else []
    return "\n\n".join(parts) + "\n"


def accuracy_page(records: list[dict[str, Any]]) -> str:
    costs = {r["table"]: (r["cpu_seconds"], r["gradient_boosting_cpu_seconds"]) for r in records}
    cost = "; ".join(f"{table} {ours:.0f} and {trees:.1f}" for table, (ours, trees) in costs.items())
    return (
        "## Accuracy\n\nOne model for all targets, no settings given, against scikit-learn's HistGradientBoosting for each "
        f"target: the test part's main metric, mean over {len(records[0]['polytask'])} seeds, each with a split of its own. "
        "Both select on the validation part. A positive difference is in polytask's favour."
        f"\n\n{accuracy_table(records)}\n\n"
        f"CPU seconds of training, polytask's one model and all of gradient boosting's: {cost}."
    )


def speed_page(found: dict[str, Any]) -> str:
    names = {
        "polytask": "polytask",
        "scikit_learn": "polars and ColumnTransformer, the same steps",
        "scikit_learn_scaled": "polars and ColumnTransformer, standard scores instead of ranks",
    }
    lines = ["| | seconds | CPU seconds | seconds, times polytask's |", "|---|---|---|---|"]
    for key, name in names.items():
        seconds, cpu = found["seconds"][key], found["cpu_seconds"][key]
        lines.append(f"| {name} | {seconds:.1f} | {cpu:.1f} | {seconds / found['seconds']['polytask']:.1f} |")
    title = f"A CSV file of {found['rows']:,} rows and {found['columns']} columns, medians of {REPEATS} runs:"
    return f"## Reading and preprocessing\n\n{title}\n\n" + "\n".join(lines)


def memory_page(found: dict[str, Any]) -> str:
    size, anonymous, resident = (found[key] / 2**30 for key in ("file_bytes", "peak_anonymous_bytes", "peak_resident_bytes"))
    return (
        f"## Memory\n\n{found['rows']:,} rows and {found['columns']} columns ({size:.1f} GiB of CSV), read, preprocessed "
        f"and trained on for {found['steps']} steps: at most {anonymous:.1f} GiB of anonymous memory, {resident:.1f} GiB "
        f"resident; {found['load_seconds']:.0f} s to load."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="accuracy, speed, memory; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="splits and models for each table (default 3)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    parts: dict[str, Callable[[], Any]] = {"accuracy": lambda: accuracy(options.seeds), "speed": speed, "memory": memory}
    if unknown := [part for part in options.parts if part not in parts]:
        parser.error(f"unknown part {unknown[0]!r}, expected some of {', '.join(parts)}")
    path = RESULTS / "tables.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, polars {pl.__version__}"
    for part in options.parts or parts:
        results[part] = parts[part]()
        write_json(path, results)
        write_text(path.with_suffix(".md"), f"# Tables\n\n{page(results)}")
        write_text(DOCS, DOCS.read_text().partition(MARK)[0] + MARK + "\n" + page(results).replace("## ", "### "))
    print(page(results))


if __name__ == "__main__":
    main()
