"""The least change: the distance to a linear model's boundary, Adam by hand, and what counts as found."""

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.measure.attacks import Aim, carlini_wagner, misclassified, nearest


def linear() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images = 0.4 + 0.2 * torch.rand(6, 3, 2, 2)
    return model, images, model(images).argmax(1)


def test_the_distance_to_a_linear_boundary() -> None:
    model, images, labels = linear()
    direction = model[1].weight.detach().diff(dim=0)[0]  # type: ignore[index]
    margins = model(images).detach().diff(dim=1)[:, 0].abs()
    for confidence in (0.0, 0.1):
        found = carlini_wagner(
            misclassified(model), images, labels, confidence=confidence, lr=0.02, steps=80, searches=6, weight=0.3
        )
        far = (found.images - images).flatten(1).norm(dim=1)
        assert found.reached.all()
        expected = (margins + confidence) / direction.norm()
        assert (far >= expected - 1e-5).all() and (far <= 1.03 * expected + 2e-3).all()
        after = model(found.images).detach().diff(dim=1)[:, 0].abs()
        assert (after >= confidence).all()


@pytest.mark.parametrize("start", ["images", "random"])
def test_the_same_as_adam_by_hand(start: str) -> None:
    model, images, labels = linear()
    scale = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)

    def never(x: Tensor, labels: Tensor) -> Aim:
        aim = misclassified(model, "cross_entropy")(x, labels)
        return Aim(aim.value, torch.zeros_like(aim.reached))

    found = nearest(
        never, images, labels, 0.7, steps=20, lr=0.05, start=start, scale=scale,  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    w = (2 * images - 1).mul(1 - 1e-6).atanh()
    if start == "random":
        w = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    w.requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.05)
    for _ in range(19):
        x = (w.tanh() + 1) / 2
        loss = ((x - images) * scale).square().sum() - 0.7 * nn.functional.cross_entropy(model(x), labels, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(found.images, (w.detach().tanh() + 1) / 2)
    assert not found.reached.any() and found.cost.tolist() == [20.0] * 6


def test_the_nearest_that_counts_is_kept_and_stopping_saves_work() -> None:
    model, images, labels = linear()
    seen: list[int] = []

    def counted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return model(x)

    objective = misclassified(counted)
    early = nearest(objective, images, labels, 10.0, steps=60, lr=0.05, stop=True)
    assert early.reached.all() and seen == sorted(seen, reverse=True) and float(early.cost.sum()) == sum(seen)
    late = nearest(objective, images, labels, 10.0, steps=60, lr=0.05, stop=True, after=40)
    assert late.reached.all() and late.cost.tolist() == [41.0] * 6
    whole = nearest(objective, images, labels, 10.0, steps=60, lr=0.05)
    for other in (early, late):
        assert ((whole.images - images).flatten(1).norm(dim=1) <= (other.images - images).flatten(1).norm(dim=1)).all()
    alone = nearest(misclassified(model), images[2:3], labels[2:3], 10.0, steps=60, lr=0.05, stop=True)
    torch.testing.assert_close(early.images[2:3], alone.images)


def test_each_image_may_have_a_weight_of_its_own() -> None:
    model, images, labels = linear()
    weights = torch.tensor([0.0, 0.0, 0.0, 10.0, 10.0, 10.0])
    found = nearest(misclassified(model), images, labels, weights, steps=100, lr=0.05)
    assert found.reached.tolist() == [False] * 3 + [True] * 3
    torch.testing.assert_close(found.images[:3], images[:3], atol=1e-3, rtol=0)


def test_pixels_at_the_edges_and_what_is_refused() -> None:
    model, images, labels = linear()
    edges = images.round()
    found = nearest(misclassified(model), edges, model(edges).argmax(1), 1.0, steps=5)
    assert found.images.isfinite().all() and found.images.min() >= 0 and found.images.max() <= 1
    with pytest.raises(InputError, match="did you mean 'images'"):
        nearest(misclassified(model), images, labels, 1.0, start="image")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="0 searches"):
        carlini_wagner(misclassified(model), images, labels, searches=0)
