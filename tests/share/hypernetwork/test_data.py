"""Support sets and single examples as conditions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.share.hypernetwork import Example, Hyperfan, HyperNetwork, Support


class Pairs(nn.Module):
    """Embeds pairs of inputs and labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, pairs: tuple[Tensor, Tensor]) -> Tensor:
        x, y = pairs
        out: Tensor = (self.layer(x)[:, :, None] * nn.functional.one_hot(y, 2)[:, None]).flatten(1)
        return out


def test_a_support_set_makes_one_network_whatever_its_order() -> None:
    torch.manual_seed(0)
    hyper = HyperNetwork(nn.Linear(4, 2), Support(Pairs(), 12), start=Hyperfan())
    x, y, query = torch.randn(8, 4), torch.arange(8) % 2, torch.randn(5, 4)
    order = torch.randperm(8)
    torch.testing.assert_close(hyper(query, (x, y)), hyper(query, (x[order], y[order])))
    assert not torch.allclose(hyper(query, (x, y)), hyper(query, (x, 1 - y)), atol=1e-3)
    torch.testing.assert_close(hyper.network((x, y))(query), hyper(query, (x, y)))
    hyper(query, (x, y)).sum().backward()
    assert float(hyper.context.encoder.layer.weight.grad.abs().sum()) > 0
    with pytest.raises(InputError, match="expected a support set"):
        hyper(query)


@pytest.mark.parametrize("vectorize", [True, False])
def test_an_example_has_a_network_of_its_own(vectorize: bool) -> None:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2))
    hyper = HyperNetwork(target, Example(nn.Linear(4, 3), 3), start=Hyperfan(), vectorize=vectorize)
    x = torch.randn(6, 4)
    expected = [hyper.network(row[None])(row) for row in x]
    torch.testing.assert_close(hyper(x), torch.stack(expected))
    torch.testing.assert_close(hyper(x[:1]), hyper(x)[:1])
    # The condition may be something else of the example than its inputs.
    other = torch.randn(6, 4)
    expected = [hyper.network(about[None])(row) for about, row in zip(other, x, strict=True)]
    torch.testing.assert_close(hyper(x, other), torch.stack(expected))


def test_named_inputs_and_a_recurrent_target() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.rnn = nn.Embedding(7, 3), nn.GRU(3, 4, batch_first=True)

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            out: Tensor = self.rnn(self.words(inputs["words"]))[0][:, -1] * inputs["weight"][:, None]
            return out

    torch.manual_seed(0)
    condition = Example(nn.Linear(2, 3), 3)
    hyper = HyperNetwork(Reader(), condition, start=Hyperfan(), predict="rnn.*", vectorize=False)
    inputs = {"words": torch.randint(7, (4, 6)), "weight": torch.rand(4)}
    about = torch.randn(4, 2)
    expected = [hyper.network(about[i : i + 1])({k: v[i : i + 1] for k, v in inputs.items()}) for i in range(4)]
    torch.testing.assert_close(hyper(inputs, about), torch.cat(expected))
