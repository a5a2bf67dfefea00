"""The experts that the papers on merging share."""

from pathlib import Path

import pytest
import torch
from tests.papers.real_data import folder_with

from polytask.data.examples import Examples
from polytask.errors import InputError
from polytask.papers._experts import Experts, Split, glyphs, train


def easy(task: str, generator: torch.Generator) -> Split:
    """Two classes that a line parts."""

    def part(size: int) -> Examples:
        inputs = torch.randn(size, 1, 2, 2, generator=generator)
        return Examples(inputs, {task: (inputs.flatten(1).sum(1) > 0).long()})

    return Split(2, part(200), part(50), part(50))


def small_base(data: object, seed: int) -> tuple[torch.nn.Module, dict[str, torch.nn.Module]]:
    torch.manual_seed(seed)
    encoder = glyphs.Encoder((4, 8, 6))
    encoder[1].bias.requires_grad_(False)
    return encoder, {task: torch.nn.Linear(6, 2) for task in ("one", "two")}


def made(seed: int = 0, lr: float = 1e-2) -> Experts:
    generator = torch.Generator().manual_seed(seed)
    data = {task: easy(task, generator) for task in ("one", "two")}
    return train("easy", seed, data, [], small_base, {"epochs": 15, "batch_size": 20, "lr": lr})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path))
    return tmp_path / "experts"


def test_experts_learn_and_heads_and_frozen_parameters_stay() -> None:
    experts = made()
    _, heads = small_base(None, 0)
    assert all(torch.equal(experts.heads[task].weight, heads[task].weight) for task in heads)
    assert experts.mean(experts.base) < 80 < min(experts.individual().values())
    for expert, vector in zip(experts.models, experts.vectors, strict=True):
        assert torch.equal(expert["1.bias"], experts.base["1.bias"]) and not vector["1.bias"].any()
        assert vector["1.weight"].any()
        torch.testing.assert_close(experts.base["1.weight"] + vector["1.weight"], expert["1.weight"])


def test_what_was_made_is_read_and_what_is_damaged_is_made_again(cache: Path) -> None:
    first = made()
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    second = made()
    assert file.stat().st_mtime_ns == written
    half = file.read_bytes()[:-10]
    file.unlink()  # what `second` has read may still be mapped
    file.write_bytes(half)
    third = made()
    for other in (second, third):
        for task in first.tasks:
            assert all(torch.equal(first.experts[task][key], other.experts[task][key]) for key in first.base)
    assert len({*cache.iterdir(), file}) == 1
    made(lr=1e-3), made(seed=1)
    assert len(list(cache.iterdir())) == 3


def test_accuracies_are_those_of_the_network_itself() -> None:
    experts = made().only(["two"])
    assert experts.tasks == ("two",) and len(experts.vectors) == 1
    inputs, labels = experts.part("two", "test")
    network = glyphs.Encoder((4, 8, 6))
    network.load_state_dict(experts.experts["two"])
    right = (experts.heads["two"](network(inputs)).argmax(1) == labels).float().mean()
    assert experts.accuracies(experts.experts["two"]) == {"two": pytest.approx(100 * float(right))}
    torch.testing.assert_close(
        experts.logits(experts.base, "two", inputs, batch_size=7), experts.logits(experts.base, "two", inputs)
    )


def test_six_tasks_of_glyphs() -> None:
    folder = folder_with(glyphs.FILES)
    data = glyphs.load(folder, 0)
    assert list(data) == ["mnist", "usps", "notmnist", "mnist turned", "usps inverted", "notmnist flipped"]
    for name, split in data.items():
        for part, size in glyphs.SIZES.items():
            images, targets = getattr(split, part)[:]
            assert images.shape == (size, 1, 28, 28) and set(targets[name].tolist()) == set(range(10))
            assert float(images.min()) >= 0 and float(images.max()) <= 1
    for name, (of, change) in glyphs.TRANSFORMED.items():  # the same images in the same splits
        assert torch.equal(data[name].test.inputs, change(data[of].test.inputs))
    plain = [{image.numpy().tobytes() for image in getattr(data["mnist"], part).inputs} for part in glyphs.SIZES]
    assert len(set.union(*plain)) == sum(map(len, plain)) == 6000
    other = glyphs.load(folder, 1)
    assert not torch.equal(other["mnist"].test.inputs, data["mnist"].test.inputs)
    assert torch.equal(other["usps"].test.inputs, data["usps"].test.inputs)  # its own test set


def test_a_file_that_is_no_npz_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "glyph_tasks").mkdir()
    for name in glyphs.FILES:
        (tmp_path / name).write_bytes(b"no arrays")
    with pytest.raises(InputError, match=r"mnist_t10k\.npz: cannot be read as an npz file"):
        glyphs.load(tmp_path, 0)
