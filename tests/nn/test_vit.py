"""The vision transformer: its size, its shapes, and its blocks against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.model import Model
from polytask.nn.vit import Block, ViT
from polytask.task import Task

SIZES = {"size": (16, 24), "patch": 8, "embedding": 12, "depth": 3, "heads": 3}


def test_it_has_as_many_parameters_as_a_vit_small_and_a_vit_large() -> None:
    with torch.device("meta"):
        small, large = ViT((512, 512), 16, 384, 12, 12), ViT((384, 384), 16, 1024, 24, 16)
    assert sum(p.numel() for p in small.parameters()) == 21_982_848
    # timm's vit_large_patch16_384 without its last normalisation and its classifier.
    assert sum(p.numel() for p in large.parameters()) == 304_715_752 - 2 * 1024 - 1025 * 1000


def test_a_block_is_torch_s_own() -> None:
    torch.manual_seed(0)
    block = ViT(**SIZES).blocks[0].double()
    assert isinstance(block, Block)
    own = nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).double()
    names = {
        "self_attn.in_proj_weight": "attention.qkv.weight",
        "self_attn.in_proj_bias": "attention.qkv.bias",
        "self_attn.out_proj.weight": "attention.output.weight",
        "self_attn.out_proj.bias": "attention.output.bias",
        "linear1.weight": "mlp.hidden.weight",
        "linear1.bias": "mlp.hidden.bias",
        "linear2.weight": "mlp.output.weight",
        "linear2.bias": "mlp.output.bias",
    }
    state = block.state_dict()
    own.load_state_dict({name: state[names.get(name, name)] for name in own.state_dict()})
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(block(x), own(x))


def test_levels_stand_one_after_the_other() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 16, 24)
    several, last = ViT(**SIZES, levels=(1, 3)), ViT(**SIZES)
    last.load_state_dict(several.state_dict())
    found = several(images)
    assert found.shape == (2, 24, 2, 3) and several.width == 24 and last.width == 12
    torch.testing.assert_close(found[:, 12:], last(images))


def test_each_patch_has_its_place_and_reads_all_others() -> None:
    torch.manual_seed(0)
    encoder = ViT(**SIZES | {"depth": 1})
    images = torch.randn(1, 3, 16, 24)
    nn.init.zeros_(encoder.blocks[0].attention.output.weight)  # type: ignore[union-attr]
    before = encoder(images)
    images[:, :, 8:, 16:] += 1  # the last patch
    moved = (encoder(images) - before).abs().sum(1)[0] > 1e-6
    assert moved.tolist() == [[False, False, False], [False, False, True]]


def test_positions_follow_the_image() -> None:
    torch.manual_seed(0)
    encoder = ViT(**SIZES)
    assert encoder(torch.randn(2, 3, 32, 8)).shape == (2, 12, 4, 1)
    with torch.no_grad():
        encoder.positions[:, 1:] = torch.arange(3.0).repeat(2)[None, :, None]  # by column
    torch.testing.assert_close(encoder._positions((4, 3))[0, 1:, 0], torch.arange(3.0).repeat(4))


def test_branches_are_left_out_while_training_alone() -> None:
    torch.manual_seed(0)
    block = Block(4, 2, nn.Identity(), drop_path=0.5)
    nn.init.zeros_(block.attention.output.weight)
    nn.init.zeros_(block.attention.output.bias)
    block.mlp = Ones()
    x = torch.zeros(400, 3, 4)
    assert set(block.eval()(x).unique().tolist()) == {1.0}
    dropped = block.train()(x)
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and bool((dropped == dropped[:, :1, :1]).all())
    assert float(dropped.mean()) == pytest.approx(1, abs=0.15)
    assert [b.drop_path for b in ViT(**SIZES, drop_path=0.2).blocks] == pytest.approx([0, 0.1, 0.2])


class Ones(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def test_an_encoder_for_dense_tasks_also_in_half_precision() -> None:
    model = Model(ViT(**SIZES), [Task.segmentation("classes", 4), Task.pixel_binary("edge")])
    images, edge = torch.randn(2, 3, 16, 24), torch.rand(2, 16, 24).round()
    losses = model.losses((images, {"classes": torch.randint(4, (2, 16, 24)), "edge": edge}))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images)["edge"].dtype == torch.bfloat16


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="images of 16 x 20 pixels, expected multiples of 8"):
        ViT(**SIZES)(torch.randn(1, 3, 16, 20))
    with pytest.raises(InputError, match="5 heads, expected a divisor of the embedding, 12"):
        ViT(**SIZES | {"heads": 5})
    for levels in ((0, 1), (3, 2), (1, 4)):
        with pytest.raises(InputError, match="expected rising numbers from 1 to 3"):
            ViT(**SIZES, levels=levels)
