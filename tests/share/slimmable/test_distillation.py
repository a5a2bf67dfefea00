"""Distances of representations and of outputs, in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polytask import InputError, Task
from polytask.share.slimmable import output_distance, representation_distance


def pair(shape: tuple[int, ...] = (3, 6, 4, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_the_distance_of_directions_is_2_minus_2_cos() -> None:
    student, teacher = pair()
    expected = (2 - 2 * F.cosine_similarity(student, teacher, dim=1)).mean()
    torch.testing.assert_close(representation_distance(student, teacher), expected)
    flat = representation_distance(student[:, :, 0, 0], teacher[:, :, 0, 0])
    torch.testing.assert_close(flat, (2 - 2 * F.cosine_similarity(student, teacher, dim=1))[:, 0, 0].mean())


def test_the_distance_of_maps_is_2_minus_2_cos_of_them() -> None:
    student, teacher = pair()
    maps = [features.square().sum(1).flatten(1) for features in (student, teacher)]
    expected = (2 - 2 * F.cosine_similarity(*maps, dim=1)).mean()
    torch.testing.assert_close(representation_distance(student, teacher, "attention"), expected)
    assert representation_distance(student[:, :2], teacher, "attention").isfinite()


def test_the_distance_of_relations_is_the_mean_over_pairs_of_positions() -> None:
    student, teacher = pair((2, 3, 2, 2))
    rows, taught = student.flatten(2), teacher.flatten(2)
    total = 0.0
    for n in range(2):
        for i in range(4):
            for j in range(4):
                one, other = (F.cosine_similarity(x[n, :, i], x[n, :, j], dim=0) for x in (rows, taught))
                total += float(one - other) ** 2
    assert float(representation_distance(student, teacher, "relation")) == pytest.approx(total / 32, rel=1e-5)
    assert representation_distance(student[:, :1], teacher, "relation").isfinite()


@pytest.mark.parametrize("compare", ["direction", "attention", "relation"])
def test_features_are_compared_up_to_scale_and_the_teacher_gets_no_gradient(compare: str) -> None:
    student, teacher = pair()
    student.requires_grad_(), teacher.requires_grad_()
    representation_distance(student, teacher, compare).backward()
    assert student.grad is not None and student.grad.any() and teacher.grad is None
    same = representation_distance(teacher, teacher.detach(), compare)
    same.backward()
    assert same == 0 and teacher.grad is not None and not teacher.grad.any()
    assert float(representation_distance(7 * teacher.detach(), teacher, compare)) == pytest.approx(0, abs=1e-10)
    half = representation_distance(student.bfloat16() * 200, teacher.bfloat16() * 200, compare)
    torch.testing.assert_close(half, representation_distance(student, teacher, compare), rtol=0.02, atol=0.01)


def test_comparisons_of_positions_need_several() -> None:
    with pytest.raises(InputError, match=r"features \(3, 6\) have one position, 'relation' needs several"):
        representation_distance(*pair((3, 6)), "relation")
    with pytest.raises(InputError, match="unknown comparison 'atention' of representations: did you mean 'attention'"):
        representation_distance(*pair(), "atention")


def test_outputs_of_labels_are_compared_by_divergence_and_others_by_their_difference() -> None:
    student, teacher = pair((4, 3, 2, 2))
    kl = torch.distributions.kl_divergence
    classes = [torch.distributions.Categorical(logits=x.movedim(1, -1)) for x in (teacher, student)]
    yes = [torch.distributions.Bernoulli(logits=x) for x in (teacher, student)]
    expected = {
        Task.segmentation("t", classes=3): kl(*classes).mean(),
        Task.pixel_binary("t"): kl(*yes).mean(),
        Task.multilabel("t", labels=3): kl(*yes).mean(),
        Task.pixel_regression("t", outputs=3): (student - teacher).abs().mean(),
    }
    for task, value in expected.items():
        torch.testing.assert_close(output_distance(task, student, teacher), value)
        assert float(output_distance(task, teacher, teacher)) == pytest.approx(0, abs=1e-6)
        grown = [student.clone().requires_grad_(), teacher.clone().requires_grad_()]
        output_distance(task, *grown).backward()
        assert grown[0].grad is not None and grown[1].grad is None
