"""TaskMatrix.AI: APIs that are documented alike, found for each step of a request, and called by checked action code.

`polytask.route.tools` is the platform. A registry of documents, a selector, a planner (here one that needs no model) and an
executor that runs nothing but calls of what is registered:

>>> from polytask.route.tools import Executor, Lexical, Platform, Registry, Rules
>>> def forecast(city: str, days: int = 1) -> dict:
...     '''Forecast the weather of a city.'''
...     return {"city": city, "degrees": 20.5, "days": days}
>>> def say(text: str) -> str:
...     '''Say a text aloud.'''
...     return f"said: {text}"
>>> registry = Registry()
>>> platform = Platform(registry, Lexical(registry), Executor(), Rules())
>>> documents = [platform.add(function, isolated=False) for function in (forecast, say)]
>>> documents[0].signature()
'forecast(city: string, days: integer = 1) -> object'
>>> done = platform.complete("Forecast the weather for city Ghent in 3 days; say the text 'ready'.")
>>> done.verified, done.results["step1"]["days"], done.results["step2"]
(True, 3, 'said: ready')

The paper reports no figures. The claims here are about its parts, on real catalogues of APIs: see
`polytask.papers.taskmatrix.catalogues` and the modules beside it.
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper
from polytask.papers.taskmatrix.catalogues import FILES
from polytask.papers.taskmatrix.checks import measure
from polytask.papers.taskmatrix.picture import plot

__all__ = ["PAPER"]

_claim = partial(Claim, run=measure, needs=FILES, seeds=5, better="higher")

PAPER = Paper(
    slug="taskmatrix",
    title="TaskMatrix.AI: Completing Tasks by Connecting Foundation Models with Millions of APIs",
    family="dynamic",
    verbs=("route", "measure"),
    reference="Intelligent Computing 2024, arXiv 2303.16434",
    claims=(
        _claim(
            name="meaning",
            statement="of 1,726 models' APIs, search by meaning finds the one that a request wants more often among the "
            "first ten than search by words does, in points",
            method="models embedding recall@10",
            baseline="models lexical recall@10",
            claimed="semantic search",
        ),
        _claim(
            name="hybrid",
            statement="and both together more often than words alone",
            method="models hybrid recall@10",
            baseline="models lexical recall@10",
            claimed="an ablation of ours",
        ),
        _claim(
            name="domains",
            statement="the first API that both together find is more often of the right domain than the first by words",
            method="models hybrid domain",
            baseline="models lexical domain",
            claimed="an ablation of ours; the API wanted is one of several that would do",
        ),
        _claim(
            name="modules first",
            statement="choosing three of 61 domains first loses at most 2 points among the first ten",
            method="models modules recall@10",
            baseline="models embedding recall@10",
            margin=-2,
            claimed="the module strategy",
        ),
        _claim(
            name="modules' cost",
            statement="and scores fewer than a quarter of the documents",
            method="models modules scored",
            baseline="models quarter",
            better="lower",
            claimed="the module strategy",
        ),
        _claim(
            name="description",
            statement="with names and descriptions a function is found among 3,105 more often than by names, in points "
            "of the first five",
            method="functions description recall@5",
            baseline="functions name recall@5",
            claimed="documentation of one format",
        ),
        _claim(
            name="parameters",
            statement="and with the parameters' names and descriptions more often again",
            method="functions parameters recall@5",
            baseline="functions description recall@5",
            claimed="documentation of one format",
        ),
        _claim(
            name="abstention",
            statement="the best score among what is offered tells whether any function fits: an area under the ROC curve of "
            "0.75 at least, in percent",
            method="abstention area",
            baseline="abstention bar",
            claimed="an ablation of ours",
        ),
        _claim(
            name="grammar",
            statement="all calls of 200 real compositions are read by the grammar of literals, with names and parameters "
            "that their documents have",
            method="calls accepted",
            baseline="calls bar",
            claimed="action code is checked before it is run",
            comment="Types are not part of this: one of 1,142 calls names a ticket by a text where its document has a "
            "number, and the executor would refuse it.",
        ),
        _claim(
            name="corruption",
            statement="of the same calls with a parameter missing, unknown, or of another type at least 99 % are refused",
            method="calls refused",
            baseline="calls bar",
            claimed="action code is checked before it is run",
        ),
        _claim(
            name="feedback",
            statement="usage examples from requests that failed raise what is found by words for other requests, in "
            "points of the first five",
            method="feedback lexical after",
            baseline="feedback lexical before",
            claimed="documents improve by feedback",
        ),
        _claim(
            name="feedback, hybrid",
            statement="and what both together find",
            method="feedback hybrid after",
            baseline="feedback hybrid before",
            claimed="documents improve by feedback",
        ),
    ),
    plot=plot,
)
