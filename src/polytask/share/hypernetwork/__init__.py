"""Hypernetworks: one network makes the weights of another, for each task, value, draw of noise or example.

`HyperNetwork` composes the choices: what conditions (`Tasks`, `Values`, `Noise`, `Support`, `Example`), in which pieces
weights are made (`Once`, `Heads`, `PerLayer`, `Chunks`, `LowRank`), by what architecture (`MLP`, `LSTM`, `Attention`), and
how large they are at first (`Zero`, `Hyperfan`, `FanOut`).
"""

from polytask.share.hypernetwork.architectures import LSTM, MLP, Architecture, Attention, Body
from polytask.share.hypernetwork.contexts import Context, Contexts, Source
from polytask.share.hypernetwork.data import Example, Support
from polytask.share.hypernetwork.encodings import ENCODINGS, complement, cos_sin
from polytask.share.hypernetwork.hypernetwork import HyperNetwork
from polytask.share.hypernetwork.initialisation import FanOut, Hyperfan, Initialisation, Zero
from polytask.share.hypernetwork.layout import Entry, Layout
from polytask.share.hypernetwork.strategies import Chunks, Heads, LowRank, Once, PerLayer, Strategy
from polytask.share.hypernetwork.tasks import Tasks
from polytask.share.hypernetwork.terms import Remembered, Spread
from polytask.share.hypernetwork.values import Noise, Values

__all__ = [
    "ENCODINGS",
    "LSTM",
    "MLP",
    "Architecture",
    "Attention",
    "Body",
    "Chunks",
    "Context",
    "Contexts",
    "Entry",
    "Example",
    "FanOut",
    "Heads",
    "HyperNetwork",
    "Hyperfan",
    "Initialisation",
    "Layout",
    "LowRank",
    "Noise",
    "Once",
    "PerLayer",
    "Remembered",
    "Source",
    "Spread",
    "Strategy",
    "Support",
    "Tasks",
    "Values",
    "Zero",
    "complement",
    "cos_sin",
]
