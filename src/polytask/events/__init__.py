"""Models of streams of events: trained, saved with their memory, and going on from it."""

from polytask.events.fitting import fit_and_save, rehearse
from polytask.events.model import EventModel
from polytask.events.predicting import evaluate_events, predict_events
from polytask.events.settings import EventSettings, event_models
from polytask.events.store import SavedEvents, load, save, save_again
from polytask.events.tgn import EMBEDDINGS, TGN, Embedded, TGNSettings, node_embedding, tgn

__all__ = [
    "EMBEDDINGS",
    "TGN",
    "Embedded",
    "EventModel",
    "EventSettings",
    "SavedEvents",
    "TGNSettings",
    "evaluate_events",
    "event_models",
    "fit_and_save",
    "load",
    "node_embedding",
    "predict_events",
    "rehearse",
    "save",
    "save_again",
    "tgn",
]
