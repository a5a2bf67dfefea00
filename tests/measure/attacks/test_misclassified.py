"""The objective: what it says of logits, for any function."""

import torch

from polytask.measure.attacks import misclassified


def test_what_it_says_of_logits() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0])
    aim = misclassified(lambda x: x, cost=5.0)(logits, labels)
    assert aim.value.tolist() == [-2.0, 3.0] and aim.reached.tolist() == [False, True]
    assert aim.cost is not None and aim.cost.tolist() == [5.0, 5.0]
