"""Search for sub-networks: a space of configurations, one callable that evaluates one, and strategies that propose them."""

from polytask.shrink.search._strategy import Strategy, strategies
from polytask.shrink.search.age_moea import AGEMOEA
from polytask.shrink.search.distributions import Distributions
from polytask.shrink.search.evaluator import Evaluator
from polytask.shrink.search.found import Found, Trial
from polytask.shrink.search.full_search import FullSearch
from polytask.shrink.search.goal import Goal
from polytask.shrink.search.linas import LINAS
from polytask.shrink.search.nsga2 import NSGA2
from polytask.shrink.search.one_run import FoundByTask, choose, search_tasks
from polytask.shrink.search.one_supernet import OneRun, Validated
from polytask.shrink.search.popdb import reduce_space
from polytask.shrink.search.predictor import Predictor
from polytask.shrink.search.random import Random
from polytask.shrink.search.reinforce import MultiTaskReinforce
from polytask.shrink.search.search import search
from polytask.shrink.search.space import Space

__all__ = [
    "AGEMOEA",
    "LINAS",
    "NSGA2",
    "Distributions",
    "Evaluator",
    "Found",
    "FoundByTask",
    "FullSearch",
    "Goal",
    "MultiTaskReinforce",
    "OneRun",
    "Predictor",
    "Random",
    "Space",
    "Strategy",
    "Trial",
    "Validated",
    "choose",
    "reduce_space",
    "search",
    "search_tasks",
    "strategies",
]
