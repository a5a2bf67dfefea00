"""An encoder and decoders of any width."""

from __future__ import annotations

import pytest
import torch
from tests.share.slimmable.networks import TASKS, batch, supernet

import polytask as pt
from polytask import InputError
from polytask.share.slimmable import Configuration, Supernet


def test_outputs_are_decoders_of_what_the_encoder_gives() -> None:
    network, (x, _) = supernet(), batch()
    found = network(x, Configuration(0.25, {"classes": 0.5, "edge": 1.0, "depth": 0.25}))
    features = network.encoder(x, 0.25)
    assert features.shape == (4, 48, 4, 4) and network.width == 48
    for name, width in (("classes", 0.5), ("edge", 1.0), ("depth", 0.25)):
        assert torch.equal(found[name], network.decoders[name](features, width))
    whole = network(x)
    assert torch.equal(whole["edge"], network.decoders["edge"](network.encoder(x)))
    assert list(network(x, tasks=["depth"])) == ["depth"]
    assert torch.equal(network.predict(x, ["edge"])["edge"], whole["edge"].sigmoid())


def test_a_configuration_by_itself_gives_the_same() -> None:
    network, (x, _) = supernet(per_stage=True), batch()
    chosen = Configuration((0.75, 0.25), {"classes": 0.25, "edge": 0.5, "depth": 1.0})
    encoder, decoders = network.extract(chosen)
    for name, output in network(x, chosen).items():
        torch.testing.assert_close(decoders[name](encoder(x)), output)


def test_the_largest_the_smallest_and_random_ones() -> None:
    network = supernet(widths=(0.5, 0.25, 1))
    assert network.largest == Configuration(1.0, dict.fromkeys(network.tasks, 1.0))
    assert network.smallest == Configuration(0.25, dict.fromkeys(network.tasks, 0.25))
    assert list(network.encoders()) == [0.25, 0.5, 1.0]
    torch.manual_seed(0)
    drawn = [network.sample() for _ in range(300)]
    assert len({a.encoder for a in drawn}) == 3 and len(set(drawn)) > 50  # of 81
    torch.manual_seed(0)
    assert drawn[:5] == [network.sample() for _ in range(5)]
    stages = supernet(per_stage=True)
    assert len(list(stages.encoders())) == 16 and stages.smallest.encoder == (0.25, 0.25)
    assert len({stages.sample().encoder for _ in range(300)}) == 16


def test_parameters_are_shared_or_one_tasks_own() -> None:
    network = supernet()
    parts = [list(network.shared_parameters()), *(list(network.parameters_of(task)) for task in network.tasks)]
    assert sorted(id(p) for part in parts for p in part) == sorted(map(id, network.parameters()))


def test_it_is_evaluated_as_a_model_is() -> None:
    x, targets = batch(12)
    found = pt.evaluate(supernet(), pt.Examples(x, targets))  # type: ignore[arg-type]
    assert list(found) == ["classes", "edge", "depth"] and 0 <= found["classes"]["miou"] <= 1


def test_what_does_not_fit_is_refused() -> None:
    network, (x, _) = supernet(), batch()
    with pytest.raises(InputError, match="unknown task 'edges': did you mean 'edge'"):
        network(x, tasks=["edges"])
    with pytest.raises(InputError, match="unknown task 'depth': known: classes, edge"):
        network(x, Configuration(1.0, {"classes": 1.0, "edge": 1.0}))
    with pytest.raises(InputError, match=r"widths \[0.25, 0.5\], expected numbers above 0 of which the largest is 1"):
        supernet(widths=[0.25, 0.5])
    with pytest.raises(InputError, match=r"decoders for \['classes'\], expected one for each task"):
        Supernet(network.encoder.extract(), {"classes": network.encoder.extract()}, TASKS)
