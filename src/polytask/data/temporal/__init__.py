"""Temporal streams: events between nodes in order of time, read from files, split by time, and read in batches."""

from polytask.data.temporal.batches import EventBatch, EventBatches
from polytask.data.temporal.data_set import EventData, load_event_data
from polytask.data.temporal.events import Events
from polytask.data.temporal.load import load_events
from polytask.data.temporal.negatives import NEGATIVES, Negatives
from polytask.data.temporal.rows import event_rows, layout
from polytask.data.temporal.schema import EventSchema, Questions
from polytask.data.temporal.split import EventSplit, hide_nodes, split_events

__all__ = [
    "NEGATIVES",
    "EventBatch",
    "EventBatches",
    "EventData",
    "EventSchema",
    "EventSplit",
    "Events",
    "Negatives",
    "Questions",
    "event_rows",
    "hide_nodes",
    "layout",
    "load_event_data",
    "load_events",
    "split_events",
]
