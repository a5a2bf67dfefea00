"""Control: environments, what happens in them as data, and streams of it."""

from polytask.data.control.atari import Atari
from polytask.data.control.environments import Environment, Gymnasium, MinAtar, Step, environment
from polytask.data.control.interaction import Interaction, Replay
from polytask.data.control.play import Policy, epsilon_greedy, play, record
from polytask.data.control.transitions import Transition, TransitionBatches, Transitions

__all__ = [
    "Atari",
    "Environment",
    "Gymnasium",
    "Interaction",
    "MinAtar",
    "Policy",
    "Replay",
    "Step",
    "Transition",
    "TransitionBatches",
    "Transitions",
    "environment",
    "epsilon_greedy",
    "play",
    "record",
]
