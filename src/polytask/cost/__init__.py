"""What running a module costs: operations, parameters and activations counted without computing, and time measured."""

from polytask.cost.counting import Count, Counts, count, macs
from polytask.cost.latency import Latency, measure_latency
from polytask.cost.table import LatencyTable

__all__ = ["Count", "Counts", "Latency", "LatencyTable", "count", "macs", "measure_latency"]
