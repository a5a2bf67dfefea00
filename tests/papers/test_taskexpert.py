"""TaskExpert: assembling, memory and gates by their closed forms; the claim's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.papers.real_data import with_few_frames
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import polytask as pt
from polytask.data import Examples
from polytask.errors import InputError
from polytask.nn.vit import ViT
from polytask.papers._dense import outputs_of
from polytask.papers.taskexpert import PAPER, ConvHead, MemorialExperts, TaskExpert
from polytask.papers.taskexpert import camvid as claim
from polytask.papers.taskexpert.memory import MemorialPathway
from polytask.share import watched_gates

NAMES = ("classes", "edge", "depth")
SETTINGS: dict[str, Any] = {"levels": 2, "experts": 3, "channels": 5, "hidden": 7}


def pathway(tasks: tuple[str, ...] = NAMES, **settings: Any) -> MemorialPathway:
    """In evaluation mode, away from its start."""
    torch.manual_seed(0)
    made = MemorialExperts(**SETTINGS | settings).build(2 * 4, tasks).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean += torch.randn_like(module.running_mean)  # type: ignore[operator, arg-type]
    return made


def features(size: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(size, 6, 3, 8, dtype=torch.float64)


def owned(made: MemorialPathway) -> Iterator[Any]:
    """What each task has of its own at each level."""
    for level in made.levels:
        yield from level.own.values()  # type: ignore[union-attr, operator]


def choose(made: MemorialPathway, *experts: int) -> None:
    """Gates that choose these with equal weights."""
    with torch.no_grad():
        for own in owned(made):
            own.gate.router.logits.fill_(-torch.inf)
            own.gate.router.logits[list(experts)] = 0.0


def by_hand(made: MemorialPathway, x: Tensor, task: str) -> Tensor:
    """The whole recurrence, example by example and expert by expert."""
    outputs = []
    for example in x:
        memory = made.tokens[task][:, None, None].expand(5, 6, 3)
        for number, level in enumerate(made.levels):
            f = example[..., 4 * number : 4 * number + 4].permute(2, 0, 1)
            own = level.own[task]  # type: ignore[union-attr, index]
            context = torch.cat([f.mean((1, 2)), memory.mean((1, 2))])
            first, _, last = own.gate.router
            weights = (last.weight @ F.gelu(first.weight @ context + first.bias) + last.bias).softmax(0)
            point, norm, _, depth = level.experts  # type: ignore[misc]
            mixed = weights[3] * memory
            for n in range(3):
                part = slice(5 * n, 5 * n + 5)
                inner = F.conv2d(f[None], point.weight[part], point.bias[part])
                inner = F.batch_norm(
                    inner, norm.running_mean[part], norm.running_var[part], norm.weight[part], norm.bias[part]
                )
                mixed = (
                    mixed
                    + weights[n] * F.conv2d(F.gelu(inner), depth.weight[part], depth.bias[part], padding=1, groups=5)[0]
                )
            memory = memory + own.write(mixed[None])[0]
        outputs.append(memory.permute(1, 2, 0))
    return torch.stack(outputs)


def test_it_is_the_recurrence_example_by_example() -> None:
    made, x = pathway(), features()
    found = made(x, NAMES)
    for task in NAMES:
        torch.testing.assert_close(found[task], by_hand(made, x, task))
    assert list(made(x, ("depth",))) == ["depth"]
    torch.testing.assert_close(made(x, ("depth",))["depth"], found["depth"])


@pytest.mark.parametrize(
    "settings", [{}, {"gating": "pixel"}, {"memory": "write only"}, {"memory": "none"}, {"gating": "static"}]
)
def test_weights_are_a_distribution_over_experts_and_memory(settings: dict[str, Any]) -> None:
    made, x = pathway(**settings), features()
    with watched_gates(made) as chosen:
        made(x, NAMES)
    count = 3 if "memory" in settings else 4
    assert len(chosen) == (3 if settings.get("memory") == "none" else 6)
    for gates in chosen:
        weights = gates.dense(count)
        assert weights.shape == (2, *((6, 3) if settings.get("gating") == "pixel" else (1, 1)), count)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert bool((weights > 0).all())
        assert torch.allclose(weights[0], weights[1]) == (settings.get("gating") == "static")


def test_all_weights_are_equal_at_first() -> None:
    for gating in ("sample", "pixel", "static", "uniform"):
        made = MemorialExperts(**SETTINGS, gating=gating).build(8, NAMES).double()  # type: ignore[arg-type]
        with watched_gates(made) as chosen:
            made(features(), NAMES)
        assert all(gates.values.eq(1 / 4).all() for gates in chosen)


def test_one_expert_alone_is_a_plain_projection() -> None:
    made, x = pathway(experts=1, gating="static", memory="full"), features()
    choose(made, 0)
    memory = made.tokens["edge"][:, None, None].expand(2, 5, 6, 3)
    for number, level in enumerate(made.levels):
        projected = level.experts(x.movedim(-1, 1)[:, 4 * number : 4 * number + 4])  # type: ignore[operator]
        memory = memory + level.own["edge"].write(projected)  # type: ignore[union-attr, index]
    torch.testing.assert_close(made(x, ("edge",))["edge"], memory.movedim(1, -1))


def test_a_memory_that_is_only_read_stays_what_it_was() -> None:
    made = pathway(gating="static")
    choose(made, 3)
    with torch.no_grad():
        for own in owned(made):
            own.write[1].weight.zero_()
            own.write[1].bias.zero_()
    found = made(features(), NAMES)
    for task in NAMES:
        assert torch.equal(found[task], made.tokens[task].expand(2, 6, 3, 5))


def test_equal_experts_with_equal_weights_count_as_one_times_their_number() -> None:
    x = features()
    for count in (2, 3, 6):
        made = pathway(experts=count, gating="uniform")
        with torch.no_grad():
            for own in owned(made):
                own.gate.router.logits.zero_()
            for level in made.levels:
                for tensor in (*level.experts.parameters(), *level.experts.buffers()):  # type: ignore[union-attr]
                    if tensor.dim():
                        tensor.copy_(tensor[:5].repeat(count, *[1] * (tensor.dim() - 1)))
        own, memory = made.levels[0].own["edge"], torch.randn(2, 5, 6, 3, dtype=torch.float64)  # type: ignore[union-attr, index]
        every = made.levels[0].experts(x.movedim(-1, 1)[:, :4]).view(2, count, 5, 6, 3)  # type: ignore[operator]
        mixed = (count * every[:, 0] + memory) / (count + 1)
        weights = torch.full((2, 1, 1, count + 1), 1 / (count + 1), dtype=torch.float64)
        torch.testing.assert_close(own(every, memory, weights), memory + own.write(mixed))


def test_experts_and_weights_may_be_permuted_together() -> None:
    made, x = pathway(), features()
    before, order = made(x, NAMES), torch.tensor([2, 0, 1])
    rows = (5 * order[:, None] + torch.arange(5)).flatten()
    with torch.no_grad():
        for level in made.levels:
            for tensor in (*level.experts.parameters(), *level.experts.buffers()):  # type: ignore[union-attr]
                if tensor.dim():
                    tensor.copy_(tensor[rows])
        assert not torch.allclose(made(x, NAMES)["edge"], before["edge"])
        for own in owned(made):
            for tensor in own.gate.router[2].parameters():
                tensor[:3] = tensor[order]
    torch.testing.assert_close(made(x, NAMES), before)


def test_tasks_with_the_same_parts_have_the_same_feature_and_experts_learn_from_all() -> None:
    made, x = pathway(), features()
    first = {name.replace(".classes", ""): value for name, value in made.state_dict().items() if ".classes" in name}
    tied = {name: first[name.replace(f".{task}", "")] for task in NAMES for name in made.state_dict() if f".{task}" in name}
    made.load_state_dict(tied, strict=False)
    found = made(x, NAMES)
    assert torch.equal(found["classes"], found["edge"]) and torch.equal(found["classes"], found["depth"])
    shared = list(made.shared_parameters())
    losses = [found[task].square().sum() for task in NAMES]
    total = torch.autograd.grad(sum(losses), shared, retain_graph=True)
    each = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    for whole, *parts in zip(total, *each, strict=True):
        torch.testing.assert_close(whole, sum(parts))
        torch.testing.assert_close(parts[0], parts[1])


# The options.


def test_momentum_moves_between_the_memory_and_what_is_written() -> None:
    made, x = pathway(update="momentum", levels=1, experts=2), features()
    own = made.levels[0].own["edge"]  # type: ignore[union-attr, index]
    assert MemorialExperts(**SETTINGS, update="momentum").build(8, NAMES).levels[0].own["edge"].share == 0  # type: ignore[union-attr, index]
    found = {}
    for value in (-50.0, 50.0):
        with torch.no_grad():
            own.share.fill_(value)
        found[value] = made(x, ("edge",))["edge"]
    assert torch.equal(found[-50.0], made.tokens["edge"].expand(2, 6, 3, 5))
    every = made.levels[0].experts(x.movedim(-1, 1)).view(2, 2, 5, 6, 3)  # type: ignore[operator]
    memory = made.tokens["edge"][:, None, None].expand(2, 5, 6, 3)
    weights = own.weights(x.movedim(-1, 1), memory)[:, 0, 0, :, None, None, None]
    mixed = (weights[:, :2] * every).sum(1) + weights[:, 2] * memory
    torch.testing.assert_close(found[50.0], own.write(mixed).movedim(1, -1))


def test_without_a_memory_the_last_level_alone_counts() -> None:
    made, x = pathway(memory="none"), features()
    found = made(x, NAMES)
    other = x.clone()
    other[..., :4] = torch.randn_like(other[..., :4])
    assert len(made.levels) == 1 and torch.equal(made(other, NAMES)["edge"], found["edge"])
    assert not any(p.requires_grad for p in made.tokens.parameters())


def test_a_memory_that_is_written_only_is_the_sum_of_what_the_levels_write() -> None:
    made, x = pathway(memory="write only", start="zeros"), features()
    with torch.no_grad():
        for task in NAMES:
            made.tokens[task].zero_()
    total = torch.zeros(2, 5, 6, 3, dtype=torch.float64)
    for number, level in enumerate(made.levels):
        f = x.movedim(-1, 1)[:, 4 * number : 4 * number + 4]
        own, every = level.own["edge"], level.experts(f).view(2, 3, 5, 6, 3)  # type: ignore[union-attr, index, operator]
        weights = own.gate(f.mean((2, 3))).dense(3)[:, :, None, None, None]
        total += own.write((weights * every).sum(1))
    torch.testing.assert_close(made(x, NAMES)["edge"], total.movedim(1, -1))


def test_computed_again_or_not() -> None:
    x, gradients = features().requires_grad_(), []
    for again in (False, True):
        made = pathway(norm="group", checkpoint=again, entropy=0.1).train()
        found = made(x, NAMES)
        gradients.append(torch.autograd.grad(sum(y.square().sum() for y in found.values()), [x, *made.parameters()]))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def encoder() -> ViT:
    return ViT((16, 24), 8, 12, 2, 2, levels=(1, 2))


def tasks() -> list[pt.Task]:
    return [pt.Task.segmentation("classes", 4), pt.Task.pixel_binary("edge"), pt.Task.pixel_regression("depth")]


def batch(size: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    edge, depth = torch.rand(size, 16, 24).round(), torch.randn(size, 1, 16, 24)
    return torch.randn(size, 3, 16, 24), {"classes": torch.randint(4, (size, 16, 24)), "edge": edge, "depth": depth}


def model(intermediate: float = 0.0, **settings: Any) -> TaskExpert:
    torch.manual_seed(0)
    return TaskExpert(encoder(), tasks(), MemorialExperts(**SETTINGS | settings), intermediate=intermediate)


def test_entropy_joins_the_losses_while_training() -> None:
    plain, pushed = model(), model(entropy=0.2)
    pushed.load_state_dict(plain.state_dict())
    gap = [sum(m.losses(batch()).values()) for m in (plain, pushed)]
    # All weights are equal at first: 2 levels and 3 tasks, each with an entropy of log 4.
    assert (gap[0] - gap[1]).item() == pytest.approx(0.2 * 6 * torch.log(torch.tensor(4.0)).item(), rel=1e-4)
    gap = [sum(m.eval().losses(batch()).values()) for m in (plain, pushed)]
    torch.testing.assert_close(*gap)


def test_earlier_memories_are_supervised_while_training() -> None:
    whole, plain = model(intermediate=0.5), model()
    plain.load_state_dict({name: value for name, value in whole.state_dict().items() if not name.startswith("early.")})
    images, targets = batch()
    seen: list[dict[str, Tensor]] = []
    whole.pathway.levels[0].register_forward_hook(lambda m, i, o: seen.append(o))  # type: ignore[index, union-attr]
    for given in ((images, targets), {name: (images, target) for name, target in targets.items()}):
        seen.clear()
        found, own = whole.losses(given), plain.losses(given)
        memory = {name: value for one in seen for name, value in one.items()}
        for name, task in whole.tasks.items():
            early = task.loss(whole.early[0][name](memory[name]), targets[name])  # type: ignore[index]
            torch.testing.assert_close(found[name] - own[name], 0.5 * early, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.eval().losses(batch()), plain.eval().losses(batch()))


def test_who_uses_which_parameter() -> None:
    whole = model(intermediate=1.0)
    shared, own = list(whole.shared_parameters()), {name: list(whole.parameters_of(name)) for name in NAMES}
    every = [*shared, *(p for each in own.values() for p in each)]
    assert len(set(every)) == len(every) and set(every) == set(whole.parameters())
    whole.losses({"edge": (batch()[0], batch()[1]["edge"])})["edge"].backward()
    assert {p for p in whole.parameters() if p.grad is not None} == {*shared, *own["edge"]}


def test_trained_also_in_half_precision_and_on_other_sizes() -> None:
    whole, (images, targets) = model(intermediate=0.5), batch(8)
    before = [p.detach().clone() for p in whole.parameters()]
    pt.fit(whole, Examples(images, targets), steps=4, batch_size=8)
    assert all(not torch.equal(p, old) for p, old in zip(whole.parameters(), before, strict=True))
    outputs = whole.eval()(torch.randn(2, 3, 32, 40))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "classes": (2, 4, 16, 20),
        "edge": (2, 1, 16, 20),
        "depth": (2, 1, 16, 20),
    }
    with torch.autocast("cpu", torch.bfloat16):
        half = whole(images)
    torch.testing.assert_close(half["edge"].float(), whole(images)["edge"], atol=0.1, rtol=0.1)


def test_parameters_and_flops_against_a_projection_for_each_task() -> None:
    with torch.device("meta"):
        whole = PAPER.scales[0].build()
    sharing, inputs, count = whole.sharing, 1024, len(whole.tasks)
    c, n, h = sharing.channels, sharing.experts, sharing.hidden
    expert = inputs * c + c + 2 * c + 9 * c + c
    gate = (inputs + c) * h + h + h * (n + 1) + n + 1
    write = 9 * c * c + c + 2 * c
    heads = sum(write + c * outputs_of(task) + outputs_of(task) for task in whole.tasks.values())
    own = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in whole.encoder.parameters())
    assert own == 4 * (n * expert + count * (gate + write)) + count * c + heads
    counted = {}
    x = torch.empty(1, 4, 4, 4 * inputs, device="meta")
    with FlopCounterMode(display=False) as flops:
        whole.eval().pathway(x, tuple(whole.tasks))
    counted["experts"] = flops.get_total_flops() / 2 / 16 / 4
    # Of each place and level: N projections for all tasks, and a 3x3 convolution for each task, beside gates for each image.
    assert counted["experts"] == pytest.approx(n * (inputs * c + 9 * c) + count * 9 * c * c, rel=0.01)
    # T projections of their own with the same convolutions would multiply T / N times as often in the first term.
    assert counted["experts"] == pytest.approx(count * (inputs * c + 9 * c * c), rel=0.01)  # N = T = 5


def test_what_cannot_be_is_refused() -> None:
    for change, message in (
        ({"gating": "samples"}, "unknown gating 'samples': did you mean 'sample'"),
        ({"memory": "read"}, "unknown memory 'read'"),
        ({"experts": 0}, "experts 0, channels 5, hidden 7, expected at least 1 each"),
        ({"checkpoint": True}, "checkpoint with batch normalisation, expected norm='group'"),
    ):
        with pytest.raises(InputError, match=message):
            MemorialExperts(**SETTINGS | change)
    with pytest.raises(InputError, match="9 features, expected a multiple of 2, the levels"):
        MemorialExperts(**SETTINGS).build(9, NAMES)
    with pytest.raises(InputError, match=r"features of shape \(2, 8\), expected \(N, h, w, levels \* width\)"):
        pathway()(torch.randn(2, 8), NAMES)


def test_a_head_enlarges_and_convolves() -> None:
    head = ConvHead(4, 3, upsample=2).double().eval()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    first, norm, _, last = head.layers
    own = last(F.gelu(norm(first(F.interpolate(x, scale_factor=2, mode="bilinear")))))
    torch.testing.assert_close(head(x), own)
    assert ConvHead(4, 3, upsample=1)(x.float()).shape == (2, 3, 3, 5)


# The claim's data and protocol.


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    return with_few_frames(claim, monkeypatch)


def test_decoders_have_as_many_parameters_and_begin_with_the_same_encoder(folder: Path) -> None:
    data = claim.camvid(folder, claim.SHRINK)
    counts, starts = {}, []
    for kind, decoder in claim.DECODERS.items():
        torch.manual_seed(0)
        built = claim.build(decoder, data)
        counts[kind] = sum(p.numel() for p in built.parameters() if p.requires_grad)
        starts.append(torch.cat([p.flatten() for p in built.encoder.parameters()]))
    assert all(count == pytest.approx(counts["full"], rel=0.01) for count in counts.values()), counts
    assert all(torch.equal(start, starts[0]) for start in starts)


@pytest.mark.soak
def test_a_seed_measures_what_the_claims_compare(folder: Path) -> None:
    measured = claim.measure(0, folder)
    assert all(value == value and abs(value) < 1e4 for value in measured.values())
    for one in PAPER.claims:
        assert set(one.pair) <= set(measured)
    for level in claim.LEVELS:
        weights = [measured[f"full {level} chroma {expert}"] for expert in range(5)]
        assert sum(weights) == pytest.approx(1)
    assert 0 <= measured["full divergence"] < 1 and 0 < measured["full memory"] < 1
    assert len(claim.plot({0: measured, 1: measured}).axes) == 1 + 3
