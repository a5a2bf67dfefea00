"""Held-out batches beside the training batches, for balancers that learn their weights on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from polytask.data.stream import Stream
from polytask.errors import InputError

FIRST_EPOCH = 1021
"""Further batches of the training data are those of epochs from here on: in another order than those just trained on."""


class HeldOut:
    """A stream read by number: a batch is a function of its number alone, so that a killed run goes on the same.

    Args:
        stream: what to read, over and over, from epoch `FIRST_EPOCH` on.
    """

    def __init__(self, stream: Stream) -> None:
        if len(stream) == 0:
            raise InputError("the held-out data has no whole batch, expected at least one")
        self.stream = stream
        self.following = -1
        self.batches: Iterator[Any] = iter(())

    def batch(self, number: int) -> Any:
        """The batch of this number; cheap when it is the one after the last."""
        epoch, place = divmod(number, len(self.stream))
        if number != self.following or place == 0:
            self.batches = iter(self.stream.epoch(FIRST_EPOCH + epoch, place))
        self.following = number + 1
        for batch in self.batches:
            return batch
        raise InputError(f"the held-out data says that it has {len(self.stream)} batches, and has {place}")


def further(stream: Stream) -> HeldOut:
    """Further batches of the training data, whose stream is read a second time while it is being trained on."""
    for source in (stream, *getattr(stream, "sources", {}).values()):
        if getattr(getattr(source, "loader", None), "persistent_workers", False):
            raise InputError(
                "a data loader with persistent workers cannot be read twice at once: give the balancer held_out= data"
            )
    return HeldOut(stream)
