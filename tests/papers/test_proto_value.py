"""Proto-value networks: fixed points, thresholds, subspaces and counts; acting by least squares and by double DQN."""

from pathlib import Path

import networkx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import polytask as pt
from polytask.data.control import Atari, MinAtar, Transition, TransitionBatches, record
from polytask.errors import InputError
from polytask.nn.heads import HeadBank
from polytask.papers.proto_value import (
    PAPER,
    DoubleDQN,
    HashIndicators,
    ImpalaEncoder,
    NetworkCumulants,
    NetworkIndicators,
    ProtoValues,
    RandomNetworks,
    SmallEncoder,
    TableCumulants,
    Walk,
    act_on_features,
    adam,
    leading,
    lspi,
    minatar,
    rooms,
    subspace_error,
    successor,
    value_maps,
)
from polytask.papers.proto_value.four_rooms import measure_rooms
from polytask.papers.proto_value.networks import same
from polytask.papers.proto_value.picture import plot

STATES = 6
RING = Walk(torch.stack([(torch.arange(STATES) + step) % STATES for step in (-1, 1, 3)], 1))


def one_hot() -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.eye(STATES))


def on_ring(cumulants: Tensor, gamma: float, rate: float = 1.0) -> ProtoValues:
    return ProtoValues(one_hot(), TableCumulants(cumulants), 3, width=STATES, gamma=gamma, rate=rate, lag=False)


def exact(walk: Walk, cumulants: Tensor, gamma: float) -> Tensor:
    """``(S, m, A)``: each action's values, ``r(x) + gamma`` times those of where it leads."""
    values = successor(walk.matrix, gamma) @ cumulants.double()
    return cumulants.double()[..., None] + gamma * values[walk.following].mT


def put(model: ProtoValues, values: Tensor) -> None:
    """Make ``(S, m, A)`` the values of one-hot features."""
    heads = model.values.heads
    with torch.no_grad():
        heads.weight.copy_(values.permute(2, 1, 0))
        heads.bias.zero_()


def fitted(model: ProtoValues, steps: int = 500) -> Tensor:
    pt.fit(model, [RING.transitions()] * 50, steps=steps, lr=0.05)
    return model.values.heads(torch.eye(STATES)).detach()


def test_cumulants_of_one_are_worth_the_horizon() -> None:
    model = on_ring(torch.ones(STATES, 4), 0.99)
    put(model, torch.full((STATES, 4, 3), 100.0))
    assert float(model.losses(RING.transitions())["values"].detach()) < 1e-8
    found = fitted(on_ring(torch.ones(STATES, 4), 0.5))
    torch.testing.assert_close(found, torch.full_like(found, 2.0), atol=1e-2, rtol=0)


def test_values_of_single_states_are_columns_of_the_successor_representation() -> None:
    wanted = exact(RING, torch.eye(STATES), 0.5).float()
    torch.testing.assert_close(wanted.mean(2), successor(RING.matrix, 0.5).float())
    model = on_ring(torch.eye(STATES), 0.5)
    found = fitted(model)
    torch.testing.assert_close(found, wanted, atol=1e-2, rtol=0)
    # The sets are disjoint and cover all states.
    torch.testing.assert_close(found.sum(1), torch.full((STATES, 3), 2.0), atol=2e-2, rtol=0)
    put(model, exact(RING, torch.eye(STATES), 0.5))
    model.train()
    assert float(model.losses(RING.transitions())["values"].detach()) < 1e-10


def test_the_backup_is_a_mean_and_stops_where_an_episode_is_done() -> None:
    torch.manual_seed(0)
    cumulants = torch.rand(STATES, 5)
    model, batch = on_ring(cumulants, 0.9), RING.transitions()
    batch = batch._replace(done=torch.arange(len(batch.action)) % 4 == 0)
    q = model.values.heads(torch.eye(STATES))
    wanted = cumulants[batch.observation] + 0.9 * (~batch.done)[:, None] * q[batch.next].mean(2)
    loss = 0.5 * (wanted - q[batch.observation, :, batch.action]).square().mean()
    torch.testing.assert_close(model.losses(batch)["values"], loss)


def test_without_a_future_indicators_are_regressed_and_the_target_has_no_gradient() -> None:
    cumulants = torch.rand(STATES, 5)
    found = fitted(on_ring(cumulants, 0.0))
    torch.testing.assert_close(found, cumulants[..., None].expand(-1, -1, 3), atol=1e-2, rtol=0)
    model = on_ring(cumulants, 0.9)
    model.losses(RING.transitions())["values"].backward()
    assert all(p.grad is None for p in model.target.buffers())
    assert all(p.grad is not None for p in model.values.heads.parameters())


class Outputs(nn.Module):
    """Numbers for observations that are numbers of rows."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, observations: Tensor) -> Tensor:
        return self.get_buffer("table")[observations]


def with_thresholds(table: Tensor, share: float, warm_up: int = 10_000) -> ProtoValues:
    sets = NetworkIndicators(Outputs(table), table.shape[1], share)
    return ProtoValues(nn.Embedding(len(table), 4), sets, 2, width=4, warm_up=warm_up)


def walk_of(states: int) -> Transition:
    count = torch.arange(states)
    zero = torch.zeros(states)
    return Transition(count, count % 2, zero, count.roll(1), zero.bool(), torch.ones(states, dtype=torch.int64))


def test_thresholds_have_the_gradient_of_a_quantile_and_settle_at_the_share() -> None:
    torch.manual_seed(0)
    table, share = torch.randn(400, 6), 0.05
    model = with_thresholds(table, share)
    assert isinstance(model.cumulants, NetworkIndicators)
    loss = model.losses(walk_of(400))["thresholds"]
    loss.backward()
    wanted = ((1 - share) - (table < 0).float().mean(0)) / 6
    torch.testing.assert_close(model.cumulants.thresholds.grad, wanted)
    pt.fit(model, [walk_of(400)] * 50, steps=400, optimizer=torch.optim.Adam, lr={"cumulants.*": 0.05, "*": 1e-3})
    shares = model.cumulants(torch.arange(400))[0].mean(0)
    torch.testing.assert_close(shares, torch.full((6,), share), atol=0.01, rtol=0)


def test_where_relu_gives_zero_too_often_sets_are_smaller() -> None:
    torch.manual_seed(0)
    table = torch.zeros(400, 3)
    table[:4] = 1.0 + torch.rand(4, 3)  # a hundredth, where a twentieth is asked for
    model = with_thresholds(table, 0.05)
    pt.fit(model, [walk_of(400)] * 50, steps=300, optimizer=torch.optim.Adam, lr=0.02)
    assert float(model.cumulants(torch.arange(400))[0].mean(0).max()) <= 0.05
    assert isinstance(model.cumulants, NetworkIndicators)
    assert float(model.cumulants.thresholds.detach().abs().max()) < 0.05


def test_values_wait_for_thresholds_and_never_move_them() -> None:
    torch.manual_seed(0)
    model, batch = with_thresholds(torch.randn(40, 6), 0.2, warm_up=3), walk_of(40)
    optimizer, before = torch.optim.SGD(model.parameters(), 0.1), model.values.encoder.weight.detach().clone()
    for step in range(5):
        losses = model.losses(batch)
        assert list(losses) == (["thresholds"] if step < 3 else ["values", "thresholds"])
        assert list(model.losses(batch)) == list(losses)
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        assert torch.equal(model.values.encoder.weight, before) == (step < 3)
    assert isinstance(model.cumulants, NetworkIndicators)
    value = model.losses(batch)["values"]
    assert torch.autograd.grad(value, model.cumulants.thresholds, allow_unused=True) == (None,)
    assert list(model.eval().losses(batch)) == ["values", "thresholds"]


def test_the_target_lags_by_one_update_however_often_losses_are_asked_for() -> None:
    torch.manual_seed(0)
    model, batch = (
        ProtoValues(one_hot(), TableCumulants(torch.rand(STATES, 2)), 3, width=STATES, rate=0.3),
        RING.transitions(),
    )
    weight = model.values.heads.linear.weight
    optimizer, expected, previous = torch.optim.SGD([weight], 1.0), weight.detach().clone(), None
    for _ in range(4):
        for _ in range(2):
            loss = model.losses(batch)["values"]
        if previous is not None:
            expected = 0.7 * expected + 0.3 * previous
        torch.testing.assert_close(model.target.copy.state()["heads.linear.weight"], expected)
        previous = weight.detach().clone()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    def run(folder: Path, *steps: int) -> dict[str, Tensor]:
        for count in steps:
            torch.manual_seed(0)
            model = with_thresholds(torch.randn(40, 6), 0.2, warm_up=4)
            pt.fit(model, [walk_of(40)] * 5, epochs=4, out=folder, checkpoint_every=5, listeners=[Stop(count)])
        return model.state_dict()

    whole = run(tmp_path / "whole", 99)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 13)
    again = run(tmp_path / "cut", 99)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


class Stop:
    """Kills a run at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, step: int, losses: dict[str, float]) -> None:
        if step == self.at:
            raise KeyboardInterrupt

    def record(self, record: dict[str, object]) -> None: ...

    def close(self) -> None: ...


def test_singular_vectors_are_those_of_the_laplacian() -> None:
    walk = rooms()
    matrix = walk.matrix
    assert matrix.shape == (104, 104) and torch.equal(matrix, matrix.T)
    laplacian = torch.eye(104, dtype=torch.float64) - matrix  # of a regular graph, over its degree
    bottom = torch.linalg.eigh(laplacian).eigenvectors[:, :10]
    assert subspace_error(bottom, leading(successor(matrix, 0.95), 10)) < 1e-9
    # Another graph, after symmetrisation.
    graph = torch.tensor(networkx.to_numpy_array(networkx.karate_club_graph(), weight=None))
    root = graph.sum(1).sqrt()
    symmetric = root[:, None] * successor(graph / graph.sum(1, keepdim=True), 0.9) / root
    normal = torch.eye(34, dtype=torch.float64) - graph / root[:, None] / root
    assert subspace_error(torch.linalg.eigh(normal).eigenvectors[:, :5], leading(symmetric, 5)) < 1e-9


def test_parameters_are_counted_and_heads_begin_as_the_authors() -> None:
    for scale in PAPER.scales:
        with torch.device("meta"):
            assert sum(p.numel() for p in scale.build().parameters()) == scale.parameters
    with torch.device("meta"):
        encoder = ImpalaEncoder()
        convolutions = sum(p.numel() for p in encoder.stacks.parameters())
        assert convolutions == 6_200_960 and encoder.linear.in_features == 30_976
        assert RandomNetworks(100).weight.shape == (10, 7744, 10)
    heads = HeadBank(30, 50, 18)
    assert float(heads.weight.detach().abs().max()) == pytest.approx((6 / 48) ** 0.5, rel=1e-2)


def test_the_encoder_takes_images_of_bytes() -> None:
    encoder = ImpalaEncoder(1, 32, channels=2, size=20)
    images = torch.randint(256, (3, 2, 20, 20), dtype=torch.uint8)
    features = encoder(images)
    assert features.shape == (3, 32) and bool((features >= 0).all())
    torch.testing.assert_close(encoder(images[1:2]), features[1:2])


@pytest.mark.parametrize(("size", "kernel", "stride"), [(84, 8, 4), (21, 4, 2), (11, 3, 1), (42, 3, 2), (21, 3, 2)])
def test_padding_leaves_the_size_over_the_stride(size: int, kernel: int, stride: int) -> None:
    padded = same(torch.ones(1, 1, size, size), kernel, stride)
    total = padded.shape[-1] - size
    assert F.max_pool2d(padded, kernel, stride).shape[-1] == -(-size // stride)
    assert total < kernel and padded[0, 0, :, total // 2].sum() == size


@pytest.mark.parametrize("final_relu", [True, False])
def test_random_networks_at_once_are_each_by_itself(final_relu: bool) -> None:
    networks = RandomNetworks(6, 2, 4, 12, ((3, 4, 2), (5, 3, 1)), final_relu=final_relu)
    assert not any(p.requires_grad for p in networks.parameters())
    images = torch.randint(256, (7, 4, 12, 12), dtype=torch.uint8)
    found = networks(images)
    first, second = networks.convs
    for k in range(3):
        x = same(images.float() / 255, 4, 2)
        x = F.conv2d(x, first.weight[3 * k : 3 * k + 3], stride=2).relu()  # type: ignore[union-attr, index]
        x = F.conv2d(same(x, 3), second.weight[5 * k : 5 * k + 5]).relu()  # type: ignore[union-attr, index]
        out = x.flatten(1) @ networks.weight[k]
        torch.testing.assert_close(found[:, 2 * k : 2 * k + 2], out.relu() if final_relu else out)


def test_hashes_are_those_of_whole_numbers() -> None:
    sets = HashIndicators(12, 40, 0.05, torch.Generator().manual_seed(0))
    images = torch.randint(256, (500, 3, 4), dtype=torch.uint8)
    found, none = sets(images)
    a, b = sets.get_buffer("factors").long().tolist(), sets.get_buffer("offsets").long().tolist()
    for n in range(5):
        x = images[n].flatten().tolist()
        for i in range(40):
            value = (b[i] + sum(a[j][i] * x[j] for j in range(12))) % 8191 % 20
            assert bool(found[n, i]) == (value == 0)
    assert none is None and abs(float(found.mean()) - 0.05) < 0.01


def test_least_squares_find_the_best_policy_of_a_table() -> None:
    torch.manual_seed(0)
    walk, gamma = rooms(), 0.9
    batch = walk.transitions()
    reward = torch.rand(104)[batch.observation]
    table = torch.eye(104)
    seen = batch._replace(observation=table[batch.observation], next=table[batch.next], reward=reward)
    values, made = lspi(seen, 4, gamma, ridge=0.0 + 1e-12, iterations=50)
    q = torch.zeros(104, 4, dtype=torch.float64)
    for _ in range(400):
        q = (reward.double() + gamma * q.max(1).values[batch.next]).view(104, 4)
    assert made < 50
    torch.testing.assert_close(values(table), q, atol=1e-4, rtol=0)


def test_double_dqn_evaluates_by_the_target_what_the_network_chooses() -> None:
    torch.manual_seed(0)
    model = DoubleDQN(3, 4, gamma=0.9, period=2)
    x, ahead = torch.randn(2, 5, 4)
    batch = Transition(
        x,
        torch.tensor([0, 1, 2, 1, 0]),
        torch.tensor([3.0, -0.5, 0.0, 0.2, 1.0]),
        ahead,
        torch.tensor([False, True, False, False, False]),
        torch.tensor([1, 1, 2, 3, 1]),
    )
    model.losses(batch)
    old, layer = model.target.copy.state()["1.weight"].clone(), model.network[-1]
    assert isinstance(layer, nn.Linear)
    nn.init.normal_(layer.weight)
    loss = model.losses(batch)["reward"]
    assert torch.equal(model.target.copy.state()["1.weight"], old)
    best = model(ahead).argmax(1)
    slow = (ahead @ old.T)[torch.arange(5), best]
    wanted = batch.reward.clamp(-1, 1) + 0.9**batch.steps * ~batch.done * slow
    torch.testing.assert_close(loss, F.huber_loss(model(x)[torch.arange(5), batch.action], wanted))
    nn.init.normal_(layer.weight)
    model.losses(batch)
    assert torch.equal(model.target.copy.state()["1.weight"], layer.weight)


def test_a_linear_layer_learns_on_frozen_features_of_a_game() -> None:
    pytest.importorskip("minatar")
    torch.manual_seed(0)
    encoder = SmallEncoder(4, 10, features=16, filters=4)
    with pytest.raises(InputError, match="trainable"):
        act_on_features(MinAtar("breakout"), encoder, 16, 40)
    encoder.requires_grad_(False)
    values, returns = act_on_features(MinAtar("breakout"), encoder, 16, 200, start=50, lr=1e-3)
    again, same_returns = act_on_features(MinAtar("breakout"), encoder, 16, 200, start=50, lr=1e-3)
    assert returns == same_returns and len(returns) > 3
    layer, other = values.network[-1], again.network[-1]
    assert isinstance(layer, nn.Linear) and isinstance(other, nn.Linear)
    assert torch.equal(layer.weight, other.weight) and bool(layer.bias.any())


def test_a_few_hundred_frames_of_atari() -> None:
    pytest.importorskip("ale_py")
    torch.manual_seed(0)
    transitions = record(Atari("pong"), 60)
    sets = NetworkIndicators(RandomNetworks(20), 20, 0.1)
    model = ProtoValues(ImpalaEncoder(1, 32), sets, transitions.actions, warm_up=1)
    fitted = pt.fit(model, TransitionBatches(transitions, 8), steps=3, optimizer=adam(8), schedule="constant")
    assert set(fitted.history[-1]["loss"]) == {"values", "thresholds"}
    encoder = model.values.encoder.requires_grad_(False)
    values, _ = act_on_features(Atari("pong"), encoder, 32, 12, start=10, batch_size=4)
    assert values(model.features(transitions.batch(torch.arange(2)).observation)).shape == (2, 6)


def test_several_steps_and_settings_that_cannot_be_are_refused() -> None:
    model = on_ring(torch.ones(STATES, 2), 0.5)
    batch = RING.transitions()
    with pytest.raises(InputError, match="transitions of 3 steps, expected 1"):
        model.losses(batch._replace(steps=batch.steps * 3))
    with pytest.raises(InputError, match="width None"):
        ProtoValues(nn.Identity(), TableCumulants(torch.ones(3, 2)), 2)
    with pytest.raises(InputError, match=r"share 0\b"):
        NetworkIndicators(nn.Identity(), 2, 0)
    with pytest.raises(InputError, match="15 tasks by networks of 10"):
        RandomNetworks(15)


@pytest.mark.soak
def test_both_experiments_run_and_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minatar")
    monkeypatch.setattr(minatar, "WARM_UP", 2)
    monkeypatch.setattr(minatar, "VALIDATION", 2)
    monkeypatch.setattr(minatar, "LIMIT", 20)
    measured = dict(measure_rooms(0, tmp_path, updates=3, warm_up=2))
    game = dict(minatar.measure(0, tmp_path, recorded=600, updates=3, episodes=3))
    assert game == dict(minatar.measure(0, tmp_path, recorded=600, updates=3, episodes=3))
    measured |= game
    assert {name for claim in PAPER.claims for name in claim.pair} <= set(measured)
    plot({0: measured, 1: measured}).savefig(tmp_path / "plot.png")
    value_maps(rooms(), {"one": torch.arange(104.0)}).savefig(tmp_path / "maps.png")


@pytest.mark.parametrize("settings", [{"precision": "bf16-mixed"}, {}])
def test_mixed_precision_and_accumulated_batches(settings: dict[str, str]) -> None:
    def run(**given: object) -> dict[str, Tensor]:
        torch.manual_seed(0)
        sets = NetworkIndicators(RandomNetworks(4, 2, 1, 6, ((2, 3, 1),), scale=1.0), 4, 0.2)
        model = ProtoValues(SmallEncoder(1, 6, 8, 2), sets, 2, warm_up=2)
        # The same 8 transitions in each step, at once or four by four.
        size = 8 // int(str(given.get("accumulate", 1)))
        transitions = record_of_images()
        batches = [transitions.batch(part) for part in torch.arange(8).split(size)]
        pt.fit(model, Repeated(batches * 6), steps=6, optimizer=sgd, schedule="constant", **given)  # type: ignore[arg-type]
        return model.state_dict()

    found = run(fabric=pt.training.fabric(**settings)) if settings else run(accumulate=2)
    for name, tensor in run().items():
        if not name.startswith("updates"):
            torch.testing.assert_close(found[name].double(), tensor.double(), atol=1e-2 if settings else 1e-5, rtol=1e-2)


class Repeated:
    """Batches as they are, in their order."""

    def __init__(self, batches: list[Transition]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, skip: int = 0) -> object:
        return iter(self.batches[skip:])


def sgd(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, 0.01)


def test_evaluation_says_how_large_the_sets_are() -> None:
    transitions = record_of_images()
    cumulants = NetworkCumulants(RandomNetworks(4, 2, 1, 6, ((2, 3, 1),), scale=1.0), 4)
    model = ProtoValues(SmallEncoder(1, 6, 8, 2), cumulants, 2)
    fitted = pt.fit(
        model, TransitionBatches(transitions, 4), TransitionBatches(transitions, 4), steps=4, monitor="values/fit"
    )
    assert fitted.metrics["values"]["fit"] < 0 and "share" in fitted.metrics["thresholds"]


def record_of_images() -> pt.data.control.Transitions:  # type: ignore[name-defined]
    from polytask.data.control import Transitions

    frames = torch.randint(2, (21, 1, 6, 6), dtype=torch.uint8)
    cut = torch.arange(21) == 20
    return Transitions("images", frames, torch.arange(21) % 2, torch.zeros(21), torch.zeros(21).bool(), cut, 2)
