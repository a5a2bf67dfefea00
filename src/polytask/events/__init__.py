"""Models of streams of events: what all of them do between batches, and temporal graph networks."""

from polytask.events.model import EventModel
from polytask.events.tgn import EMBEDDINGS, TGN, Embedded, node_embedding, tgn

__all__ = [
    "EMBEDDINGS",
    "TGN",
    "Embedded",
    "EventModel",
    "node_embedding",
    "tgn",
]
