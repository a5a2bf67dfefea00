"""Continual learning without task labels: TAME (Zhu et al., 2024) on any stream of batches.

A rise of the loss says that the task has changed; `TAME` then goes on with a known expert, or with a new one. A selector,
trained on a small sample of what was seen, chooses the expert of each input afterwards.
"""

from polytask.route.continual.detector import ShiftDetector
from polytask.route.continual.pruning import Pruning, sparsity
from polytask.route.continual.reservoir import Reservoir
from polytask.route.continual.routed import RoutedExperts, fit_selector
from polytask.route.continual.tame import TAME, Event

__all__ = ["TAME", "Event", "Pruning", "Reservoir", "RoutedExperts", "ShiftDetector", "fit_selector", "sparsity"]
