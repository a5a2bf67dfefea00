"""The paper's hyper-parameters, by data set, and the models that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from polytask.errors import InputError, suggest
from polytask.nn.graph import CSR
from polytask.papers.ncn.encoder import Encoder
from polytask.papers.ncn.model import NCN
from polytask.papers.ncn.predictor import Calibration, LinkPredictor


@dataclass(frozen=True)
class Preset:
    """One data set's settings, from the README of the authors' code.

    Attributes:
        encoder, predictor: keyword arguments of `Encoder` and `LinkPredictor`.
        calibration: of completion.
        encoder_lr, predictor_lr: of Adam, constant, without weight decay.
        batch_size: true links in a batch.
        epochs: of training.
        hits: the ``K`` of HR@K; ``None`` where the metric is MRR.
        remove_targets: see `NCN`.
        completed: what differs where there is completion.
    """

    encoder: Mapping[str, Any]
    predictor: Mapping[str, Any]
    calibration: Calibration | None
    encoder_lr: float
    predictor_lr: float
    batch_size: int
    epochs: int = 100
    hits: int | None = 100
    remove_targets: bool = True
    completed: Mapping[str, Any] = field(default_factory=dict)

    def build(
        self, graph: CSR, features: Tensor | CSR, kind: str = "ncn", depth: int = 0, *, hidden: int | None = None,
        remove_targets: bool | None = None,
    ) -> NCN:  # fmt: skip
        """NCN, NCNC with ``depth`` 1 or more, or another kind of `LinkPredictor`, for a graph and its nodes' features.

        Args:
            graph: of the training edges.
            features: as for `NCN`; where nodes have none, their numbers ``(N,)``.
            kind, depth: of the predictor.
            hidden: another width than the preset's.
            remove_targets: other than the preset's.
        """
        width = hidden or int(self.encoder["hidden"])
        table = isinstance(features, Tensor) and not features.is_floating_point()
        inputs = {"nodes": int(features.max()) + 1} if table else {"inputs": features.shape[1]}  # type: ignore[union-attr]
        encoder = Encoder(**{**self.encoder, "hidden": width, **inputs})
        settings = {**self.predictor, **(self.completed if depth else {})}
        predictor = LinkPredictor(width, kind, depth, self.calibration, **settings)
        removed = self.remove_targets if remove_targets is None else remove_targets
        return NCN(encoder, predictor, graph, features, remove_targets=removed, hits=self.hits or 100)

    @property
    def lr(self) -> dict[str, float]:
        """The two rates, as `polytask.fit` takes them."""
        return {"encoder.*": self.encoder_lr, "*": self.predictor_lr}


def _pure(feature_dropout: float, tail_dropout: float, dropout: float, **other: Any) -> dict[str, Any]:
    shape = {"kind": "puregcn", "hidden": 256, "layers": 1, "jumping": True, "norm": True}
    return {**shape, "feature_dropout": feature_dropout, "tail_dropout": tail_dropout, "dropout": dropout, **other}


PRESETS: dict[str, Preset] = {
    "cora": Preset(
        _pure(0.7, 0.3, 0.05), {"dropout": 0.05, "edge_dropout": 0.4}, Calibration(4.3, 2.8, 0.75, 1.0), 0.0043, 0.0024, 1152
    ),
    "citeseer": Preset(
        _pure(0.4, 0.0, 0.75),
        {"dropout": 0.55, "two_layers": True},
        Calibration(6.5, 4.4, 0.75, 0.4),
        0.0085,
        0.0078,
        384,
    ),
    "pubmed": Preset(_pure(0.3, 0.0, 0.1), {"dropout": 0.05}, Calibration(5.3, 0.5, 0.5, 0.3), 0.0097, 0.002, 2048),
    "collab": Preset(
        {
            **{"kind": "gcn", "hidden": 64, "layers": 1, "residual": True},
            **{"feature_dropout": 0.25, "tail_dropout": 0.05, "dropout": 0.1, "edge_dropout": 0.25},
        },
        {"dropout": 0.3},
        Calibration(2.5, 6.0, 0.1, 1.05),
        0.0082,
        0.0037,
        65536,
        hits=50,
    ),
    "ppa": Preset(
        {"kind": "gcn", "hidden": 64, "layers": 3, "residual": True, "edge_dropout": 0.1},
        {"dropout": 0.1, "transform": False},
        Calibration(4.0, 8.5, 0.1, 0.9),
        0.0013,
        0.0013,
        16384,
        epochs=25,
    ),
    "ddi": Preset(
        {"kind": "puresum", "hidden": 224, "layers": 1, "residual": True, "feature_dropout": 0.05, "dropout": 0.4},
        {"dropout": 0.6, "tail": True, "two_layers": True},
        Calibration(10.0, 3.0, 0.1, 0.5),
        0.0021,
        0.0018,
        24576,
        hits=20,
    ),
    "citation2": Preset(
        {"kind": "puregcn", "hidden": 64, "layers": 3, "residual": True, "tail_dropout": 0.3},
        {"dropout": 0.2},
        None,
        0.0088,
        0.0058,
        32768,
        hits=None,
        remove_targets=False,
        completed={"train_cap": 96, "test_cap": 96},
    ),
}
"""By data set. For ddi NCNC the authors load a trained NCN, then train the predictor alone (0.0025) for 2 epochs; for
citation2 they begin from NCN's embeddings, and cap degrees at 128 without completion. The calibration for citation2, and its
flags other than those here, are not known."""


def preset(name: str) -> Preset:
    """The settings for a data set; an unknown name is an error that suggests the nearest."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: {suggest(name, PRESETS)}")
    return PRESETS[name]
