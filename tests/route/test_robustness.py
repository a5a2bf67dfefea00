"""Objectives on networks with exits: by hand, by their oracles, and through the attacks."""

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.measure.attacks import fgsm, misclassified, pgd
from polytask.route import EarlyExit, early_fooled, early_only, efficacy, exit_costs, fooling, slowing, view


def network(exits: tuple[int, ...] = (1, 2, 3)) -> EarlyExit:
    torch.manual_seed(2)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()) for _ in range(3)]
    made = EarlyExit(blocks, {depth: nn.Linear(6, 4) for depth in exits}, answer="surest")
    for head in made.heads:
        head.weight.data.mul_(4)  # type: ignore[union-attr, operator]
    with torch.no_grad():  # some leave at each exit
        for k, logits in enumerate(made.eval()(images())[:-1]):
            made.thresholds[k] = logits.softmax(1).amax(1).quantile(0.6)
    return made


def images(count: int = 60) -> Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(0))


def test_views() -> None:
    made, x = network().train(), images()
    fired, summed, every = (view(made, through)(x) for through in ("fired", "sum", "all"))  # type: ignore[arg-type]
    assert all(module.training for module in made.modules())
    made.eval()
    torch.testing.assert_close(fired, made.run(x).outputs)
    torch.testing.assert_close(every, torch.stack(made(x), 1))
    torch.testing.assert_close(summed, sum(made(x)))
    with pytest.raises(InputError, match="did you mean 'fired'"):
        view(made, "fire")  # type: ignore[arg-type]


def test_fooling_the_exit_that_fires_is_fooling_its_view_at_the_price_of_its_blocks() -> None:
    made, x = network(), images()
    labels = made.run(x).outputs.argmax(1)
    costs = [2.0 * cost for cost in exit_costs(made, x)]
    aim, plain = fooling(made, costs=costs)(x, labels), misclassified(view(made))(x, labels)
    torch.testing.assert_close(aim.value, plain.value)
    assert not aim.reached.any() and aim.cost is not None
    assert torch.equal(aim.cost, torch.tensor(costs)[made.run(x).exits]) and len(aim.cost.unique()) == 3
    for through in ("sum", "all"):
        cost = fooling(made, through, costs=costs)(x, labels).cost  # type: ignore[arg-type]
        assert cost is not None and cost.tolist() == [costs[-1]] * 60


def test_a_network_with_its_last_exit_alone_is_attacked_like_any_model() -> None:
    made, x = network((3,)), images()
    labels = made(x)[0].argmax(1)
    for through in ("fired", "sum", "all"):
        found = pgd(fooling(made, through), x, labels, 0.2, random_start=False)  # type: ignore[arg-type]
        plain = pgd(misclassified(lambda x: made(x)[0]), x, labels, 0.2, random_start=False)
        torch.testing.assert_close(found.images, plain.images)
        assert torch.equal(found.reached, plain.reached)


def test_all_exits_are_wrong_only_where_each_is() -> None:
    made, x = network(), images()
    labels = made(x)[-1].argmax(1)
    wrong = torch.stack([one.argmax(1) != labels for one in made(x)])
    assert torch.equal(fooling(made, "all")(x, labels).reached, wrong.all(0))
    assert torch.equal(fooling(made, "sum")(x, labels).reached, made.run(x).outputs.argmax(1) != labels)
    found = pgd(fooling(made, "all"), x, labels, 1.0, steps=30, random_start=False)
    after = torch.stack([one.argmax(1) != labels for one in made(found.images)])
    assert torch.equal(found.reached, after.all(0)) and after.sum() > wrong.sum()


def test_no_budget_transfers_nothing() -> None:
    made, x = network(), images()
    labels = made.run(x).outputs.argmax(1)
    assert not fgsm(fooling(made), x, labels, 0.0).reached.any()


def test_slowing_raises_work_up_to_all_of_it() -> None:
    made, x = network(), images()
    costs, before = exit_costs(made, x), made.run(x).exits
    value = slowing(made)(x, torch.zeros(60)).value
    uniform = [nn.functional.cross_entropy(one, torch.full_like(one, 0.25), reduction="none") for one in made(x)[:-1]]
    torch.testing.assert_close(value, -torch.stack(uniform).sum(0))
    saved = [efficacy(before, costs)]
    for radius in (0.1, 0.5):
        found = pgd(slowing(made), x, torch.zeros(60), radius, steps=15, random_start=False)
        assert torch.equal(found.reached, made.run(found.images).exits == 2)
        saved.append(efficacy(made.run(found.images).exits, costs))
    assert saved[0] > saved[1] > saved[2]


def test_the_value_of_early_attack_by_hand() -> None:
    made, x = network(), images(10)
    y = made(x)[-1].argmax(1)
    chances = [one.softmax(1) for one in made(x)]
    for alpha in (0.0, 0.3, 20.0):
        aim = early_only(made, alpha)(x, y)
        for i in range(10):
            early = sum(chances[k][i, y[i]].item() for k in range(2))
            last = chances[2][i]
            kept = sum(max(0.0, (last[y[i]] - last[j]).item()) for j in range(4) if j != y[i])
            assert aim.value[i].item() == pytest.approx(alpha * kept - early, abs=1e-5)


def test_alpha_0_does_not_hold_the_last_exit() -> None:
    made, x = network(), images(10).requires_grad_()
    y = made(x)[-1].argmax(1)
    value = early_only(made, 0.0)(x, y).value
    torch.testing.assert_close(value, -sum(one.softmax(1).gather(1, y[:, None])[:, 0] for one in made(x)[:-1]))
    used = torch.autograd.grad(value.sum(), list(made.heads[-1].parameters()), allow_unused=True)
    assert all(slope is None or not slope.any() for slope in used)


def test_clean_images_are_no_success_where_an_early_exit_is_right() -> None:
    made, x = network(), images()
    said = torch.stack([one.argmax(1) for one in made(x)])
    found = early_fooled(made, x, x)
    assert not found[(said[:-1] == said[-1]).any(0)].any() and found[(said[:-1] != said[-1]).all(0)].all()
    assert 0 < int(found.sum()) < 60
    other = images().flip(0)
    expected = (torch.stack([one.argmax(1) for one in made(other)])[:-1] != said[-1]).all(0)
    assert torch.equal(early_fooled(made, x, other), expected & (made(other)[-1].argmax(1) == said[-1]))


def test_modes_are_kept_and_networks_without_early_exits_refused() -> None:
    made, x = network().train(), images()
    statistics = made.blocks[0][1].running_mean.clone()  # type: ignore[index, union-attr]
    labels = torch.zeros(60, dtype=torch.int64)
    for objective in (fooling(made), fooling(made, "all"), slowing(made), early_only(made)):
        pgd(objective, x, labels, 0.1, steps=2)
    early_fooled(made, x, x)
    assert all(module.training for module in made.modules()) and all(p.grad is None for p in made.parameters())
    assert torch.equal(made.blocks[0][1].running_mean, statistics)  # type: ignore[index, union-attr]
    for build in (slowing, early_only):
        with pytest.raises(InputError, match="expected at least one early exit"):
            build(network((3,)))


def test_under_autocast() -> None:
    made, x = network(), images()
    labels = made.run(x).outputs.argmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        for objective in (fooling(made), fooling(made, "sum"), slowing(made), early_only(made)):
            found = pgd(objective, x, labels, 0.3, steps=3)
            assert found.images.dtype == torch.float32 and (found.images != x).any()
