"""Three dense tasks of road scenes: classes, class boundaries and colour, all from the luminance.

CamVid (Brostow, Fauqueur and Cipolla, *Semantic object classes in video*, 2009) in the split and the 11 classes of SegNet:
367 training, 101 validation and 233 test frames of 48 x 64 pixels. What the papers on dense tasks have in common.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.data.examples import DataSet, Examples
from polytask.data.npz import read_npz
from polytask.errors import InputError
from polytask.task import MISSING, Task

FILES = ("camvid_mini/camvid48x64.npz",)
CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
VOID = len(CLASSES)
SPLITS = {"train": "train", "validation": "val", "test": "test"}
LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in luminance, and below of luminance in chroma: ITU-R BT.601."""


def camvid(folder: Path, shrink: int = 1) -> DataSet:
    """The three tasks, on inputs ``(N, 1, H, W)``, the luminance with mean 0 and standard deviation 1 over training frames.

    ``classes`` is segmentation, 11 classes, by mIoU. ``boundary`` is 1 where the right or the lower neighbour has another
    class than the pixel, by average precision; a void pixel has neither label, and is no neighbour. ``chroma`` is Cb and Cr
    in levels of 8 bits, -128 to 128, by the mean absolute error, which is its loss too.

    Args:
        folder: the folder of data sets, with `FILES`.
        shrink: squares of this many pixels a side become one, of their mean colour and most frequent class (the first of
            equally frequent ones). 1 (default) for 48 x 64, 2 for 24 x 32.
    """
    if shrink < 1 or 48 % shrink or 64 % shrink:
        raise InputError(f"camvid: shrink {shrink}, expected a common divisor of 48 and 64")
    arrays = read_npz(folder / FILES[0])
    colours, labels = {}, {}
    for split, name in SPLITS.items():
        colours[split] = F.avg_pool2d(torch.from_numpy(arrays[f"{name}_image"]).permute(0, 3, 1, 2).float(), shrink)
        labels[split] = _shrunk(torch.from_numpy(arrays[f"{name}_label"].astype(np.int64)), shrink)
    weights = torch.tensor(LUMA)[:, None, None]
    luminance = {split: (rgb * weights).sum(1, keepdim=True) for split, rgb in colours.items()}
    mean, std = luminance["train"].mean(), luminance["train"].std()
    splits = {
        split: Examples(
            (luminance[split] - mean) / std,
            {
                "classes": labels[split].masked_fill(labels[split] == VOID, MISSING),
                "boundary": boundary(labels[split]),
                "chroma": _chroma(rgb, luminance[split]),
            },
        )
        for split, rgb in colours.items()
    }
    tasks = [
        Task.segmentation("classes", classes=CLASSES),
        Task.pixel_binary("boundary", classes=("inside", "boundary")),
        Task.pixel_regression("chroma", outputs=("cb", "cr"), robust="mae", scale="standard", metric="mae"),
    ]
    settings = {"batch_size": 16, "lr": 3e-3, "epochs": 10}
    return DataSet("camvid", tasks, **splits, encoder=DenseEncoder, settings=settings, provenance={"shrink": shrink})


def sequences(folder: Path, split: str) -> list[str]:
    """The video sequence of each frame of a split: frames of one sequence are alike, so an interval resamples sequences."""
    return [str(name).rsplit("_", 1)[0] for name in read_npz(folder / FILES[0])[f"{SPLITS[split]}_name"]]


class DenseEncoder(nn.Sequential):
    """``(N, 1, H, W)`` -> ``(N, width, H/2, W/2)``: 3x3 convolutions with group normalisation, which see 31 pixels.

    Args:
        channels: of the image, then of each convolution: the first halves the image, the third and fourth are dilated.
    """

    def __init__(self, channels: tuple[int, int, int, int, int] = (1, 24, 48, 64, 64)) -> None:
        steps = zip(channels, channels[1:], (2, 1, 1, 1), (1, 1, 2, 4), strict=False)
        super().__init__(*(_layer(before, after, stride, dilation) for before, after, stride, dilation in steps))
        self.width = channels[-1]


class DenseHead(nn.Sequential):
    """``(N, width, H, W)`` -> ``(N, outputs, H, W)``: a 3x3 convolution with group normalisation, then a 1x1 one.

    A drop-in for the 1x1 convolution that a dense task has by itself, ``model.heads["classes"] = DenseHead(64, 11)``.

    Args:
        width: features in.
        outputs: as many as the task's own head has: 11 for ``classes``, 1 for ``boundary``, 2 for ``chroma``.
        hidden: channels between the two; a multiple of 8.
    """

    def __init__(self, width: int, outputs: int, hidden: int = 32) -> None:
        super().__init__(_layer(width, hidden), nn.Conv2d(hidden, outputs, 1))


def boundary(labels: Tensor) -> Tensor:
    """Where classes meet, ``(N, H, W)``: 1 where the right or lower neighbour has another label, not void; NaN in void."""
    edge = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (1, 2):
        size = labels.shape[axis] - 1
        here, beyond = labels.narrow(axis, 0, size), labels.narrow(axis, 1, size)
        edge.narrow(axis, 0, size).logical_or_((here != beyond) & (beyond != VOID))
    return edge.float().masked_fill(labels == VOID, torch.nan)


def _chroma(rgb: Tensor, luminance: Tensor) -> Tensor:
    """Cb and Cr of colours ``(N, 3, H, W)`` in levels of 8 bits: blue and red less luminance, each at most 127.5."""
    red, blue = LUMA[0], LUMA[2]
    return torch.cat([(rgb[:, 2:] - luminance) / (2 * (1 - blue)), (rgb[:, :1] - luminance) / (2 * (1 - red))], 1)


def _shrunk(labels: Tensor, shrink: int) -> Tensor:
    """The most frequent label of each square."""
    if shrink == 1:
        return labels
    counts = F.avg_pool2d(F.one_hot(labels, VOID + 1).permute(0, 3, 1, 2).float(), shrink)
    return counts.argmax(1)


def _layer(before: int, after: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False), nn.GroupNorm(after // 8, after), nn.ReLU()
    )
