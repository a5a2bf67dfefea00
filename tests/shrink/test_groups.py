"""Groups: what has to go together, what is kept and why; torch-pruning's graph as an independent opinion."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.cost.networks import ResNet50
from tests.shrink.networks import NETWORKS, Residual, built
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.shrink import find_structure, remove


@pytest.mark.parametrize("name", NETWORKS)
def test_the_groups_of_a_network(name: str) -> None:
    network, x, units = built(name)
    network.train()
    structure = find_structure(network, x)
    assert {group.name: group.units for group in structure.groups} == units
    assert network.training and all(module.training for module in network.modules())


def test_members_channels_and_layers() -> None:
    network, x, _ = built("residual")
    stem, a = find_structure(network, x).groups
    assert stem.layers == ("stem", "b") and stem.channels == 8
    assert {(m.tensor, m.dim, m.role) for m in stem.members} == {
        ("stem.weight", 0, "out"), ("stem.bias", 0, "beside"), ("norm.weight", 0, "scale"), ("norm.bias", 0, "beside"),
        ("norm.running_mean", 0, "beside"), ("norm.running_var", 0, "beside"), ("a.weight", 1, "in"), ("b.weight", 0, "out"),
        ("head.weight", 1, "in"),
    }  # fmt: skip
    assert repr(a) == "Group('a', units=6, channels=6, layers=['a'])"
    vit, x, _ = built("vit")
    heads = find_structure(vit, x)["0.blocks.1.attention.qkv"]
    assert heads.channels == 36 and heads.counters == (("0.blocks.1.attention", "heads"),)
    weight = next(m for m in heads.members if m.tensor.endswith("qkv.weight"))
    assert weight.units.tolist() == 3 * [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("name", ["residual", "chain", "resnet"])
def test_torch_pruning_removes_the_same(name: str) -> None:
    tp = pytest.importorskip("torch_pruning")
    network, x = (ResNet50(7).eval(), torch.randn(1, 3, 32, 32)) if name == "resnet" else built(name)[:2]
    structure = find_structure(network, x)
    for group in structure.groups[:5]:
        theirs = copy.deepcopy(network)
        graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=x)
        layer = theirs.get_submodule(group.name)
        gone = [0, group.units - 2]
        kind = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
        graph.get_pruning_group(layer, kind, idxs=gone).prune()
        ours = remove(network, structure, {group.name: gone}).state_dict()
        for key, tensor in theirs.state_dict().items():
            assert torch.equal(tensor, ours[key]), (group, key)


class Cases(nn.Module):
    """A layer, an operation, a layer."""

    def __init__(self, operation: str, width: int = 8) -> None:
        super().__init__()
        self.operation, self.width = operation, width
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(width, 3)
        self.rnn = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        match self.operation:
            case "norm":
                x = self.norm(x)
            case "lstm":
                x = self.rnn(x)[0]
            case "attention":
                x = self.attention(x, x, x)[0]
            case "product":
                x = torch.softmax(x @ x.mT, -1) @ x
            case "softmax":
                x = x.softmax(-1)
            case "slice":
                x = x[..., :5]
            case "shuffle":
                x = x.unflatten(-1, (2, 4)).mT.flatten(-2)
            case "roll":
                x = x.roll(1, -1)
            case "halves":
                x = torch.cat(x.chunk(2, -1)[::-1], -1)
            case "written":
                x = x.view(-1, 8)
            case "assigned":
                x = x.clone()
                x[:, 0] = 0
            case "constant":
                x = x * torch.arange(8)
            case "cumulated":
                x = x.cumsum(-1)
            case "einsum":
                x = torch.einsum("btc,bsc->bts", x, x) @ x
        out: Tensor = self.b(x)
        return out


@pytest.mark.parametrize(
    ("operation", "width", "reason"),
    [
        ("norm", 8, "`layer_norm` in norm runs over"),
        ("lstm", 8, "`lstm` in rnn"),
        ("attention", 8, "`multi_head_attention_forward` in attention"),
        ("product", 8, "`matmul` in the network itself"),
        ("softmax", 8, "`softmax`"),
        ("slice", 5, "`getitem` in the network itself takes part"),
        ("shuffle", 8, "splits their dimension"),
        ("roll", 8, "`roll`"),
        ("halves", 8, "`chunk` in the network itself cuts"),
        ("written", 8, "read sizes from tensors"),
        ("assigned", 8, "`setitem`"),
        ("constant", 8, "has a constant for each of them"),
        ("cumulated", 8, "`cumsum`"),
        ("einsum", 8, "`einsum`"),
    ],
)
def test_what_cannot_be_removed_has_a_reason(operation: str, width: int, reason: str) -> None:
    with pytest.raises(InputError, match=f"no channels can be removed.*a: .*{reason}"):
        find_structure(Cases(operation, width), torch.randn(2, 3, 4))
    assert [g.name for g in find_structure(Cases("none"), torch.randn(2, 3, 4)).groups] == ["a"]


class Tied(nn.Module):
    """One matrix embeds tokens and gives their scores; a head is used by two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.a, self.b, self.shared = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.table(ids)
        return F.linear(x, self.table.weight), self.shared(self.a(x).relu()), self.shared(self.b(x).relu())


def test_tied_weights_and_shared_heads() -> None:
    structure = find_structure(Tied(), torch.tensor([[1, 2, 3]]))
    assert {group.name: group.layers for group in structure.groups} == {"table": ("table",), "a": ("a", "b")}


def test_errors_name_what_was_wrong() -> None:
    network, x, _ = built("residual")
    structure = find_structure(network, x)
    with pytest.raises(InputError, match="'head' cannot be removed: they are the network's output"):
        remove(network, structure, {"head": [0]})
    with pytest.raises(InputError, match="no group 'stm': did you mean 'stem'"):
        remove(network, structure, {"stm": [0]})
    with pytest.raises(InputError, match="unit 8, expected numbers from 0 to 7"):
        remove(network, structure, {"stem": [0, 8]})
    with pytest.raises(InputError, match="all 6 units"):
        remove(network, structure, {"a": range(6)})
    with pytest.raises(InputError, match=r"stem.weight is \(7, 3, 3, 3\), expected 8 places"):
        remove(remove(network, structure, {"stem": [0]}), structure, {"stem": [0]})
    with pytest.raises(InputError, match="Residual: cannot be traced: it does not run on the example inputs"):
        find_structure(Residual(), torch.randn(2, 5))


def test_an_operation_without_a_rule_keeps_what_it_reads_and_no_more() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    structure = find_structure(layer, torch.randn(2, 5, 16))
    assert [(group.name, group.units) for group in structure.groups] == [("linear1", 32)]
