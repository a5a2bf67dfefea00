"""CamVid's three dense tasks: by hand on small frames, and on the file itself where it is."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.papers.real_data import folder_with

import polytask as pt
from polytask.papers._camvid import CLASSES, FILES, VOID, DenseEncoder, DenseHead, boundary, camvid, sequences
from polytask.task import MISSING


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file like CamVid's with a few random frames."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 5), ("val", 2), ("test", 3)):
        arrays[f"{split}_image"] = rng.integers(0, 256, (size, 48, 64, 3), dtype=np.uint8)
        arrays[f"{split}_label"] = rng.integers(0, VOID + 1, (size, 48, 64), dtype=np.uint8)
        arrays[f"{split}_name"] = np.array([f"Seq{i % 2}_{i:05}" for i in range(size)])
    path = tmp_path / FILES[0]
    path.parent.mkdir()
    np.savez(path, **arrays)
    return tmp_path


def test_boundaries_are_where_the_right_or_lower_neighbour_has_another_class() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).integers(8, VOID + 1, (3, 7, 9)))
    found = boundary(labels)
    for n, y, x in np.ndindex(*labels.shape):
        near = [labels[n, y + 1, x]] if y < 6 else []
        near += [labels[n, y, x + 1]] if x < 8 else []
        if labels[n, y, x] == VOID:
            assert math.isnan(found[n, y, x])
        else:
            assert found[n, y, x] == any(other not in (VOID, labels[n, y, x]) for other in near)


def test_luminance_and_chroma_are_the_colour(small: Path) -> None:
    data = camvid(small)
    with np.load(small / FILES[0]) as arrays:
        rgb = arrays["test_image"].astype(float)
        grey = arrays["train_image"] @ [0.299, 0.587, 0.114]
    y = data.test.inputs[:, 0].double().numpy() * grey.std() + grey.mean()
    cb, cr = data.test.targets["chroma"].double().numpy().transpose(1, 0, 2, 3)
    # The inverse transform of ITU-R BT.601.
    back = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    np.testing.assert_allclose(back, rgb, atol=0.1)
    assert np.abs([cb, cr]).max() <= 127.5
    assert data.train.inputs.mean() == pytest.approx(0, abs=1e-5) and data.train.inputs.std() == pytest.approx(1, abs=1e-4)


def test_shrunk_frames_have_the_mean_colour_and_the_most_frequent_class(small: Path) -> None:
    data, whole = camvid(small, shrink=4), camvid(small)
    with np.load(small / FILES[0]) as arrays:
        labels = arrays["val_label"].reshape(2, 12, 4, 16, 4).swapaxes(2, 3).reshape(2, 12, 16, 16)
    found = data.validation.targets["classes"]
    for place in np.ndindex(2, 12, 16):
        counts = Counter(labels[place].tolist())
        expected = min(label for label, count in counts.items() if count == max(counts.values()))
        assert int(found[place]) == (MISSING if expected == VOID else expected)
    mean = whole.test.targets["chroma"].unfold(2, 4, 4).unfold(3, 4, 4).mean((-2, -1))
    torch.testing.assert_close(data.test.targets["chroma"], mean, atol=1e-3, rtol=1e-4)


def test_a_model_of_the_heads_learns_all_three(small: Path) -> None:
    data = camvid(small, shrink=2)
    assert [task.metric for task in data.tasks] == ["miou", "average_precision", "mae"]
    torch.manual_seed(0)
    model = pt.Model(data.encoder(), data.tasks)
    plain = model(data.test[:2][0])
    for name, output in plain.items():
        model.heads[name] = DenseHead(model.width, output.shape[1], hidden=16)
    assert {name: tuple(output.shape) for name, output in model(data.test[:2][0]).items()} == {
        name: (2, channels, 12, 16) for name, channels in (("classes", 11), ("boundary", 1), ("chroma", 2))
    }
    fitted = pt.fit(model, data.train, steps=30, batch_size=5, lr=1e-2, evaluate_every=10)
    first, *_, last = (record["loss"] for record in fitted.history)
    assert all(last[name] < first[name] for name in ("classes", "boundary", "chroma"))
    found = pt.evaluate(model, data.test)
    assert 0 <= found["classes"]["miou"] <= 1 and 0 <= found["boundary"]["average_precision"] <= 1


def test_an_encoder_sees_31_pixels() -> None:
    encoder = DenseEncoder((1, 8, 8, 8, 8)).double()
    for layer in encoder:
        layer[1] = torch.nn.Identity()  # the norm sees everything
    frames = torch.randn(1, 1, 48, 64, dtype=torch.double, requires_grad=True)
    encoder(frames)[0, :, 12, 16].sum().backward()
    assert frames.grad is not None
    rows = frames.grad[0, 0].any(1).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == 31


def test_what_cannot_be_read_is_one_line(small: Path, tmp_path: Path) -> None:
    with pytest.raises(pt.InputError, match="shrink 3, expected a common divisor of 48 and 64"):
        camvid(small, shrink=3)
    (small / FILES[0]).write_bytes(b"no arrays")
    with pytest.raises(pt.InputError, match=r"camvid48x64\.npz: cannot be read as an npz file"):
        camvid(small)


def test_the_file() -> None:
    folder = folder_with(FILES)
    data = camvid(folder)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [367, 101, 233]
    classes = data.train.targets["classes"]
    shares = torch.bincount(classes[classes >= 0], minlength=len(CLASSES)) / classes.numel()
    known = dict(zip(CLASSES, shares.tolist(), strict=True))
    assert {name: round(known[name], 2) for name in ("road", "building", "sky", "tree", "car")} == {
        "road": 0.32,
        "building": 0.24,
        "sky": 0.17,
        "tree": 0.1,
        "car": 0.06,
    }
    assert float((classes == MISSING).float().mean()) == pytest.approx(0.04, abs=0.005)
    assert Counter(sequences(folder, "test")) == {"Seq05VD": 171, "0001TP": 62}
    assert len(sequences(folder, "validation")) == 101
