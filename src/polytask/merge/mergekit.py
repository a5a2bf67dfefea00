"""Recipes as mergekit writes them, in polytask's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polytask.errors import InputError
from polytask.merge.vocabulary.tokenizer import read_config


class Mistake(InputError):
    """A mistake in a recipe, and where in it."""

    def __init__(self, where: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.where = where


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("average", {}),
    "task_arithmetic": ("task_arithmetic", {"scale": 1.0}),
    "ties": ("ties", {"scale": 1.0, "scope": "tensor", "density": 1.0}),
    "dare_linear": ("dare", {"scale": 1.0, "density": 1.0}),
    "dare_ties": ("dare", {"scale": 1.0, "density": 1.0, "elect": True, "merge_by": "sum"}),
    "breadcrumbs": ("breadcrumbs", {"scale": 1.0, "density": 1.0, "gamma": 0.01}),
    "breadcrumbs_ties": ("breadcrumbs", {"scale": 1.0, "density": 1.0, "gamma": 0.01, "elect": True}),
    "slerp": ("slerp", {}),
    "model_stock": ("model_stock", {}),
}
"""mergekit's methods: polytask's rule, and mergekit's defaults where they are others."""

IGNORED = ("int8_mask",)
"""Settings of mergekit that change nothing in the result."""


def translated(name: str, given: Mapping[str, Any], where: Sequence[str | int]) -> dict[str, Any]:
    """mergekit's settings by polytask's names."""
    settings = {"scale" if key == "lambda" else key: value for key, value in given.items() if key not in IGNORED}
    if "normalize" in settings and name != "average":
        normalize = bool(settings.pop("normalize"))
        if name in ("ties", "dare"):
            settings["merge_by"] = "mean" if normalize else "sum"
        elif normalize:
            raise Mistake((*where, "normalize"), f"{name} does not normalise: expected false, or no 'normalize'")
    return settings


def plain(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe with one list of models, and a policy for vocabularies, whichever way mergekit writes these.

    ``slices`` with one slice of all layers are its sources. ``tokenizer_source`` (or ``tokenizer: {source: ...}``) ``base``
    and ``union`` are that policy. Slices that put layers of several models behind one another are refused.

    Args:
        value: the recipe as it was read.
        folder: that paths in it are relative to.
    """
    if "merge_method" not in value:
        return value
    value = dict(value)
    if "slices" in value:
        value = _unsliced(value, folder)
    tokenizer = value.pop("tokenizer", None)
    source = value.pop("tokenizer_source", tokenizer.get("source") if isinstance(tokenizer, Mapping) else None)
    if source is not None:
        place = ("tokenizer_source",) if tokenizer is None else ("tokenizer", "source")
        if source not in ("base", "union") or (isinstance(tokenizer, Mapping) and len(tokenizer) > 1):
            raise Mistake(place, f"{source!r}: expected 'base' or 'union', and nothing beside it")
        value["policy"] = {"vocabulary": source} | dict(value.get("policy") or {})
    return value


def _unsliced(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    slices = value.pop("slices")
    if "models" in value:
        raise Mistake(("slices",), "both models and slices are given, expected one of them")
    if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], Mapping):
        raise Mistake(("slices",), "expected one slice: layers of several models are not put behind one another")
    (one,) = slices
    models = []
    for i, source in enumerate(one.get("sources") or []):
        if not isinstance(source, Mapping):
            raise Mistake(("models", i), f"{source!r}: expected a model and its layer_range")
        layers, name = source.get("layer_range"), source.get("model")
        if layers is not None and isinstance(name, str):
            depth = _depth(folder / name)
            if depth is None or layers != [0, depth]:
                whole = f"[0, {depth}], all layers" if depth else "all, and a config.json that says how many the model has"
                raise Mistake(("models", i, "layer_range"), f"layer_range {layers}: expected {whole}")
        models.append({key: part for key, part in source.items() if key != "layer_range"})
    more = {key: part for key, part in one.items() if key != "sources"}
    for key in more:
        if key not in ("base_model", "parameters"):
            raise Mistake(("slices", 0, key), f"unknown setting {key!r} of a slice")
    value |= {"models": models, "parameters": {**(value.get("parameters") or {}), **(more.get("parameters") or {})}}
    return {"base_model": more["base_model"], **value} if "base_model" in more else value


def _depth(model: Path) -> int | None:
    """How many layers a model's configuration says that it has."""
    layers = read_config(model.expanduser()).get("num_hidden_layers")
    return layers if isinstance(layers, int) else None
