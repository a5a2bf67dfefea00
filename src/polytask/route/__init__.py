"""Route: the right expert for each input; the right tool is `polytask.route.tools`, experts that grow are `.continual`."""

from polytask.route.alternatives import Alternatives, alternatives_of, budget_loss, choosing, watched_choices
from polytask.route.bandit import Bandit
from polytask.route.choice import (
    LAMBDAS,
    Front,
    choose,
    incurred,
    order,
    plot_fronts,
    regret,
    selection_accuracy,
    soft_choice,
    sweep,
)
from polytask.route.dispatch import dispatch
from polytask.route.early_exit import EarlyExit, Exited, calibrate, confidence, efficacy, exit_costs
from polytask.route.encoders import NGramFeatures, SentenceFeatures, TextEncoder, text_encoders
from polytask.route.endpoint import Endpoint, EndpointFailure
from polytask.route.expert import Example, Expert, Losses, answering, predicting, scoring
from polytask.route.goals import FLAGS, Wish, normalised_costs, parse_flags, weighted_costs
from polytask.route.language_model import bits_per_character
from polytask.route.monitor import Monitor
from polytask.route.regression import fit_hidden, fit_rows
from polytask.route.robustness import early_fooled, early_only, fooling, slowing, view
from polytask.route.router import Decision, Router
from polytask.route.shallow_deep import MixedPool, exit_loss, exit_weights, internal_classifier
from polytask.route.table import Failure, LossTable
from polytask.route.temperatures import fit_temperatures

__all__ = [
    "FLAGS",
    "LAMBDAS",
    "Alternatives",
    "Bandit",
    "Decision",
    "EarlyExit",
    "Endpoint",
    "EndpointFailure",
    "Example",
    "Exited",
    "Expert",
    "Failure",
    "Front",
    "LossTable",
    "Losses",
    "MixedPool",
    "Monitor",
    "NGramFeatures",
    "Router",
    "SentenceFeatures",
    "TextEncoder",
    "Wish",
    "alternatives_of",
    "answering",
    "bits_per_character",
    "budget_loss",
    "calibrate",
    "choose",
    "choosing",
    "confidence",
    "dispatch",
    "early_fooled",
    "early_only",
    "efficacy",
    "exit_costs",
    "exit_loss",
    "exit_weights",
    "fit_hidden",
    "fit_rows",
    "fit_temperatures",
    "fooling",
    "incurred",
    "internal_classifier",
    "normalised_costs",
    "order",
    "parse_flags",
    "plot_fronts",
    "predicting",
    "regret",
    "scoring",
    "selection_accuracy",
    "slowing",
    "soft_choice",
    "sweep",
    "text_encoders",
    "view",
    "watched_choices",
    "weighted_costs",
]
