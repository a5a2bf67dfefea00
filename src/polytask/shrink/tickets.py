"""A lottery ticket as an object: a smaller network, which of its weights are left, and their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.shrink.masks import Masks, read_sparse, write_sparse
from polytask.shrink.removal import Shrunk, resize


@dataclass(frozen=True, eq=False)
class Ticket:
    """An architecture, as what was removed from a network as it is built; masks; and the tensors, zero where masked.

    Attributes:
        shrunk: what was removed (`polytask.shrink.remove`), nothing for a network of full size.
        masks: of the smaller network.
        tensors: its state by name, on the processor.

    >>> network = nn.Linear(4, 2)
    >>> ticket = Ticket.of(network, Masks({"weight": torch.eye(2, 4).bool()}))
    >>> masks = ticket.draw(nn.Linear(4, 2))
    >>> masks.sparsity, int((ticket.tensors["weight"] != 0).sum())
    (0.75, 2)
    """

    shrunk: Shrunk
    masks: Masks
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module, masks: Masks) -> Ticket:
        """The ticket of a network, which stays as it is, with these masks."""
        tensors = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        for name, mask in masks.keep.items():
            if name not in tensors or tensors[name].shape != mask.shape:
                found = tuple(tensors[name].shape) if name in tensors else "missing"
                raise InputError(f"mask of {name}: {tuple(mask.shape)}, and the tensor is {found}")
            tensors[name].masked_fill_(~mask.cpu(), 0)
        return cls(getattr(network, "shrunk", None) or Shrunk(), masks, tensors)

    def save(self, path: Path | str) -> None:
        """Write it to a safetensors file as `save_sparse` does, with what was removed beside it; whole or absent."""
        write_sparse(self.tensors, self.masks, path, {"shrunk": json.dumps(asdict(self.shrunk))})

    @classmethod
    def load(cls, path: Path | str) -> Ticket:
        """The ticket in a file; `InputError` for a file that is missing, truncated, or of another kind."""
        tensors, masks, about = read_sparse(path)
        if "shrunk" not in about:
            raise InputError(f"{path}: no architecture beside its tensors, expected what Ticket.save writes")
        return cls(Shrunk(**json.loads(about["shrunk"])), masks, tensors)

    def draw(self, network: nn.Module, part: str = "") -> Masks:
        """Make ``network``, as it is built, this ticket, in place: its sizes and values; gives its masks.

        For another task take the part that the tasks share, and build the rest anew; what reads the part is built for the
        features that it gives now. Train with ``masks.held(network)``, and the masks stay as they are.

        Args:
            network: with modules of the ticket's names, of full size.
            part: the module to take, such as ``"encoder"``; everything by default.

        Raises:
            InputError: the network lacks a tensor of the ticket, or has it in another shape. It may be changed by then.
        """
        prefix = f"{part}." if part else ""
        tensors = {name: value for name, value in self.tensors.items() if name.startswith(prefix)}
        if not tensors:
            raise InputError(f"the ticket has no part {part!r}: its tensors are {', '.join(list(self.tensors)[:3])}, ...")
        shapes = {name: shape for name, shape in self.shrunk.shapes.items() if name.startswith(prefix)}
        counters = {name: value for name, value in self.shrunk.counters.items() if name.startswith(prefix)}
        if shapes:
            resize(network, Shrunk(shapes, counters, self.shrunk.removed))
        own = network.state_dict()
        for name, value in tensors.items():
            if name not in own or own[name].shape != value.shape:
                found = tuple(own[name].shape) if name in own else "missing"
                raise InputError(f"{name} is {found}, expected {tuple(value.shape)} as the ticket has it")
            with torch.no_grad():
                own[name].copy_(value)
        return Masks({name: mask for name, mask in self.masks.keep.items() if name.startswith(prefix)})
