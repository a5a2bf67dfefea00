"""Exact order statistics: against sorting, from any bracket, with ties by index."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.merge.engine import ranks
from polytask.merge.engine.ranks import Cut, Ranking, exactly, keys, value_of


def kept(values: Tensor, count: int) -> Tensor:
    """The largest ``count``, the first of equal ones, by a stable sort."""
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[values.argsort(descending=True, stable=True)[:count]] = True
    return mask


def pieces(values: Tensor, size: int) -> list[Tensor]:
    return list(values.split(size)) if len(values) else []


def asked(cut: Cut, values: Tensor, size: int) -> Tensor:
    return torch.cat([cut.above(piece) for piece in pieces(values, size)])


SOME = [0.0, 1.0, -1.0, 2.0, 1e-40]
numbers = st.lists(st.one_of(st.floats(-(2.0**100), 2.0**100, width=32), st.sampled_from(SOME)), min_size=1, max_size=60)


@given(numbers)
def test_keys_have_the_order_of_the_numbers_and_lead_back(values: list[float]) -> None:
    for dtype in (torch.float32, torch.float64):
        tensor = torch.tensor(values, dtype=dtype) + 0.0  # no -0
        found = keys(tensor, signed=True)
        assert torch.equal(found.argsort(stable=True), tensor.argsort(stable=True))
        for key, value in zip(found.tolist(), tensor, strict=True):
            assert torch.equal(value_of(key, dtype), value)


@given(numbers, st.data())
def test_a_cut_is_that_of_a_stable_sort(values: list[float], data: st.DataObject) -> None:
    tensor = torch.tensor(values) + 0.0
    count = data.draw(st.integers(0, len(values)))
    size = data.draw(st.integers(1, len(values)))
    (cut,) = exactly(tensor, [count])
    assert torch.equal(asked(cut, tensor, size), kept(tensor, count))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["normal", "ties", "zeros", "wide", "constant"]), st.booleans(), st.data())
def test_a_search_finds_the_same_cut_whatever_it_was_told_to_expect(
    seed: int, kind: str, misled: bool, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3000, generator=generator)
    if kind == "ties":
        values = (values * 3).round() / 3 + 0.0
    elif kind == "zeros":
        values[values.abs() < 1.5] = 0
    elif kind == "wide":
        values = values.sign() * 10 ** (values * 8)
    elif kind == "constant":
        values = torch.ones_like(values)
    wanted = [[data.draw(st.integers(0, 3000)) for _ in range(2)] for _ in range(2)]
    sample = values[:, ::7] * (100 if misled else 1)
    passes = 0

    def look():  # type: ignore[no-untyped-def]
        nonlocal passes
        while True:
            passes += 1
            yield values.split(700, dim=1)

    found = Ranking(wanted, 3000, sample, signed=True).run(look())
    assert passes <= 8
    for row, cuts, counts in zip(values, found, wanted, strict=True):
        for cut, count in zip(cuts, counts, strict=True):
            assert torch.equal(asked(cut, row, 700), kept(row, count))


def test_a_good_sample_leads_to_the_cut_in_one_pass() -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 200_000).abs()
    passes: list[int] = []

    def look():  # type: ignore[no-untyped-def]
        while True:
            passes.append(1)
            yield values.split(30_000, dim=1)

    Ranking([[40_000], [20], [199_000, 5]], 200_000, values[:, ::4], signed=False).run(look())
    assert len(passes) == 1


def test_neighbours_that_are_alike_widen_what_is_expected() -> None:
    # Pieces of a row have a scale in common: a sample of whole pieces says less than as many values from everywhere.
    generator = torch.Generator().manual_seed(0)
    pieces = torch.randn(16, 8192, ranks.NEIGHBOURS, generator=generator) * torch.rand(16, 8192, 1, generator=generator)
    whole = pieces.abs().view(16, -1)
    count = whole.shape[1] // 100
    passes: list[int] = []

    def look():  # type: ignore[no-untyped-def]
        while True:
            passes.append(1)
            yield whole.split(2**18, dim=1)

    sample = pieces[:, ::64].abs().reshape(16, -1)
    cuts = Ranking([[count]] * 16, whole.shape[1], sample, signed=False).run(look())
    assert len(passes) == 1
    for row, (cut,) in zip(whole, cuts, strict=True):
        assert int((row >= cut.at).sum()) == count


def test_without_a_sample_histograms_narrow_down(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(ranks, "BINS", 64)
    torch.manual_seed(0)
    values = torch.randn(1, 500, dtype=torch.float64)
    ((cut,),) = Ranking([[123]], 500, None, torch.float64).run([values] for _ in iter(int, 1))
    assert torch.equal(cut.above(values[0]), kept(values[0], 123))
