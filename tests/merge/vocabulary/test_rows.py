"""Rows from elsewhere: whatever piece is asked for, the same bits, and those of a plain loop over rows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polytask.merge.engine.source import InMemory
from polytask.merge.vocabulary import rows as module
from polytask.merge.vocabulary.rows import Layout, common, with_rows


class Copying(InMemory):
    """A source whose pieces are copies, as those of an adapter are, and that notes which were asked for."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__({"w": tensor})
        self.asked: list[tuple[int, int]] = []

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        self.asked.append((start, self.tensors[name].numel() if stop is None else stop))
        return super().read(name, start, stop).clone()


def indices(data: st.DataObject, count: int, rows: int) -> list[int]:
    return data.draw(st.lists(st.integers(-1, rows - 1), min_size=count, max_size=count))


@pytest.mark.parametrize("with_base", [True, False])
@given(data=st.data(), width=st.integers(1, 5), count=st.integers(1, 12), span=st.integers(1, 30))
def test_any_piece_is_that_of_a_loop_over_rows(
    with_base: bool, data: st.DataObject, width: int, count: int, span: int
) -> None:
    generator = torch.Generator().manual_seed(width * 100 + count)
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    dtypes = data.draw(st.lists(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), min_size=4, max_size=4))
    held = [torch.randn(n, width, generator=generator).to(d) for n, d in zip(sizes, dtypes, strict=False)]
    maps = [indices(data, count, n) for n in sizes]
    for r in range(count):  # somebody has each row
        if all(index[r] < 0 for index in maps):
            maps[r % len(maps)][r] = 0
    index = [torch.tensor(each) for each in maps]
    sources = [Copying(each) if data.draw(st.booleans()) else InMemory({"w": each}) for each in held]
    start = 1 if with_base else 0
    base, models = (sources[0] if with_base else None), sources[start:]
    layout = Layout((count, width), common([t.dtype for t in held]), index[0] if with_base else None, index[start:])

    def expected(own: int) -> Tensor:
        rows = []
        for r in range(count):
            havers = [held[k][maps[k][r]].double() for k in range(start, len(held)) if maps[k][r] >= 0]
            in_base = with_base and maps[0][r] >= 0
            if maps[own][r] >= 0 and (in_base or not with_base):
                rows.append(held[own][maps[own][r]].double())
            elif in_base:
                rows.append(held[0][maps[0][r]].double())
            else:
                rows.append(sum(havers[1:], havers[0]) / len(havers))
        return torch.stack(rows).flatten()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPAN", span)
        for own in range(len(held)):
            of = own - start if own >= start else None
            source = with_rows({"w": layout}, base, models, of)
            if isinstance(source, InMemory):  # its rows are the output's, though it may have more
                assert maps[own] == list(range(count))
            first = data.draw(st.integers(0, count * width))
            last = data.draw(st.integers(first, count * width))
            assert torch.equal(source.read("w", first, last).double(), expected(own)[first:last])
            assert torch.equal(source.read("w", 0, count * width).double(), expected(own))


def test_rows_that_are_those_of_the_output_cost_nothing() -> None:
    base, model = InMemory({"w": torch.randn(4, 2)}), InMemory({"w": torch.randn(4, 2)})
    layout = Layout((4, 2), torch.float32, torch.arange(4), [torch.arange(4), torch.tensor([1, 0, 2, 3])])
    assert with_rows({"w": layout}, base, [model, model], None) is base
    assert with_rows({"w": layout}, base, [model, model], 0) is model
    assert with_rows({"w": layout}, base, [model, model], 1) is not model


def test_only_the_rows_that_are_asked_for_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(8000.0).view(1000, 8)
    source = Copying(tensor)
    shifted = torch.cat([torch.arange(500, 1000), torch.arange(500)])
    layout = Layout((1000, 8), torch.float32, None, [shifted])
    found = with_rows({"w": layout}, None, [source], 0)
    assert torch.equal(found.read("w", 85, 100), tensor[shifted].flatten()[85:100])
    assert source.asked == [(510 * 8, 513 * 8)], "a run is one slice, of whole rows"
    source.asked.clear()
    monkeypatch.setattr(module, "SPAN", 64)
    scattered = torch.tensor([900, 3, 901, 500, 3])
    found = with_rows({"w": Layout((5, 8), torch.float32, None, [scattered])}, None, [source], 0)
    assert torch.equal(found.read("w"), tensor[scattered].flatten())
    asked = sum(stop - start for start, stop in source.asked)
    assert asked <= 2 * scattered.numel() * 8 and max(stop - start for start, stop in source.asked) <= 64


def test_a_precision_for_all() -> None:
    assert common([torch.bfloat16, torch.bfloat16]) == torch.bfloat16
    assert common([torch.bfloat16, torch.float16]) == torch.float32
    assert common([torch.float32, torch.float64]) == torch.float64
    eight = torch.randn(5, 3).to(torch.float8_e4m3fn)
    layout = Layout((2, 3), eight.dtype, None, [torch.tensor([4, 1])])
    found = with_rows({"w": layout}, None, [InMemory({"w": eight})], 0).read("w")
    assert torch.equal(found.float(), eight.float()[[4, 1]].flatten()) and math.prod(found.shape) == 6
