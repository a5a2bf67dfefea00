"""Tickets: saved, loaded, drawn whole or in part, trained with their masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.shrink import Ticket, find_structure, magnitude_masks, remove, save_sparse


class Network(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x))
        return out


def drawn() -> tuple[Network, Ticket]:
    torch.manual_seed(0)
    network = Network().eval()
    small = remove(network, find_structure(network, torch.randn(2, 5)), {"encoder.0": [1, 4, 5]})
    return small, Ticket.of(small, magnitude_masks(small, 0.5))


def test_a_ticket_is_the_masked_network_again(tmp_path: Path) -> None:
    small, ticket = drawn()
    x = torch.randn(6, 5)
    with ticket.masks.effective(small):
        expected = small(x)
    ticket.save(tmp_path / "ticket.safetensors")
    for found in (ticket, Ticket.load(tmp_path / "ticket.safetensors")):
        again = Network().eval()
        masks = found.draw(again)
        torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
        assert all(torch.equal(mask, ticket.masks.keep[name]) for name, mask in masks.keep.items())
        assert again.encoder[0].out_features == 5


def test_a_part_moves_to_another_task_and_trains_with_its_masks() -> None:
    small, ticket = drawn()
    other = Network(classes=7)
    head = other.head.weight.detach().clone()
    masks = ticket.draw(other, part="encoder")
    assert set(masks.keep) == {"encoder.0.weight", "encoder.2.weight"} and torch.equal(other.head.weight, head)
    optimizer = torch.optim.AdamW(other.parameters(), 1e-2)
    with masks.held(other):
        for _ in range(3):
            optimizer.zero_grad()
            other(torch.randn(8, 5)).square().sum().backward()
            optimizer.step()
    for name, mask in masks.keep.items():
        weight = other.get_parameter(name)
        assert (weight[~mask] == 0).all() and (weight[mask] != small.get_parameter(name)[mask]).all()


def test_what_does_not_fit(tmp_path: Path) -> None:
    _, ticket = drawn()
    with pytest.raises(InputError, match=r"head.weight is \(7, 4\), expected \(3, 4\)"):
        ticket.draw(Network(classes=7))
    with pytest.raises(InputError, match="no part 'trunk'"):
        ticket.draw(Network(), part="trunk")
    plain = Network()
    save_sparse(plain, magnitude_masks(plain, 0.5), tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="no architecture"):
        Ticket.load(tmp_path / "plain.safetensors")
