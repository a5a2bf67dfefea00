import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polytask.errors import InputError
from polytask.measure import hits_at, mean_reciprocal_rank, pooled

SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@given(SCORES, SCORES, st.integers(1, 12))
def test_hits_by_counting(positive: list[int], negative: list[int], k: int) -> None:
    found = hits_at(torch.tensor(positive).float(), torch.tensor(negative).float(), k)
    if len(negative) < k:
        assert found == 1.0
    else:  # strictly above the k-th negative means that fewer than k negatives are at least as high
        hits = [sum(other >= score for other in negative) < k for score in positive]
        assert found == sum(hits) / len(hits)


def test_ranks_and_ties() -> None:
    positive = torch.tensor([3.0, 1.0, 2.0])
    negative = torch.tensor([[1.0, 2.0], [2.0, 3.0], [2.0, 2.0]])
    assert mean_reciprocal_rank(positive, negative) == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    with pytest.raises(InputError, match="expected"):
        mean_reciprocal_rank(positive, negative[0])


def test_pooled_scores_are_not_a_mean_over_batches() -> None:
    high, low = (torch.tensor([11.0]), torch.tensor([10.0])), (torch.tensor([1.0]), torch.tensor([0.0]))
    assert pooled(*high) == pooled(*low) == {"ap": 1.0, "auc": 1.0}
    both = pooled(torch.cat([high[0], low[0]]), torch.cat([high[1], low[1]]))
    assert both["auc"] == 0.75 and both["ap"] == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(InputError, match="0 negative"):
        pooled(torch.ones(1), torch.zeros(0))
