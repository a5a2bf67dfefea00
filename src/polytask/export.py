"""A model as an ONNX file that other programs run, checked against the model it came from. Needs the extra ``onnx``."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask import __version__
from polytask.data.examples import Inputs
from polytask.data.graph import GraphSchema
from polytask.errors import InputError, optional
from polytask.files import replacing

if TYPE_CHECKING:
    from polytask.model import Model
    from polytask.store import Saved

TOLERANCE = 1e-4
"""How far an exported prediction may be from the model's, relative to the largest prediction of its task (at least 1)."""

SAMPLE_ROWS = 64

LARGEST = 2**31
"""Bytes of weights that an ONNX file, a protocol buffer, can hold."""


def export_onnx(saved: Saved, path: Path | str, inputs: Inputs | None = None) -> dict[str, float]:
    """Write the model to one ONNX file: named inputs with any number of rows in, one prediction for each task out.

    The inputs are what the encoder takes (for a table: what the schema's ``transform`` gives), one for each named tensor, or
    ``inputs``. An output is called after its task and is in the user's units (`polytask.Task.decode`): probabilities,
    values. The file's metadata has the tasks, as JSON, under ``tasks``.

    The written file is run by onnxruntime before it is put in place, on ``inputs``, and on one row of them.

    Args:
        saved: the model.
        path: the file to write.
        inputs: two or more rows to check on; by default made-up rows in the range of the training data.

    Returns:
        For each task the largest difference from the model's own prediction.

    Raises:
        InputError: the model cannot be exported, its exported predictions differ by more than `TOLERANCE`, its weights
            exceed 2 GiB, or there is nothing to check on.
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        optional(module, "onnx")
    path = Path(path)
    if isinstance(saved.schema, GraphSchema):
        raise InputError(f"{path}: {saved.path} is a model of a graph, which it reads in every pass; it cannot be exported")
    size = sum(p.numel() * p.element_size() for p in saved.model.parameters())
    if size > LARGEST:
        raise InputError(f"{path}: the weights have {size:,} bytes, expected at most {LARGEST:,} for an ONNX file")
    sample = _sample(saved) if inputs is None else {"": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    if min(len(tensor) for tensor in sample.values()) < 2:
        raise InputError(f"{path}: fewer than 2 rows to check on, expected more")
    program = _exported(saved.model, sample, path)
    program.model.metadata_props["polytask"] = __version__
    program.model.metadata_props["tasks"] = json.dumps([task.to_dict() for task in saved.model.tasks.values()])
    with replacing(path) as temporary:
        program.save(str(temporary), external_data=False)
        return _checked(saved.model, temporary, sample, path)


class _Predictor(nn.Module):
    """Tensors in, a tuple of decoded predictions out: what an ONNX graph can be."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for parent in list(self.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.EmbeddingBag) and child.mode == "mean":
                    setattr(parent, name, _MeanEmbedding(child))
        self.names = tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, tensors, strict=True))
        return tuple(self.model.predict(named.get("", named)).values())


class _MeanEmbedding(nn.Module):
    """What ``nn.EmbeddingBag`` computes of ``(N, L)`` codes, by operations that onnxruntime has."""

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.weight = bag.weight
        self.padding = bag.padding_idx

    def forward(self, codes: Tensor) -> Tensor:
        present = (codes != self.padding if self.padding is not None else codes >= 0)[:, :, None]
        total = (F.embedding(codes, self.weight) * present).sum(1)
        return total / present.sum(1).clamp(min=1)


def _sample(saved: Saved) -> dict[str, Tensor]:
    """Made-up rows in the range of the training data, as the model's folder describes its inputs."""
    described = saved.about["inputs"]
    if described is None:
        raise InputError(f"{saved.path}: does not say what its inputs are: pass some rows as inputs=")
    generator = torch.Generator().manual_seed(0)
    sample = {}
    for name, values in described.items():
        shape, dtype = (SAMPLE_ROWS, *values["shape"]), getattr(torch, values["dtype"])
        if dtype.is_floating_point:
            uniform = torch.rand(shape, generator=generator, dtype=dtype)
            sample[name] = values["low"] + (values["high"] - values["low"]) * uniform
        else:
            sample[name] = torch.randint(values["low"], values["high"] + 1, shape, generator=generator, dtype=dtype)
    return sample


def _exported(model: Model, sample: Mapping[str, Tensor], path: Path) -> Any:
    rows = torch.export.Dim("rows")
    try:
        with _quiet():
            program = torch.export.export(
                _Predictor(model, list(sample)).eval(),
                tuple(sample.values()),
                dynamic_shapes=(tuple({0: rows} for _ in sample),),
            )
            return torch.onnx.export(
                program,
                input_names=[name or "inputs" for name in sample],
                output_names=list(model.tasks),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: a model with {type(model.encoder).__name__} cannot be exported ({reason})") from error


def _checked(model: Model, file: Path, sample: Mapping[str, Tensor], path: Path) -> dict[str, float]:
    """The largest difference by task between the exported and the original predictions, of all rows and of one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    differences = dict.fromkeys(model.tasks, 0.0)
    for rows in (slice(None), slice(1)):
        inputs = {name: tensor[rows] for name, tensor in sample.items()}
        expected = model.predict(inputs.get("", inputs))
        found = session.run(list(expected), {name or "inputs": tensor.numpy() for name, tensor in inputs.items()})
        for (name, prediction), exported in zip(expected.items(), found, strict=True):
            difference = (torch.from_numpy(exported) - prediction).abs().max().item()
            allowed = TOLERANCE * max(1.0, prediction.abs().max().item())
            if not difference <= allowed:
                raise InputError(
                    f"{path}: the exported prediction of task {name!r} differs by {difference:.3g}, "
                    f"expected at most {allowed:.3g}"
                )
            differences[name] = max(differences[name], difference)
    return differences


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about packages that it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
