from __future__ import annotations

import pytest
import torch
from tests.merge.rules.models import assert_close, make_models, merge

from polytask.errors import InputError
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.average import Average


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [3.0, 1.0, 0.5], [2.0, -0.5, 0.0]])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("with_base", [True, False])
def test_the_mean(weights: list[float], normalize: bool, with_base: bool) -> None:
    base, models = make_models()
    total = sum(weights) if normalize else 1
    expected = {n: sum(w / total * m[n].double() for w, m in zip(weights, models, strict=True)) for n in base}
    for chunk in (4096, 2**16):
        assert_close(merge(Average(weights, normalize), models, base if with_base else None, chunk), expected)


def test_weights_that_cannot_be_normalised() -> None:
    _, models = make_models(count=2)
    with pytest.raises(InputError, match=r"\[1.0, -1.0\] add up to 0"):
        merge_state_dicts(Average([1, -1]), models)
    assert torch.equal(merge_state_dicts(Average([1, -1], normalize=False), models)["d"], models[0]["d"] - models[1]["d"])
