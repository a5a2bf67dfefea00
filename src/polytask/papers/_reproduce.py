"""Running claims: every seed once, in parallel, resumable, then the verdicts as JSON and a plot for each paper."""

from __future__ import annotations

import hashlib
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import polytask
from polytask.claim import Claim, Evidence, Measurements
from polytask.errors import InputError
from polytask.files import read_json, replacing, sha256, write_json, write_text
from polytask.paper import Paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = Callable[[int, Path], Measurements]


@dataclass(frozen=True)
class Outcome:
    """What came of one claim: evidence, or the reason why there is none.

    Attributes:
        failed: whether a seed ended in an error; a claim without its data is not a failure.
    """

    paper: Paper
    claim: Claim
    evidence: Evidence | None = None
    reason: str = ""
    failed: bool = False


def reproduce(
    papers: Sequence[Paper],
    *,
    out: Path,
    data: Path | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> list[Outcome]:
    """Run the claims of ``papers`` and write what they show to ``out``.

    ``out/results.json`` holds, by slug, every measurement, the evidence and the provenance; papers that were not part of
    this call, or could not run, keep their entry. ``out/SLUG.png`` is the paper's plot. Finished seeds are kept in
    ``out/.seeds`` and not run again as long as the code and the data are the same, so that a killed call goes on where it
    was. A seed that fails stops neither the other seeds nor the other papers.

    Args:
        papers: what to run.
        out: the folder to write.
        data: the folder of data sets; by default the environment variable ``POLYTASK_DATA``.
        seeds: seeds ``0 .. seeds - 1`` for each claim; by default each claim's own number.
        workers: processes; by default one for each core. A seed uses one thread, so its numbers do not depend on this.
        progress: called with the seeds that are done, all seeds, and a label.
    """
    if seeds is not None and seeds < 2:
        raise InputError(f"{seeds} seeds, expected at least two for an interval")
    if data is None and os.environ.get("POLYTASK_DATA"):
        data = Path(os.environ["POLYTASK_DATA"])
    write_text(out / ".seeds" / ".gitignore", "*\n")
    jobs = [job for paper in papers for job in _jobs(paper, out, data, seeds)]
    progress(0, len(jobs), "")
    failures: dict[str, str] = {}
    parallel = joblib.Parallel(n_jobs=workers or joblib.cpu_count(), return_as="generator_unordered")
    for done, (job, error) in enumerate(parallel(joblib.delayed(_run)(job) for job in jobs), start=1):
        if error:
            failures.setdefault(job.slug, f"seed {job.seed} failed: {error}")
        progress(done, len(jobs), f"{job.slug} seed {job.seed}")
    return [
        outcome
        for paper in papers
        for outcome in _conclude(paper, [job for job in jobs if job.slug == paper.slug], out, data, failures.get(paper.slug))
    ]


@dataclass(frozen=True)
class _Job:
    """One seed of one function that measures; claims with the same function share it."""

    slug: str
    run: Run
    seed: int
    data: Path
    cache: Path
    fingerprint: str

    def measured(self) -> dict[str, Any] | None:
        """What was kept of this seed, if the code and the data were the same then."""
        try:
            kept: dict[str, Any] = read_json(self.cache)
        except InputError:
            return None
        return kept if kept["fingerprint"] == self.fingerprint else None


def _jobs(paper: Paper, out: Path, data: Path | None, seeds: int | None) -> Iterator[_Job]:
    able = [claim for claim in paper.claims if claim.missing(data) is None]
    folder = data or Path()
    needs = sorted({name for claim in able for name in claim.needs})
    fingerprint = _fingerprint(paper.slug, [folder / name for name in needs])
    for run in dict.fromkeys(claim.run for claim in able):
        count = seeds or max(claim.seeds for claim in able if claim.run is run)
        for seed in range(count):
            cache = out / ".seeds" / paper.slug / f"{run.__name__}-{seed}.json"
            yield _Job(paper.slug, run, seed, folder, cache, fingerprint)


def _run(job: _Job) -> tuple[_Job, str]:
    """Measure one seed and keep it; the error, if any, as text, since one seed must not end the others."""
    if job.measured() is None:
        try:
            started = time.process_time()
            with threadpool_limits(1):
                found = {name: float(value) for name, value in job.run(job.seed, job.data).items()}
            seconds = round(time.process_time() - started, 2)
            write_json(job.cache, {"fingerprint": job.fingerprint, "cpu_seconds": seconds, "measurements": found})
        except Exception as error:
            return job, "".join(traceback.format_exception_only(error)).strip()
    return job, ""


def _conclude(paper: Paper, jobs: Sequence[_Job], out: Path, data: Path | None, failure: str | None) -> Iterator[Outcome]:
    """The outcome of each claim of one paper; what has evidence is written to ``out``."""
    measurements: dict[int, dict[str, float]] = {}
    by_run: dict[Run, dict[int, Measurements]] = {}
    seconds = 0.0
    for job in jobs:
        if kept := job.measured():
            by_run.setdefault(job.run, {})[job.seed] = kept["measurements"]
            measurements.setdefault(job.seed, {}).update(kept["measurements"])
            seconds += kept["cpu_seconds"]
    outcomes = []
    for claim in paper.claims:
        if reason := claim.missing(data):
            outcomes.append(Outcome(paper, claim, reason=reason))
        elif failure:
            outcomes.append(Outcome(paper, claim, reason=failure, failed=True))
        else:
            try:
                outcomes.append(Outcome(paper, claim, claim.judge(by_run[claim.run])))
            except InputError as error:
                outcomes.append(Outcome(paper, claim, reason=str(error), failed=True))
    if any(outcome.evidence for outcome in outcomes):
        _record(out / "results.json", paper, outcomes, measurements, seconds, data)
        figure = paper.plot(measurements) if paper.plot else forest(outcomes)
        with replacing(out / f"{paper.slug}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    yield from outcomes


def _record(
    path: Path,
    paper: Paper,
    outcomes: Sequence[Outcome],
    measurements: dict[int, dict[str, float]],
    seconds: float,
    data: Path | None,
) -> None:
    results = read_json(path) if path.exists() else {}
    needs = sorted({name for outcome in outcomes if outcome.evidence for name in outcome.claim.needs})
    results[paper.slug] = {
        "title": paper.title,
        "reference": paper.reference,
        "claims": [
            {
                "name": outcome.claim.name,
                "statement": outcome.claim.statement,
                "claimed": outcome.claim.claimed,
                "comment": outcome.claim.comment,
                "method": outcome.claim.method,
                "baseline": outcome.claim.baseline,
                "better": outcome.claim.better,
                "margin": outcome.claim.margin,
                "evidence": asdict(outcome.evidence),
            }
            for outcome in outcomes
            if outcome.evidence
        ],
        "measurements": measurements,
        "provenance": {
            "polytask": polytask.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "scikit-learn")},
            "machine": platform.machine(),
            "data": {name: sha256((data or Path()) / name) for name in needs},
            "cpu_seconds": round(seconds),
        },
    }
    write_json(path, dict(sorted(results.items())))


def forest(outcomes: Sequence[Outcome]) -> Figure:
    """The default plot: the gain of each claim with its interval, relative to the baseline's mean, and its margin."""
    from matplotlib.figure import Figure

    colours = {"holds": "#009e73", "contradicted": "#d55e00", "undecided": "0.45"}
    shown = [(outcome.claim, outcome.evidence) for outcome in outcomes if outcome.evidence]
    figure = Figure(figsize=(7.2, 1.2 + 0.5 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row, (claim, evidence) in enumerate(shown):
        unit = abs(sum(evidence.baseline)) / len(evidence.baseline) / 100 or 1.0
        error = [[(evidence.mean - evidence.low) / unit], [(evidence.high - evidence.mean) / unit]]
        axes.errorbar(evidence.mean / unit, row, xerr=error, fmt="o", capsize=3, color=colours[evidence.verdict])
        axes.plot(claim.margin / unit, row, marker="|", markersize=14, color="black")
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    axes.set_yticks(range(len(shown)), [f"{claim.name}: {evidence.verdict}" for claim, evidence in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("gain over the baseline, % of its mean (bar: 95 % interval; tick: the claim's margin)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _fingerprint(slug: str, data: Sequence[Path]) -> str:
    """A hash of all that a seed's numbers depend on: the data, the paper's code, what papers share, and the code below."""
    package = Path(polytask.__file__).parent
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        parts = source.relative_to(package).with_suffix("").parts
        other = parts[0] == "papers" and parts[1] != slug and not parts[1].startswith("_")
        if parts[0] in ("cli", "web") or other:
            continue
        digest.update(sha256(source).encode())
    for path in data:
        digest.update(sha256(path).encode())
    return digest.hexdigest()
