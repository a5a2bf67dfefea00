"""FGSM and PGD: the known optimum of a linear model, a loop written by hand, budgets, and what is left behind."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.measure.attacks import Aim, fgsm, label_loss, misclassified, pgd


def linear(classes: int = 2) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, images away from the edges, and the labels that it gives them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, classes))
    images = 0.4 + 0.2 * torch.rand(20, 3, 2, 2)
    return model, images, model(images).argmax(1)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(96, 4)
    )


def margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return label_loss(model.eval()(images), labels)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_is_attacked_as_well_as_can_be(norm: str) -> None:
    model, images, labels = linear()
    weight = model[1].weight.detach()  # type: ignore[index]
    direction = weight.diff(dim=0)[0]  # from class 0 to class 1
    dual = direction.norm(p=1 if norm == "linf" else 2)
    before = margins(model, images, labels)
    for attacked in (
        pgd(misclassified(model), images, labels, 0.1, norm=norm, steps=30),  # type: ignore[arg-type]
        pgd(misclassified(model, "cross_entropy"), images, labels, 0.1, norm=norm, steps=60),  # type: ignore[arg-type]
    ):
        torch.testing.assert_close(margins(model, attacked.images, labels), before + 0.1 * dual, rtol=1e-4, atol=1e-5)
        assert torch.equal(attacked.reached, model(attacked.images).argmax(1) != labels)
    if norm == "linf":
        signs = torch.where(labels == 0, 1.0, -1.0)[:, None] * direction.sign()
        torch.testing.assert_close(
            fgsm(misclassified(model), images, labels, 0.1).images, images + 0.1 * signs.view_as(images)
        )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_the_same_as_a_loop_by_hand(norm: str, random_start: bool) -> None:
    model, radius, step = network().eval(), 0.2, 0.05
    images, labels = torch.rand(6, 3, 4, 4), torch.randint(4, (6,))
    found = pgd(
        misclassified(model, "cross_entropy"), images, labels, radius, step=step, steps=7, norm=norm,  # type: ignore[arg-type]
        random_start=random_start, generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    generator, x = torch.Generator().manual_seed(3), images.clone()
    if random_start and norm == "linf":
        x = (x + radius * (2 * torch.rand(images.shape, generator=generator) - 1)).clamp(0, 1)
    elif random_start:
        direction = torch.randn(images.shape, generator=generator)
        far = torch.rand(6, 1, 1, 1, generator=generator) ** (1 / 48)
        x = (x + radius * far * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    for _ in range(7):
        for i in range(6):
            one = x[i : i + 1].clone().requires_grad_()
            F.cross_entropy(model(one), labels[i : i + 1]).backward()
            assert one.grad is not None
            if norm == "linf":
                moved = one.detach() + step * one.grad.sign()
                moved = torch.minimum(torch.maximum(moved, images[i] - radius), images[i] + radius)
            else:
                change = one.detach() + step * one.grad / one.grad.norm() - images[i]
                moved = images[i] + change * min(1.0, radius / float(change.norm()))
            x[i] = moved.clamp(0, 1)[0]
    torch.testing.assert_close(found.images, x, rtol=1e-4, atol=1e-5)
    assert found.cost.tolist() == [7.0] * 6


@given(st.integers(0, 1000), st.floats(0, 2), st.sampled_from(["linf", "l2"]), st.booleans())
def test_budgets_and_pixels_are_kept(seed: int, radius: float, norm: str, stop: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, 4, 4, generator=generator).round(decimals=1)
    labels = torch.randint(4, (4,), generator=generator)
    found = pgd(
        misclassified(network()),
        images,
        labels,
        radius,
        steps=3,
        norm=norm,
        stop=stop,
        generator=generator,  # type: ignore[arg-type]
    )
    change = (found.images - images).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert size.max() <= radius + 1e-5 and found.images.min() >= 0 and found.images.max() <= 1


def test_no_budget_changes_nothing() -> None:
    model, images, labels = linear()
    found = fgsm(misclassified(model), images, labels, 0.0)
    assert torch.equal(found.images, images) and not found.reached.any()


def test_an_image_that_is_there_is_left_alone() -> None:
    model, images, labels = linear()
    rows: list[int] = []

    def counted(x: Tensor) -> Tensor:
        rows.append(len(x))
        return model(x)

    wrong = torch.where(torch.arange(20) < 8, 1 - labels, labels)
    found = pgd(misclassified(counted, cost=3.0), images, wrong, 0.5, steps=10, step=0.05, random_start=False, stop=True)
    assert torch.equal(found.images[:8], images[:8]) and found.reached.all()
    assert rows[0] == 20 and rows[1] == 12 and rows == sorted(rows, reverse=True)
    assert float(found.cost.sum()) == 3.0 * sum(rows)
    whole = pgd(misclassified(model), images, labels, 0.5, steps=10, step=0.05, random_start=False)
    one_step = (found.images - images)[8:].abs().amax((1, 2, 3))
    assert (one_step < (whole.images - images)[8:].abs().amax((1, 2, 3))).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model, images, labels = network().train(training), torch.rand(5, 3, 4, 4), torch.zeros(5, dtype=torch.int64)
    model[1].eval()  # type: ignore[index]
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        found = pgd(misclassified(model), images, labels, 0.3, random_start=False)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not found.images.requires_grad
    assert torch.equal(found.images, pgd(misclassified(model.eval()), images, labels, 0.3, random_start=False).images)


def test_a_saturated_model_hides_from_the_cross_entropy_and_not_from_the_margin() -> None:
    model, images, labels = linear(3)
    with torch.no_grad():
        model[1].weight.mul_(1e4)  # type: ignore[index]
        model[1].bias.mul_(1e4)  # type: ignore[index]
    hidden = pgd(misclassified(model, "cross_entropy"), images, labels, 0.3, random_start=False)
    assert hidden.reached.float().mean() < 0.5 < pgd(misclassified(model), images, labels, 0.3).reached.float().mean()


def test_under_autocast_pixels_stay_in_single_precision() -> None:
    model, images, labels = network(), torch.rand(5, 3, 4, 4), torch.randint(4, (5,))
    with torch.autocast("cpu", torch.bfloat16):
        found = pgd(misclassified(model), images, labels, 0.03)
    assert found.images.dtype == torch.float32 and (found.images - images).abs().max() <= 0.03 + 1e-6
    assert (found.images != images).any()


def test_an_objective_of_ones_own() -> None:
    def dark(x: Tensor, wanted: Tensor) -> Aim:
        mean = x.flatten(1).mean(1)
        return Aim(-mean, mean < wanted)

    images = torch.rand(4, 1, 3, 3)
    found = pgd(dark, images, torch.full((4,), 0.4), 1.0, steps=8, random_start=False)
    assert found.reached.all() and not found.images.any()


def test_what_does_not_fit_is_refused() -> None:
    model, images, labels = linear()
    with pytest.raises(InputError, match="expected 0 to 1: normalise inside the model"):
        fgsm(misclassified(model), images * 5, labels, 0.1)
    with pytest.raises(InputError, match="expected 0 to 1"):
        fgsm(misclassified(model), images * torch.nan, labels, 0.1)
    with pytest.raises(InputError, match="single or double precision"):
        fgsm(misclassified(model), images.half(), labels, 0.1)
    with pytest.raises(InputError, match="19 labels for 20 images"):
        fgsm(misclassified(model), images, labels[1:], 0.1)
    with pytest.raises(InputError, match=r"radius -0\.1"):
        fgsm(misclassified(model), images, labels, -0.1)
    with pytest.raises(InputError, match="did you mean 'linf'"):
        pgd(misclassified(model), images, labels, 0.1, norm="inf")  # type: ignore[arg-type]
    assert fgsm(misclassified(model), images[:0], labels[:0], 0.1).images.shape == (0, 3, 2, 2)
