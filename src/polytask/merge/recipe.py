"""Recipes: a YAML file that says what is merged, and how. mergekit's own files are read as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from polytask.errors import InputError, suggest
from polytask.files import sha256
from polytask.merge.checkpoint import is_adapter, open_adapter, open_checkpoint
from polytask.merge.coefficients import load_weights
from polytask.merge.engine.rule import Rule, merge_rules, per_model
from polytask.merge.mergekit import METHODS, Mistake, plain, translated
from polytask.merge.plan import Buffers, Extra, Missing, Plan, Policy, make_plan
from polytask.merge.rules.average import Average
from polytask.merge.rules.task_arithmetic import TaskArithmetic
from polytask.merge.vocabulary import Vocabularies

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DType = Literal["float64", "float32", "float16", "bfloat16"]

Setting = Any
"""A value; a list of numbers, spread over the depth of the network; a list of ``{filter: ..., value: ...}``; or a file of
weights by tensor, as `polytask.merge.save_weights` writes it, by its name, which ends in ``.json``."""


def _path(value: Any) -> Any:
    """mergekit writes a model as a path, or as ``{model: {path: ...}}``."""
    while isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value.values()))
    return value


class ModelOf(BaseModel):
    """One input, with its own settings, and a file of what was measured of it, as `save_measured` writes it."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, BeforeValidator(_path)]
    measured: str | None = None
    parameters: dict[str, Setting] = Field(default_factory=dict)


class PolicyOf(BaseModel):
    model_config = ConfigDict(extra="forbid")

    missing: Missing = "error"
    extra: Extra = "error"
    buffers: Buffers = "error"
    vocabulary: Vocabularies = "error"
    vocabulary_tensors: tuple[str, ...] = ()


class AdapterOf(BaseModel):
    """That adapters are merged into an adapter.

    Attributes:
        rank: the highest rank of a module; left out, the adapters' ranks add up and nothing is lost.
    """

    model_config = ConfigDict(extra="forbid")

    rank: int | None = Field(default=None, ge=1)


class Recipe(BaseModel):
    """What a recipe says.

    Attributes:
        rule: a rule of polytask by its name, with polytask's settings and defaults; or
        merge_method: a method by mergekit's name, with its settings and defaults.
        models: the inputs. Settings are given for each, or in ``parameters`` for all; rules such as Fisher merging need what
            was ``measured`` of each: a file.
        base_model: what they were fine-tuned from.
        dtype: of the arithmetic: float32 unless it is float64. mergekit's half precisions name the output's here.
        out_dtype: of the output; by default ``dtype`` where the recipe is mergekit's, else the base's.
        policy: see `Policy`.
        adapter: the models are adapters, and are merged as factors, into an adapter: ``adapter: {}``, or with a rank. The
            rule is the average or task arithmetic, and the base is not read.
    """

    model_config = ConfigDict(extra="forbid")

    models: list[ModelOf] = Field(min_length=1)
    rule: str | None = None
    merge_method: str | None = None
    base_model: Annotated[str | None, BeforeValidator(_path)] = None
    parameters: dict[str, Setting] = Field(default_factory=dict)
    dtype: DType | None = None
    out_dtype: DType | None = None
    policy: PolicyOf = Field(default_factory=PolicyOf)
    adapter: AdapterOf | None = None


@dataclass(frozen=True)
class Ready:
    """A recipe whose names are known and whose paths are found.

    Attributes:
        settings: of the rule, tensor by tensor.
        models: paths of the inputs.
        base: path of the base, if any.
        text: the recipe as it was written.
        adapter: how adapters are merged as factors, if they are.
        measured: paths of what was measured of each model, where the rule needs it.
    """

    settings: Settings
    models: list[Path]
    base: Path | None
    dtype: torch.dtype
    out_dtype: torch.dtype | None
    policy: Policy
    text: str
    adapter: AdapterOf | None = None
    measured: list[Path] = field(default_factory=list)

    def factor_weights(self) -> list[float]:
        """What each adapter is taken times, where adapters are merged as factors."""
        rule, count = self.settings(""), len(self.models)
        if isinstance(rule, TaskArithmetic):
            return [rule.scale * weight for weight in per_model(rule.weight, count, "weight")]
        assert isinstance(rule, Average)
        return rule.weights(count)


def read_recipe(path: Path | str) -> Ready:
    """Read a recipe; paths in it are relative to its folder.

    Raises:
        InputError: it is no YAML, or something in it is not as expected: the message names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}: line {line}: no valid YAML ({error.problem})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: line 1: expected settings by name, as in 'rule: ties'")
    sources = ("slices", 0, "sources") if "slices" in value else ("models",)
    try:
        recipe = Recipe.model_validate(plain(value, path.parent))
        return _ready(recipe, path.parent, text)
    except ValidationError as error:
        first = error.errors()[0]
        where = _written(first["loc"], sources)
        raise InputError(f"{path}: line {_line(root, where)}: {_what(first['loc'], first)}") from error
    except Mistake as wrong:
        raise InputError(f"{path}: line {_line(root, _written(wrong.where, sources))}: {wrong}") from wrong


def open_inputs(ready: Ready) -> Plan:
    """Open and compare a recipe's inputs; an adapter is opened on the base."""
    base = None if ready.base is None else open_checkpoint(ready.base)
    models = []
    for path in ready.models:
        if path.is_dir() and is_adapter(path):
            if base is None:
                raise InputError(f"{path}: an adapter, which needs its base: expected a base_model in the recipe")
            models.append(open_adapter(path, base))
        else:
            models.append(open_checkpoint(path))
    return make_plan(models, base, ready.policy, [open_checkpoint(path) for path in ready.measured])


def _written(where: Sequence[str | int], sources: Sequence[str | int]) -> Sequence[str | int]:
    """Where in the file something is that stands among the models once it is read."""
    return (*sources, *where[1:]) if where[:1] == ("models",) else where


def _what(where: Sequence[str | int], error: Mapping[str, Any]) -> str:
    name = ".".join(map(str, where))
    if error["type"] == "extra_forbidden":
        return f"unknown setting {name!r}"
    if error["type"] == "missing":
        return f"{name!r} is missing"
    return f"{name!r}: {str(error['msg'])[0].lower()}{str(error['msg'])[1:]}, got {error['input']!r}"


def _line(node: yaml.Node | None, where: Sequence[str | int]) -> int:
    """The line, from 1, of what is at ``where`` in the file; of what is nearest around it when it is missing."""
    line = 1
    for key in where:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == str(key):
                    line, node = name.start_mark.line + 1, value
                    break
            else:
                break
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _ready(recipe: Recipe, folder: Path, text: str) -> Ready:
    if (recipe.rule is None) == (recipe.merge_method is None):
        raise Mistake((), "expected a rule by polytask's name, as 'rule', or a method by mergekit's, as 'merge_method'")
    if recipe.merge_method is not None:
        if recipe.merge_method not in METHODS:
            raise Mistake(
                ("merge_method",), f"unknown method {recipe.merge_method!r}: {suggest(recipe.merge_method, METHODS)}"
            )
        name, defaults = METHODS[recipe.merge_method]
    else:
        name, defaults = str(recipe.rule), {}
        if name not in merge_rules:
            raise Mistake(("rule",), f"unknown rule {name!r}: {suggest(name, merge_rules)}")
    models, base = [each.model for each in recipe.models], recipe.base_model
    own = [each.parameters for each in recipe.models]
    if recipe.merge_method is not None and base in models:
        at = models.index(base)
        if name == "slerp":  # from the base to the other one
            models, own = [base, *models[:at], *models[at + 1 :]], [own[at], *own[:at], *own[at + 1 :]]
        else:
            models, own = models[:at] + models[at + 1 :], own[:at] + own[at + 1 :]
    if name == "slerp":
        base = None
    common: dict[str, Setting] = dict(recipe.parameters)
    if recipe.merge_method is not None:
        common = translated(name, common, ("parameters",))
        own = [translated(name, each, ("models", i, "parameters")) for i, each in enumerate(own)]
    for key, value in common.items():
        if isinstance(value, str) and value.endswith(".json"):
            file = _found(folder, value, ("parameters", key))
            common[key] = ByTensor(file, load_weights(file))
            text = f"{text.rstrip()}\n# {value}: sha256 {sha256(file)}\n"
    settings = Settings(name, defaults, common, own)
    rule = settings("")  # mistakes are to be found before anything is opened
    measured = _measured(name, rule.needs_measured, recipe.models, folder)
    if recipe.adapter is not None:
        _check_factors(name, common, own)
    arithmetic = torch.float64 if recipe.dtype == "float64" else torch.float32
    stored = recipe.out_dtype or (recipe.dtype if recipe.merge_method is not None else None)
    return Ready(
        settings,
        [_found(folder, model, ("models", i, "model")) for i, model in enumerate(models)],
        None if base is None else _found(folder, base, ("base_model",)),
        arithmetic,
        None if stored is None else DTYPES[stored],
        Policy(**recipe.policy.model_dump()),
        text,
        recipe.adapter,
        measured,
    )


def _measured(name: str, needed: bool, models: Sequence[ModelOf], folder: Path) -> list[Path]:
    """The files of what was measured of each model: all, where the rule needs them, or none."""
    found = []
    for i, each in enumerate(models):
        if needed and each.measured is None:
            raise Mistake(("models", i), f"{name} needs what was measured of every model, expected 'measured: FILE'")
        if each.measured is not None:
            if not needed:
                raise Mistake(("models", i, "measured"), f"{name} needs nothing that was measured, expected no 'measured'")
            found.append(_found(folder, each.measured, ("models", i, "measured")))
    return found


def _check_factors(name: str, common: Mapping[str, Setting], own: Sequence[Mapping[str, Setting]]) -> None:
    """Raise unless a sum of factors can be what the recipe asks for."""
    if name not in ("average", "task_arithmetic"):
        raise Mistake(("adapter",), f"factors can be added up, expected rule average or task_arithmetic, not {name}")
    for place, given in _given(common, own):
        for key, value in given.items():
            if isinstance(value, list | ByTensor):
                raise Mistake((*place, key), f"{key!r} changes from tensor to tensor, expected one number for an adapter")


def _given(
    common: Mapping[str, Setting], own: Sequence[Mapping[str, Setting]]
) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Setting]]]:
    """The settings of all models, and of each, with their place in a recipe."""
    yield ("parameters",), common
    for i, each in enumerate(own):
        yield ("models", i, "parameters"), each


def _found(folder: Path, name: str, where: Sequence[str | int]) -> Path:
    path = Path(name).expanduser()
    path = path if path.is_absolute() else folder / path
    if not path.exists():
        raise Mistake(where, f"{name!r}: no such file or folder, expected a checkpoint")
    return path


@dataclass(frozen=True)
class ByTensor:
    """What a file says for each tensor: a number for each model."""

    file: Path
    values: Mapping[str, list[float]]

    def at(self, tensor: str) -> list[float]:
        if not tensor:  # asked for before any tensor is known
            return next(iter(self.values.values()), [])
        if tensor not in self.values:
            raise InputError(f"{self.file}: tensor {tensor!r} has no weights")
        return self.values[tensor]


class Settings:
    """From a tensor's name to its rule, with the settings that hold there."""

    def __init__(
        self, name: str, defaults: Mapping[str, Any], common: Mapping[str, Setting], own: Sequence[Mapping[str, Setting]]
    ) -> None:
        self.make = merge_rules[name]
        made = self.make()
        self.adapter: TypeAdapter[Rule] = TypeAdapter(type(made))
        self.known = [field.name for field in fields(made)]  # type: ignore[arg-type]
        self.defaults = {**{field: getattr(made, field) for field in self.known}, **defaults}
        self.common, self.own = common, own
        self.depth = 1
        for place, given in _given(common, own):
            for key in given:
                if key not in self.known:
                    raise Mistake((*place, key), f"unknown setting {key!r}: {suggest(key, self.known)}")

    def spread_over(self, names: Iterable[str]) -> Settings:
        """These settings, told by the tensors' names how deep the network is."""
        layers = [int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))]
        self.depth = max(layers, default=0) + 1
        return self

    def __call__(self, tensor: str) -> Rule:
        given = {name: self._one(name, tensor) for name in self.known}
        try:
            return self.adapter.validate_python(given)
        except ValidationError as error:
            first = error.errors()[0]
            cause = first.get("ctx", {}).get("error")
            where = [part for part in first["loc"] if part in self.known][:1]
            raise Mistake(("parameters", *where), str(cause) if cause is not None else _what(where, first)) from error

    def _one(self, name: str, tensor: str) -> Any:
        common = self._at(self.common[name], tensor) if name in self.common else self.defaults[name]
        if not any(name in each for each in self.own):
            return common
        return [self._at(each[name], tensor) if name in each else common for each in self.own]

    def _at(self, setting: Setting, tensor: str) -> Any:
        """The value of a setting for a tensor."""
        if isinstance(setting, ByTensor):
            return setting.at(tensor)
        if isinstance(setting, list) and setting and isinstance(setting[0], Mapping):
            for choice in setting:
                pattern = choice.get("filter")
                if pattern is None or pattern == "*" or pattern in tensor or re.search(str(pattern), tensor):
                    return self._at(choice["value"], tensor)
            raise Mistake(
                ("parameters",), f"no filter matches tensor {tensor!r}: end the list with one that has only a value"
            )
        if isinstance(setting, list):
            return _along(setting, self._depth_of(tensor))
        return setting

    def _depth_of(self, tensor: str) -> float:
        """From 0 before the first layer to 1 after the last."""
        layer = re.search(r"\.(\d+)\.", tensor)
        if layer is not None:
            return int(layer[1]) / max(self.depth - 1, 1)
        return 0.0 if "embed" in tensor else 1.0


def _along(points: Sequence[float], place: float) -> float:
    """Between equally spaced ``points``, linearly, at ``place`` from 0 to 1."""
    if len(points) == 1:
        return float(points[0])
    at = place * (len(points) - 1)
    left = min(int(at), len(points) - 2)
    return float(points[left] + (at - left) * (points[left + 1] - points[left]))
