from __future__ import annotations

import pytest
import torch
from tests.merge.rules.models import assert_close, deltas, make_models, merge

from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.average import Average
from polytask.merge.rules.task_arithmetic import TaskArithmetic


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [3.0, -1.0, 0.5]])
def test_the_scaled_sum(weights: list[float]) -> None:
    base, models = make_models()
    expected = {
        name: base[name].double() + 0.3 * torch.tensordot(torch.tensor(weights).double(), tau, 1)
        for name, tau in deltas(base, models).items()
    }
    for chunk in (4096, 2**16):
        assert_close(merge(TaskArithmetic(weight=weights), models, base, chunk), expected)


def test_special_cases() -> None:
    base, models = make_models()
    assert_close(merge_state_dicts(TaskArithmetic(1 / 3), models, base), merge_state_dicts(Average(), models))
    assert_close(merge_state_dicts(TaskArithmetic(0), models, base), base)
    # Forgetting a task goes as far to the other side.
    away = merge_state_dicts(TaskArithmetic(1, -1), models[:1], base)
    assert_close({name: (away[name] + models[0][name]) / 2 for name in base}, base)
