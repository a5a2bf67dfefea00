"""M3ViT: its numbers, what one task runs, its task-aware module, and the schedules (gates and banks: tests/share)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.papers.real_data import with_few_frames
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import polytask as pt
from polytask.data import Examples
from polytask.errors import InputError
from polytask.nn.vit import ViT
from polytask.papers.m3vit import PAPER, DenseModel, M3ViT, PUPHead, TaskAware, expert_major, expert_use, token_major
from polytask.papers.m3vit import camvid as claim
from polytask.share import penalties, watched_gates

NAMES = ("classes", "edge", "depth")
SIZES: dict[str, Any] = {"size": (16, 24), "patch": 8, "embedding": 12, "depth": 4, "heads": 3}
EXPERTS: dict[str, Any] = {"experts": 6, "k": 2, "ratio": 2.0}


def tasks() -> list[pt.Task]:
    return [pt.Task.segmentation("classes", 4), pt.Task.pixel_binary("edge"), pt.Task.pixel_regression("depth")]


def made(**settings: Any) -> M3ViT:
    torch.manual_seed(0)
    return M3ViT(NAMES, **SIZES | EXPERTS | settings)


def batch(size: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    edge, depth = torch.rand(size, 16, 24).round(), torch.randn(size, 1, 16, 24)
    return torch.randn(size, 3, 16, 24), {"classes": torch.randint(4, (size, 16, 24)), "edge": edge, "depth": depth}


# The encoder.


def test_the_sizes_of_a_layer() -> None:
    with torch.device("meta"):
        encoder = M3ViT(NAMES)
    assert [number for number, block in enumerate(encoder.blocks) if hasattr(block.mlp, "bank")] == [1, 3, 5, 7, 9, 11]
    layer = encoder.layers()[0]
    assert sum(p.numel() for p in layer.bank.parameters()) == 4_730_880
    assert [p.numel() for p in layer.gate.parameters()] == [6_144] * len(NAMES)
    # Of a token: 4 experts as wide as the embedding multiply as often as a dense MLP four times as wide.
    multiplied = {}
    for experts, k in ((16, 4), (1, 1)):
        ratio = 1.0 if experts == 16 else 4.0
        layer = M3ViT(NAMES, depth=2, experts=experts, k=k, ratio=ratio, execution="sorted").layers()[0]
        with FlopCounterMode(display=False) as counted, pt.task_scope("edge"), torch.no_grad():
            layer(torch.randn(2, 5, 384))
        multiplied[experts] = counted.get_total_flops() / 2 / 10
    assert multiplied == {16: 1_179_648 + 6_144, 1: 1_179_648}


def test_gates_begin_wide_and_are_not_renormalised() -> None:
    torch.manual_seed(0)
    gate = M3ViT(NAMES, depth=2).layers()[0].gate
    with pt.task_scope("edge"):
        values, _ = gate(F.layer_norm(torch.randn(500, 4, 384), (384,)))
    assert float(values.sum(-1).mean()) == pytest.approx(0.91, abs=0.02)
    assert float(values[..., 0].mean()) == pytest.approx(0.59, abs=0.04)
    assert float(gate.router.weights["edge"].abs().max()) == pytest.approx(16**-0.5, rel=0.01)  # type: ignore[union-attr, index]


def test_one_expert_is_the_dense_transformer() -> None:
    encoder, dense = made(experts=1, k=1, ratio=4.0).double(), ViT(**SIZES).double()
    state = encoder.state_dict()
    for number in (1, 3):
        bank = f"blocks.{number}.mlp.bank."
        parts = {
            "hidden": "hidden.weight",
            "hidden_bias": "hidden.bias",
            "output": "output.weight",
            "output_bias": "output.bias",
        }
        for name, own in parts.items():
            weight = state.pop(bank + name)[0]
            state[f"blocks.{number}.mlp.{own}"] = weight.T if name == "output" else weight
    dense.load_state_dict(state)
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(encoder(images), dense(images))


def test_gates_of_equal_weights_are_one_gate() -> None:
    several, one = made().double(), made(gating="one gate").double()
    for own, shared in zip(several.layers(), one.layers(), strict=True):
        own.bank.load_state_dict(shared.bank.state_dict())
        with torch.no_grad():
            for task in NAMES:
                own.gate.router.weights[task].copy_(shared.gate.router.weight.T)  # type: ignore[union-attr, index, operator]
    mine = {name: value for name, value in one.state_dict().items() if ".gate." not in name}
    assert set(several.load_state_dict(mine, strict=False).missing_keys) == {
        f"blocks.{number}.mlp.gate.router.weights.{task}" for number in (1, 3) for task in NAMES
    }
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    for task in NAMES:
        with pt.task_scope(task):
            torch.testing.assert_close(several(images), one(images))


@pytest.mark.parametrize("gating", ["multi-gate", "task-conditioned"])
def test_features_depend_on_the_task_and_a_mixed_batch_has_each_example_s(gating: str) -> None:
    encoder = made(gating=gating).double().eval()
    images, index = torch.randn(3, 3, 16, 24, dtype=torch.float64), torch.tensor([2, 0, 2])
    alone = []
    for task in NAMES:
        with pt.task_scope(task):
            alone.append(encoder(images))
    assert not torch.allclose(alone[0], alone[1])
    with pt.task_scope(NAMES, index):
        torch.testing.assert_close(encoder(images), torch.stack(alone)[index, torch.arange(3)])


def test_every_token_is_routed_the_class_token_too() -> None:
    for noise, sums_to_one in ((0.0, False), (1.0, False), ("learned", True)):
        encoder = made(noise=noise)
        with pt.task_scope("edge"), watched_gates(encoder) as chosen:
            encoder(torch.randn(2, 3, 16, 24))
        assert [tuple(gates.experts.shape) for gates in chosen] == [(2, 1 + 6, 2)] * 2
        sums = torch.cat([gates.values.sum(-1).flatten() for gates in chosen])
        assert torch.allclose(sums, torch.ones(28)) == sums_to_one and float(sums.max()) <= 1 + 1e-6


def test_the_task_s_feature_is_read_by_the_gates_alone() -> None:
    encoder = made(gating="task-conditioned", features=5)
    assert encoder.layers()[0].gate.router.in_features == 12 + 5  # type: ignore[union-attr]
    assert encoder.layers()[0].bank.hidden.shape == (6, 24, 12)
    assert len([name for name in encoder.state_dict() if name.startswith("feature.")]) == 6


# The whole model.


def model(aware: tuple[int, ...] = (), **settings: Any) -> DenseModel:
    encoder = made(**settings)
    return DenseModel(encoder, tasks(), channels=8, stages=3, aware=aware)


def test_balance_is_the_sum_over_gates_and_passes_and_none_in_evaluation() -> None:
    whole, (images, targets) = model(), batch()
    with penalties(whole) as found:
        whole(images)
    plain = model(balance=0.0)
    plain.load_state_dict(whole.state_dict())
    losses = [sum(m.losses((images, targets)).values()) for m in (whole, plain)]
    torch.testing.assert_close(losses[0] - losses[1], sum(found), atol=1e-5, rtol=1e-3)
    assert sum(found).item() > 0
    by_layer = []
    for task in NAMES:
        with pt.task_scope(task), watched_gates(whole) as chosen:
            whole.encoder(images)
        for gates in chosen:
            weights = gates.dense(6).flatten(0, 1)
            for amount in (weights.sum(0), (weights > 0).sum(0).float()):
                by_layer.append(amount.var() / amount.mean() ** 2)
    torch.testing.assert_close(sum(found), 0.01 * torch.stack(by_layer).sum(), atol=1e-6, rtol=1e-4)
    losses = [sum(m.eval().losses((images, targets)).values()) for m in (whole, plain)]
    torch.testing.assert_close(*losses)


def test_task_by_task_is_all_at_once() -> None:
    whole, (images, targets) = model(), batch()
    for head in whole.heads.values():
        head.eval()  # type: ignore[union-attr]
    together = whole.losses((images, targets))
    apart = whole.losses({name: (images, target) for name, target in targets.items()})
    total = sum(together.values())
    torch.testing.assert_close(total, sum(apart.values()))


def test_one_task_computes_its_own_path_only() -> None:
    whole, (images, _) = model(execution="sorted").eval(), batch()
    counts = {}
    with torch.no_grad():
        for name in (*NAMES, None):
            with FlopCounterMode(display=False) as counted:
                whole(images, None if name is None else [name])
            counts[name] = counted.get_total_flops()
    # Heads differ in their outputs alone.
    assert sum(counts[name] for name in NAMES) == counts[None]
    assert counts["edge"] / counts[None] == pytest.approx(1 / 3, rel=0.02)
    called = []
    hooks = [head.register_forward_hook(lambda m, i, o: called.append(m)) for head in whole.heads.values()]
    hooks += [layer.bank.register_forward_hook(lambda m, i, o: called.append(m)) for layer in whole.encoder.layers()]  # type: ignore[operator, union-attr]
    whole.predict(images, ["edge"])
    assert len(called) == 3 and called[-1] is whole.heads["edge"]
    for hook in hooks:
        hook.remove()


def test_who_uses_which_parameter() -> None:
    whole = model(aware=(0,))
    shared, own = list(whole.shared_parameters()), {name: list(whole.parameters_of(name)) for name in NAMES}
    every = [*shared, *(p for each in own.values() for p in each)]
    assert len(set(every)) == len(every) and set(every) == set(whole.parameters())
    assert all(any(p is whole.encoder.layers()[1].gate.router.weights[name] for p in own[name]) for name in NAMES)  # type: ignore[operator, union-attr]
    conditioned = model(gating="task-conditioned")
    assert set(conditioned.encoder.parameters()) <= set(conditioned.shared_parameters())


def test_trained_on_some_tasks_saved_and_read(tmp_path: Path) -> None:
    whole, (images, targets) = model(aware=(0, 1), noise="learned"), batch(8)
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    pt.fit(whole, Examples(images, targets), steps=3, batch_size=8, balance="pcgrad")
    assert all(not torch.equal(p, before[name]) for name, p in whole.named_parameters() if ".aware" not in name)
    del targets["edge"]
    assert set(whole.train().losses((images, targets))) == {"classes", "depth"}
    save_file(whole.state_dict(), tmp_path / "model.safetensors")  # refuses tensors that share memory


# The decoders.


def test_the_decoder_is_its_convolutions_and_doublings() -> None:
    head = PUPHead(12, 5, channels=4, stages=2).double().eval()
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    own = F.layer_norm(x.movedim(1, -1), (12,), eps=1e-6).movedim(-1, 1)
    for number in range(2):
        own = F.interpolate(own, scale_factor=2, mode="bilinear") if number else own
        conv, norm, _ = head.stages[number]  # type: ignore[misc]
        own = F.relu(norm(conv(own)))
    own = F.interpolate(head.output(own), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(head(x), own)
    with torch.device("meta"):
        full = PUPHead(384, 21)
    convolutions = (384 + 3 * 256) * 256 * 9 + 4 * 256 + 256 * 21 + 21
    assert sum(p.numel() for p in full.parameters()) == 2 * 384 + convolutions + 4 * 2 * 256
    assert full(torch.empty(1, 384, 32, 32, device="meta")).shape == (1, 21, 512, 512)


def test_the_task_aware_module_by_hand() -> None:
    for count, halves in ((2, (1, 1)), (3, (1, 2)), (5, (2, 3))):
        names = [f"task {i}" for i in range(count)]
        module = TaskAware(dict.fromkeys(names, 2), 4).double().eval()
        features = {name: torch.randn(2, 4, 6, 9, dtype=torch.float64) for name in names}
        b = torch.sigmoid(module.mix(torch.cat(list(features.values()), 1)))
        shares = [b / halves[0]] * halves[0] + [(1 - b) / halves[1]] * halves[1]
        joined = module.join(torch.cat([x * s for x, s in zip(features.values(), shares, strict=True)], 1))
        mask = torch.sigmoid(module.decoder(module.encoder(joined)))
        mask = F.interpolate(mask, (6, 9), mode="bilinear")  # 6 x 9 came back as 8 x 12
        masked = torch.cat([x * (1 + mask) for x in features.values()], 1)
        found = module(features)
        assert list(found) == names and found["task 0"].shape == (2, 2, 6, 9)
        torch.testing.assert_close(found["task 1"], module.heads["task 1"](masked))


def test_the_task_aware_module_adds_losses_while_training_and_nothing_else() -> None:
    whole, plain = model(aware=(0, 1)), model()
    plain.load_state_dict({name: value for name, value in whole.state_dict().items() if not name.startswith("aware.")})
    images, targets = batch()
    seen: dict[str, dict[str, Tensor]] = {}
    for level, module in whole.aware.items():
        module.register_forward_hook(lambda m, i, o, level=level: seen.update({level: o}))
    losses, own = whole.losses((images, targets)), plain.losses((images, targets))
    for name in NAMES:
        added = sum(whole.tasks[name].loss(seen[level][name], targets[name]) for level in "01")
        torch.testing.assert_close(losses[name] - own[name], added, atol=1e-5, rtol=1e-4)
    assert seen["0"]["edge"].shape[-2:] == (4, 6) and seen["1"]["edge"].shape[-2:] == (8, 12)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in whole.aware.parameters())
    seen.clear()
    torch.testing.assert_close(whole.eval().losses((images, targets)), plain.eval().losses((images, targets)))
    assert not seen and not any(stage._forward_hooks for head in whole.heads.values() for stage in head.stages)  # type: ignore[union-attr]


# The schedules.


def test_both_orders_give_the_same_and_one_loads_each_expert_once() -> None:
    encoder = made(experts=8, k=3).double().eval()
    with pt.task_scope("edge"), watched_gates(encoder) as chosen, torch.no_grad():
        encoder(torch.randn(4, 3, 16, 24, dtype=torch.float64))
    bank, gates = encoder.layers()[0].bank, chosen[0]
    x = torch.randn(4, 7, 12, dtype=torch.float64)
    bank.execution = "expert-major"
    reordered = bank(x, gates)
    by_token = torch.zeros_like(x).flatten(0, 1)
    order = []
    for n, token in enumerate(x.flatten(0, 1)):
        for value, e in zip(gates.values.flatten(0, 1)[n], gates.experts.flatten(0, 1)[n].tolist(), strict=True):
            inner = F.gelu(bank.hidden[e] @ token + bank.hidden_bias[e])
            by_token[n] += value * (inner @ bank.output[e] + bank.output_bias[e])
            order.append(e)
    torch.testing.assert_close(reordered.flatten(0, 1), by_token, atol=1e-12, rtol=1e-12)
    experts = gates.experts.flatten(0, 1)
    one, many = expert_major(experts, 100), token_major(experts, 100)
    used = len(set(order))
    assert (one.loads, one.loaded, one.resident) == (used, 100 * used, 200)
    assert many.loads == 1 + sum(a != b for a, b in pairwise(order)) >= used
    assert (many.resident, many.queues, one.queues) == (100, 0, 8 * 84)
    every = token_major(experts, 100, held=8)
    assert (every.loads, every.resident) == (used, 100 * used)


def test_what_was_used_longest_ago_leaves() -> None:
    experts = torch.tensor([[0, 1], [0, 2], [1, 0]])
    assert token_major(experts, 1, held=2).loads == 5  # 0 1 (0) 2 1 0
    assert token_major(experts, 1, held=3).loads == 3
    assert expert_major(torch.zeros(5, 1, dtype=torch.int64), 7).resident == 7
    with pytest.raises(InputError, match="room for 0 experts"):
        token_major(experts, 1, held=0)


def test_use_of_experts_by_task() -> None:
    encoder = made().eval()
    use = expert_use(encoder, batch()[0], NAMES, 6)
    assert use.shape == (2, 3, 6)
    torch.testing.assert_close(use.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    with pt.task_scope("edge"), watched_gates(encoder) as chosen:
        encoder(batch()[0])
    torch.testing.assert_close(use[1, 1] * 3 * 7 * 2, (chosen[1].dense(6) > 0).sum((0, 1)).double())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="unknown gating 'multigate': did you mean 'multi-gate'"):
        made(gating="multigate")
    with pytest.raises(InputError, match="k 9, expected from 1 to 6"):
        made(k=9)
    with pytest.raises(InputError, match="aware at level 2, expected from 0 to 1"):
        model(aware=(2,))


# The claim's data and protocol.


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(claim, "NETWORK", claim.NETWORK | {"embedding": 12, "depth": 2})
    return with_few_frames(claim, monkeypatch)


def test_models_of_the_claims_are_alike_in_cost() -> None:
    data = [pt.Task.segmentation("classes", 11)]
    flops = {}
    for kind in ("dense", "one gate", "multi-gate", "task-conditioned"):
        whole = claim.build(kind, data).eval()
        for module in whole.modules():
            if hasattr(module, "execution"):
                module.execution = "sorted"
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            whole(torch.randn(1, 1, *claim.SIZE), ["classes"])
        flops[kind] = counted.get_total_flops()
    assert all(flops[kind] == pytest.approx(flops["dense"], rel=0.05) for kind in flops)


def test_a_seed_measures_what_the_claims_compare(folder: Path) -> None:
    measured = claim.measure(0, folder)
    assert all(value == value and abs(value) < 1e4 for value in measured.values())
    for one in PAPER.claims:
        assert set(one.pair) <= set(measured)
    assert measured["one gate divergence"] == 0 < measured["multi-gate divergence"] < 1
    assert measured["chosen dense delta"] in (measured["dense delta"], measured["long dense delta"])
    assert measured["multi-gate used"] <= 8 and measured["multi-gate loads"] >= 1
    assert len(claim.plot({0: measured, 1: measured}).axes) == 1 + 1 + 1
