"""A map of embeddings: groups that are apart stay apart, and nothing is drawn that has no label."""

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from polytask.errors import InputError
from polytask.report import embedding_map


def places(figure: object) -> list[np.ndarray]:
    (ax,) = figure.axes  # type: ignore[attr-defined]
    return [np.asarray(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)]


def test_groups_stay_apart_and_rows_without_a_label_are_left_out() -> None:
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    embeddings = torch.eye(3)[labels] * (1 + torch.rand(60, 1)) + 0.02 * torch.randn(60, 3)
    labels[:6] = -1
    figure = embedding_map(embeddings, labels, ["a", "b", "c"])
    groups = places(figure)
    assert [len(group) for group in groups] == [18, 18, 18]
    centres = np.stack([group.mean(0) for group in groups])
    spread = max(np.linalg.norm(group - group.mean(0), axis=1).max() for group in groups)
    assert min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 2 * spread
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]


def test_many_rows_are_thinned_and_few_will_do() -> None:
    embeddings, labels = torch.randn(200, 4), torch.arange(200) % 13
    assert sum(map(len, places(embedding_map(embeddings, labels, most=50)))) == 50
    assert sum(map(len, places(embedding_map(embeddings[:4], labels[:4])))) == 4


@pytest.mark.parametrize(("count", "known"), [(3, 3), (9, 2)])
def test_too_few_rows_are_refused(count: int, known: int) -> None:
    with pytest.raises(InputError, match=f"{known} of them known, expected"):
        embedding_map(torch.randn(count, 4), torch.where(torch.arange(count) < known, 0, -1))
