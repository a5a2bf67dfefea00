"""Route: the right expert for each input."""

from polytask.route.bandit import Bandit
from polytask.route.choice import (
    LAMBDAS,
    Front,
    choose,
    incurred,
    nondominated,
    order,
    plot_fronts,
    regret,
    selection_accuracy,
    soft_choice,
    sweep,
)
from polytask.route.encoders import NGramFeatures, SentenceFeatures, TextEncoder, text_encoders
from polytask.route.endpoint import Endpoint, EndpointFailure
from polytask.route.expert import Example, Expert, Losses, answering, predicting, scoring
from polytask.route.goals import FLAGS, Wish, normalised_costs, parse_flags, weighted_costs
from polytask.route.language_model import bits_per_character
from polytask.route.regression import fit_hidden, fit_rows
from polytask.route.router import Decision, Router
from polytask.route.table import Failure, LossTable

__all__ = [
    "FLAGS",
    "LAMBDAS",
    "Bandit",
    "Decision",
    "Endpoint",
    "EndpointFailure",
    "Example",
    "Expert",
    "Failure",
    "Front",
    "LossTable",
    "Losses",
    "NGramFeatures",
    "Router",
    "SentenceFeatures",
    "TextEncoder",
    "Wish",
    "answering",
    "bits_per_character",
    "choose",
    "fit_hidden",
    "fit_rows",
    "incurred",
    "nondominated",
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
    "weighted_costs",
]
