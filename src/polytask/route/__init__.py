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
from polytask.route.early_exit import EarlyExit, Exited, calibrate, confidence
from polytask.route.encoders import NGramFeatures, SentenceFeatures, TextEncoder, text_encoders
from polytask.route.endpoint import Endpoint, EndpointFailure
from polytask.route.expert import Example, Expert, Losses, answering, predicting, scoring
from polytask.route.goals import FLAGS, Wish, normalised_costs, parse_flags, weighted_costs
from polytask.route.language_model import bits_per_character
from polytask.route.monitor import Monitor
from polytask.route.regression import fit_hidden, fit_rows
from polytask.route.router import Decision, Router
from polytask.route.table import Failure, LossTable

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
    "fit_hidden",
    "fit_rows",
    "incurred",
    "normalised_costs",
    "order",
    "parse_flags",
    "plot_fronts",
    "predicting",
    "regret",
    "scoring",
    "selection_accuracy",
    "soft_choice",
    "sweep",
    "text_encoders",
    "watched_choices",
    "weighted_costs",
]
