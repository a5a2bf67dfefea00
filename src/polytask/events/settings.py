"""Models of events by name: settings that build them, and that a saved model holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from polytask.events.model import EventModel
from polytask.register import Register


@dataclass(frozen=True)
class EventSettings(ABC):
    """What builds a model of events. A subclass has more of them, JSON values with defaults.

    Args:
        nodes: of the stream.
        edge_width: how many features an event has.
    """

    nodes: int
    edge_width: int = 0

    @abstractmethod
    def build(self) -> EventModel:
        """A new model, which has seen nothing."""


event_models: Register[type[EventSettings]] = Register("model of events")
"""Models that `polytask fit --events` trains and `load` builds again. Enrol settings with ``@event_models.add("name")``."""
