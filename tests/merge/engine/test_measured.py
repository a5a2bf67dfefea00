"""What was measured of models: checked by headers, read in pieces."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.merge.rules.models import Weights, merge
from torch import Tensor

from polytask.errors import InputError
from polytask.merge import Average, Fisher, RegMean
from polytask.merge.engine.measured import PIECE, Measured
from polytask.merge.engine.rule import Rule
from polytask.merge.engine.run import Merge
from polytask.merge.engine.source import InMemory


class Counting(InMemory):
    """Counts the elements that were asked for, and the most at once."""

    read_so_far = most = 0

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        piece = super().read(name, start, stop)
        self.read_so_far += len(piece)
        self.most = max(self.most, len(piece))
        return piece


def test_a_length_is_that_of_all_tensors_and_is_found_once_in_pieces() -> None:
    tensors = {"long": torch.rand(PIECE + 5), "b": torch.rand(3, 4), "scalar": torch.tensor(2.0), "none": torch.zeros(0, 3)}
    source = Counting(tensors)
    measured = Measured([source])
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(measured.length, [0] * 8))
    expected = math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))
    assert len(found) == 1 and math.isclose(found.pop(), expected, rel_tol=1e-12)
    assert source.read_so_far == PIECE + 5 + 12 + 1 and source.most == PIECE


def test_pieces_and_whole_tensors() -> None:
    measured = Measured([InMemory({"w": torch.arange(6).view(2, 3).bfloat16()}), InMemory({"w": torch.ones(2, 3)})])
    assert measured.names == {"w"} and measured.at(0, "v", 0, 1) is None
    piece = measured.at(0, "w", 2, 5)
    assert piece is not None and piece.tolist() == [2, 3, 4]
    whole = measured.whole(0, "w")
    assert whole.dtype == torch.float64 and whole.tolist() == [[0, 1, 2], [3, 4, 5]]


ONES = {"w": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("rule", "sources", "message"),
    [
        (Fisher(), None, "Fisher needs what was measured of each model"),
        (RegMean(), None, "RegMean needs what was measured"),
        (Average(), [ONES] * 2, "Average needs nothing that was measured"),
        (Fisher(), [ONES], "measured of 1 models, expected of each of 2"),
        (Fisher(), [ONES, ONES | {"v": torch.ones(1)}], "model 2: tensor 'v' is not in every set"),
        (Fisher(), [ONES, {}], "model 2: no tensor 'w'"),
        (Fisher(), [{"v": torch.ones(1)}] * 2, "measured of tensor 'v': expected a tensor that is merged"),
        (Fisher(), [ONES, {"w": torch.ones(4)}], r"model 2: tensor 'w': shape \[4\], expected \[2, 2\]"),
        (RegMean(), [ONES, {"w": torch.ones(3, 3)}], r"model 2: tensor 'w': shape \[3, 3\], expected \[2, 2\]"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_read(rule: Rule, sources: list[Weights] | None, message: str) -> None:
    models = [Counting(ONES), Counting(ONES)]
    counting = None if sources is None else [Counting(tensors) for tensors in sources]
    with pytest.raises(InputError, match=message):
        Merge(rule, models, None, {"w": (2, 2)}, measured=None if counting is None else Measured(counting))
    assert not any(source.read_so_far for source in [*models, *(counting or [])])


def test_values_that_cannot_be_are_found_when_they_are_read() -> None:
    bad = {"w": torch.tensor([[1, 1], [math.inf, 1]])}
    for rule in (Fisher(), RegMean()):
        with pytest.raises(InputError, match=r"measured of model 2: tensor 'w': .*finite"):
            merge(rule, [ONES] * 2, None, measured=Measured([InMemory(ONES), InMemory(bad)]))
    with pytest.raises(InputError, match="measured of model 1: tensor 'w': Fisher values that are below 0"):
        merge(Fisher(), [ONES] * 2, None, measured=Measured([InMemory({"w": -ONES["w"]}), InMemory(ONES)]))


def test_a_note_that_is_no_list() -> None:
    for note in ("{", "3"):
        odd = InMemory(ONES, {"inputs_first": note})
        with pytest.raises(InputError, match=r"model 1: note inputs_first .*expected a list of names"):
            merge(RegMean(), [ONES] * 2, None, measured=Measured([odd, odd]))
