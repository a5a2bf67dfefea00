"""The loop of merging: chunks, statistics, bad input."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge import TIES, Average, Breadcrumbs, Rule, TaskArithmetic, merge_state_dicts
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.ranks import SAMPLE
from polytask.merge.engine.rule import Cuts, Products, Statistic, magnitudes
from polytask.merge.engine.run import Merge
from polytask.merge.engine.source import InMemory

SHAPES = {"long": (20_000,), "matrix": (130, 70), "one": (1,), "scalar": (), "empty": (0, 3)}


def state(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}


def run(rule: Rule, models: Sequence[dict[str, Tensor]], base: dict[str, Tensor] | None, chunk: int) -> dict[str, Tensor]:
    out = {name: torch.full((tensor.numel(),), torch.nan) for name, tensor in models[0].items()}
    sources = [InMemory(model) for model in models]

    def write(name: str, start: int, values: Tensor) -> None:
        out[name][start : start + len(values)] = values

    Merge(rule, sources, None if base is None else InMemory(base), SHAPES, chunk=chunk).run(write)
    return out


@dataclass(frozen=True)
class Seen(Rule):
    """What a rule is shown."""

    cut = "row"

    def statistics(self, count: int) -> Sequence[Statistic]:
        return (Products("products"),)

    def merge(self, chunk: Chunk) -> Tensor:
        assert chunk.base is not None
        assert chunk.start % max(chunk.width, 1) == 0
        assert torch.equal(magnitudes(chunk), chunk.rows.abs())
        return chunk.base + chunk.rows[-1]


def test_every_element_is_shown_once_and_in_its_place() -> None:
    base, models = state(0), [state(1), state(2)]
    found = run(Seen(), models, base, 4096)
    for name, tensor in models[-1].items():
        torch.testing.assert_close(found[name], tensor.flatten())


@pytest.mark.parametrize("chunk", [1, 4096, 8192, 12_288, 10**6])
def test_chunks_do_not_change_a_bit(chunk: int) -> None:
    base, models = state(0), [state(k, 0.1) for k in range(1, 5)]
    for rule in (TIES(), TIES(scope="tensor", density=0.5), Breadcrumbs(unit="row"), Breadcrumbs(unit="model"), Average()):
        whole, cut = run(rule, models, base, 2**22), run(rule, models, base, chunk)
        assert all(torch.equal(whole[name], cut[name]) for name in SHAPES), rule


def test_of_each_tensor_as_much_is_looked_at_as_it_is_large() -> None:
    shapes = {"small": (300,), "middle": (200, 500), "large": (900, 700)}
    model = {
        name: torch.arange(700 * 900).float()[: torch.Size(shape).numel()].view(shape) for name, shape in shapes.items()
    }
    rule = TIES(scope="model")
    merge = Merge(rule, [InMemory(model), InMemory(model)], InMemory({n: torch.zeros(s) for n, s in shapes.items()}), shapes)
    (statistic,) = [s for s in rule.statistics(2) if isinstance(s, Cuts)]
    for name, shape in shapes.items():
        total = torch.Size(shape).numel()
        sample = merge._sample(statistic, name, 730_300)
        assert sample.shape == (2, -(-SAMPLE * total // 730_300))
        assert len(sample[0].unique()) == len(sample[0]) and sample[0].max() > 0.95 * (total - 300)
        columns = (sample[0] % shape[-1]).long().bincount(minlength=shape[-1])
        assert name == "small" or int((columns == 0).sum()) < 0.2 * shape[-1]  # no part of all rows is left out


def test_products_are_exact_sums_in_any_order() -> None:
    models = [state(1), state(2)]
    sources = [InMemory(model) for model in models]
    found = [Merge(Seen(), sources, InMemory(state(0)), SHAPES, chunk=chunk)._products("long") for chunk in (4096, 2**20)]
    rows = torch.stack([model["long"].double() - state(0)["long"].double() for model in models])
    torch.testing.assert_close(found[0], rows @ rows.T, rtol=1e-6, atol=1e-6)
    assert torch.equal(found[0], found[1])


def test_a_value_that_is_not_finite_is_traced_to_its_model() -> None:
    base, models = state(0), [state(1), state(2)]
    models[1]["matrix"][5, 5] = torch.nan
    with pytest.raises(InputError, match=r"'matrix'.*model 2"):
        merge_state_dicts(TaskArithmetic(), models, base)
    with pytest.raises(InputError, match="the settings are too large"):
        merge_state_dicts(TaskArithmetic(scale=1e38, weight=1e5), [state(1)], base)


def test_state_dicts_keep_their_precision_and_whole_numbers() -> None:
    base = {"w": torch.zeros(3, dtype=torch.bfloat16), "steps": torch.tensor(7)}
    models = [{"w": torch.ones(3, dtype=torch.bfloat16) * k, "steps": torch.tensor(k)} for k in (1, 2)]
    merged = merge_state_dicts(TaskArithmetic(scale=1.0), models, base)
    assert merged["w"].dtype == torch.bfloat16
    assert merged["w"].tolist() == [3, 3, 3]
    assert int(merged["steps"]) == 7


def test_models_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match="model 2: tensor 'b' is not in every model"):
        merge_state_dicts(Average(), [{"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(1)}])
    with pytest.raises(InputError, match=r"model 2: tensor 'a' has shape \[3\], expected \[2\]"):
        merge_state_dicts(Average(), [{"a": torch.ones(2)}, {"a": torch.ones(3)}])
    with pytest.raises(InputError, match="expected a base model"):
        merge_state_dicts(TIES(), [{"a": torch.ones(2)}])
    with pytest.raises(InputError, match="weight has 3 numbers, expected one for each of 2 models"):
        merge_state_dicts(Average(weight=[1, 2, 3]), [{"a": torch.ones(2)}] * 2)


TIED = {"a": 5000, "b": 9000}


def test_a_resumed_merge_cuts_ties_where_a_whole_one_does() -> None:
    base = {name: torch.zeros(n) for name, n in TIED.items()}
    models = [{name: torch.ones(n) for name, n in TIED.items()}]

    def run(only: list[str] | None) -> Tensor:
        out = torch.zeros(9000)

        def write(name: str, start: int, values: Tensor) -> None:
            if name == "b":
                out[start : start + len(values)] = values

        shapes = {name: (n,) for name, n in TIED.items()}
        Merge(TIES(0.5), [InMemory(m) for m in models], InMemory(base), shapes, chunk=4096).run(write, only)
        return out

    assert torch.equal(run(None), run(["b"]))
    assert int(run(["b"]).sum()) == 2000


@pytest.mark.parametrize(
    ("one", "other"),
    [(TIES(0.2), TIES(0.2, scope="tensor")), (Breadcrumbs(0.2, unit="model"), Breadcrumbs(0.2, unit="tensor"))],
)
def test_a_tensor_with_a_scope_of_its_own_has_its_own_cut(one: Rule, other: Rule) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.zeros(n) for name, n in TIED.items()}
    models = [{name: torch.randn(n, generator=generator) * (1 + 8 * (name == "b")) for name, n in TIED.items()}]
    kept = {}

    def write(name: str, start: int, values: Tensor) -> None:
        kept[name] = kept.get(name, 0) + int(values.count_nonzero())

    shapes = {name: (n,) for name, n in TIED.items()}
    Merge(lambda name: one if name == "a" else other, [InMemory(m) for m in models], InMemory(base), shapes, chunk=4096).run(
        write
    )
    assert kept == {"a": 1000, "b": 1800}
