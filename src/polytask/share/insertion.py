"""Parts for several tasks, inserted into any network by one call, and taken out again."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import safetensors.torch as safetensors
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.files import replacing
from polytask.register import Register
from polytask.share._linear import linear_types
from polytask.share.dependence import TaskDependent

Where: TypeAlias = str | Sequence[str] | type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[str, nn.Module], bool]
"""Which modules: patterns of their names as in a shell (``"*.query"``), their types, or a function of name and module."""

ATTRIBUTE = "task_parts"
"""The attribute of a module that holds what is inserted into it, by the insertion's name."""

FAST = "activation_with_fast_path"
"""The attribute of a layer that holds what its fast path needs while that is switched off."""

FORMAT = "polytask insertion 1"
"""What a file of inserted parameters says it is, with the version of its layout."""


class Part(TaskDependent):
    """What is inserted at one module: it runs around the module's own forward, and learns the task from the task scope.

    Attributes:
        takes_module: whether `forward` is also given the module, as the keyword ``module``.
    """

    takes_module: ClassVar[bool] = False

    @abstractmethod
    def forward(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The module's new output; ``run`` is its own forward, with whatever was inserted before."""

    def add_tasks(self, tasks: Sequence[str]) -> None:
        """Take up further tasks, whose parameters are new; those that are there stay as they are."""
        raise InputError(f"{type(self).__name__} cannot take up further tasks")

    def fold(self, module: nn.Module, task: str) -> None:
        """Write into ``module``'s own weights what the part does for ``task``, where weights can express it."""
        raise InputError(f"{type(self).__name__} cannot be folded into the weights of {type(module).__name__}")


class Insertable(ABC):
    """A way of sharing that is inserted, as plain settings (a frozen dataclass).

    Attributes:
        name: its name in the register, on the command line and in saved files.
    """

    name: ClassVar[str]

    @property
    def types(self) -> tuple[type[nn.Module], ...]:
        """The modules that it fits, which it is inserted into unless the user says which: linear layers by default."""
        return linear_types()

    @abstractmethod
    def build(self, module: nn.Module, tasks: Sequence[str]) -> Part:
        """The part for one module; `InputError` if it does not fit there. It changes nothing at first where it can."""

    def build_each(self, modules: Mapping[str, nn.Module], tasks: Sequence[str]) -> dict[str, Part]:
        """The parts for ``modules``, by name; for methods whose parts have something in common."""
        return {place: self.build(module, tasks) for place, module in modules.items()}

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make these settings again, as JSON values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


insertables: Register[Callable[..., Insertable]] = Register("inserted way of sharing")
"""Every inserted way of sharing by name."""


@dataclass(frozen=True)
class Inserted:
    """What `insert` put into a network.

    Attributes:
        model: the network.
        method: the settings.
        tasks: in order.
        name: of this insertion, unique in the network.
        parts: by the name of the module.
    """

    model: nn.Module
    method: Insertable
    tasks: tuple[str, ...]
    name: str
    parts: Mapping[str, Part]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All inserted parameters, each once."""
        yield from dict.fromkeys(parameter for part in self.parts.values() for parameter in part.parameters())

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """The inserted parameters that only ``task`` uses."""
        self._check(task)
        yield from dict.fromkeys(parameter for part in self.parts.values() for parameter in part.parameters_of(task))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The inserted parameters that several tasks use."""
        own = {parameter for task in self.tasks for parameter in self.parameters_of(task)}
        yield from (parameter for parameter in self.parameters() if parameter not in own)

    def freeze(self, *trained: str) -> Self:
        """Let only what was inserted be trained: every other parameter of the network gets ``requires_grad=False``.

        Args:
            trained: patterns of names as `state_dict` has them, such as ``"*.logits.*"``: then only these of what was
                inserted.
        """
        inserted = {p: f"{place}.{name}" for place, part in self.parts.items() for name, p in part.named_parameters()}
        for pattern in trained:
            if not any(fnmatchcase(name, pattern) for name in inserted.values()):
                raise InputError(f"freeze {pattern!r}: {suggest(pattern, inserted.values())}")
        for parameter in self.model.parameters():
            name = inserted.get(parameter)
            parameter.requires_grad_(name is not None and (not trained or any(fnmatchcase(name, p) for p in trained)))
        return self

    def add_tasks(self, tasks: Sequence[str]) -> Inserted:
        """The insertion with further tasks, whose own parameters are new; in place, as far as the network is concerned.

        Raises `InputError` for a task that is there already, and for a method that cannot take up others.
        """
        for task in tasks:
            if task in self.tasks or tasks.count(task) > 1:
                raise InputError(f"task {task!r} is there already")
        for part in self.parts.values():
            part.add_tasks(tasks)
        return replace(self, tasks=(*self.tasks, *tasks))

    def count(self) -> dict[str, int]:
        """How many parameters: of the ``base``, ``inserted``, ``shared`` between tasks, and of each ``task``."""
        found = {"inserted": _numel(self.parameters())}
        found["base"] = _numel(dict.fromkeys(self.model.parameters())) - found["inserted"]
        found["shared"] = _numel(self.shared_parameters())
        return found | {f"task {task}": _numel(self.parameters_of(task)) for task in self.tasks}

    def state_dict(self) -> dict[str, Tensor]:
        """The inserted tensors by name: the module's name, then the part's own. What several parts share is there once."""
        found: dict[Tensor, str] = {}
        for place, part in self.parts.items():
            for name, tensor in part.state_dict(keep_vars=True).items():
                found.setdefault(tensor, f"{place}.{name}")
        return {name: tensor.detach() for tensor, name in found.items()}

    def save(self, path: Path | str) -> None:
        """Write what was inserted, and nothing of the base, as one safetensors file."""
        about = {
            "format": FORMAT,
            "method": self.method.name,
            "settings": self.method.settings(),
            "tasks": self.tasks,
            "name": self.name,
            "places": list(self.parts),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with replacing(path) as temporary:
            safetensors.save_file(tensors, temporary, {"polytask": json.dumps(about)})

    def fold(self, task: str) -> nn.Module:
        """The network for one task, with what was inserted written into its weights: it costs no more than the base.

        Raises `InputError` where weights cannot express what was inserted.
        """
        self._check(task)
        with torch.no_grad():
            for place, part in self.parts.items():
                part.fold(self.model.get_submodule(place), task)
        self.remove()
        return self.model

    def remove(self) -> nn.Module:
        """Take everything out again: the network is what it was, its weights bit by bit, trained or not."""
        for place in self.parts:
            module = self.model.get_submodule(place)
            parts: nn.ModuleDict = getattr(module, ATTRIBUTE, nn.ModuleDict())
            if self.name in parts:
                del parts[self.name]
            if not parts and hasattr(module, ATTRIBUTE):
                delattr(module, ATTRIBUTE)
                module.__class__ = type(module).__mro__[2]
        _keep_to_the_modules(self.model)
        return self.model

    def _check(self, task: str) -> None:
        if task not in self.tasks:
            raise InputError(f"unknown task {task!r}: {suggest(task, self.tasks)}")


def insert(
    model: nn.Module,
    method: Insertable,
    tasks: Sequence[str],
    where: Where | None = None,
    name: str | None = None,
) -> Inserted:
    """Insert a way of sharing into ``model``, in place.

    The chosen modules stay where they are, and their own parameters keep their names; each gets a part beside them, in
    ``module.task_parts``. From then on a forward pass has to run in a `polytask.task_scope`, which says which task each
    example belongs to. Nothing is frozen: see `Inserted.freeze`.

    Args:
        model: any network, one of `transformers` or a user's own.
        method: what to insert.
        tasks: the tasks' names.
        where: patterns of names, types, or a function; by default all modules of the method's types.
        name: of the insertion, if several are made; the method's name by default.

    Raises `InputError` when nothing is chosen, or something that the method does not fit, and then changes nothing.

    >>> from polytask import task_scope
    >>> from polytask.share import LoRA, insert
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> inserted = insert(model, LoRA(rank=2), tasks=["left", "right"]).freeze()
    >>> inserted.count()
    {'inserted': 176, 'base': 212, 'shared': 0, 'task left': 88, 'task right': 88}
    >>> x = torch.randn(3, 8)
    >>> with task_scope(["left", "right"], index=torch.tensor([0, 1, 1])):
    ...     y = model(x)
    >>> torch.equal(inserted.remove()(x), y)  # LoRA begins as what is there
    True
    """
    tasks, name = tuple(tasks), name or method.name
    if not tasks or len(set(tasks)) < len(tasks):
        raise InputError(f"tasks {list(tasks)}: expected at least one, and no name twice")
    chosen = _chosen(model, method.types if where is None else where)
    for place, module in chosen.items():
        if name in getattr(module, ATTRIBUTE, {}):
            raise InputError(f"module {place!r} has an insertion {name!r} already: give this one another name")
    for place, module in chosen.items():
        if not isinstance(module, method.types):
            types = " or ".join(kind.__name__ for kind in method.types)
            raise InputError(f"module {place!r} is {type(module).__name__}, expected {types} for {method.name}")
    parts = method.build_each(chosen, tasks)
    for place, part in parts.items():
        module = chosen[place]
        part.train(module.training)
        if not hasattr(module, ATTRIBUTE):
            module.__class__ = _with_parts(type(module))  # type: ignore[arg-type]
            setattr(module, ATTRIBUTE, nn.ModuleDict())
        getattr(module, ATTRIBUTE)[name] = part
    _keep_to_the_modules(model)
    return Inserted(model, method, tasks, name, parts)


def load_inserted(model: nn.Module, path: Path | str) -> Inserted:
    """Insert into ``model`` what `Inserted.save` wrote, as it was trained; nothing is changed when it does not fit."""
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("polytask", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a safetensors file ({error})") from error
    if about.get("format") != FORMAT:
        raise InputError(f"{path}: no file of inserted parameters ({FORMAT})")
    known = dict(model.named_modules())
    for place in about["places"]:
        if place not in known:
            raise InputError(f"{path}: module {place!r} is not in the network: {suggest(place, known)}")
    method = insertables[about["method"]](**about["settings"])
    inserted = insert(model, method, about["tasks"], lambda name, module: name in about["places"], about["name"])
    own = inserted.state_dict()
    odd = sorted(own.keys() ^ tensors.keys()) or [key for key in own if own[key].shape != tensors[key].shape]
    if odd:
        inserted.remove()
        raise InputError(f"{path}: tensor {odd[0]!r} does not fit what {about['method']} inserts into this network")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(tensors[key])
    return inserted


def parts_of(model: nn.Module) -> Iterator[Part]:
    """Everything that is inserted into ``model``, module by module."""
    for module in model.modules():
        yield from getattr(module, ATTRIBUTE, {}).values()


class _WithParts:
    """A class that a module has while something is inserted: its own, with another forward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = super().forward  # type: ignore[misc]
        for part in getattr(self, ATTRIBUTE).values():
            run = partial(part, run, module=self) if part.takes_module else partial(part, run)
        return run(*args, **kwargs)


@cache
def _with_parts(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_WithParts, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _chosen(model: nn.Module, where: Where) -> dict[str, nn.Module]:
    """The modules at ``where``, once each, none of them inside a part."""
    modules: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if f".{ATTRIBUTE}." not in f".{name}."
    }
    if isinstance(where, str):
        where = [where]
    if isinstance(where, type) or (isinstance(where, tuple) and where and isinstance(where[0], type)):
        found = {name: module for name, module in modules.items() if isinstance(module, where) and not _bypassed(module)}
        what = str(where)
    elif callable(where):
        choose, what = where, "the function"
        found = {name: module for name, module in modules.items() if choose(name, module)}
    else:
        patterns = [str(pattern) for pattern in where]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in modules):
                raise InputError(f"where {pattern!r}: no module has such a name: {suggest(pattern, modules)}")
        found = {name: module for name, module in modules.items() if any(fnmatchcase(name, p) for p in patterns)}
        what = ", ".join(map(repr, patterns))
    if not found:
        raise InputError(f"where {what}: no module of the network, expected at least one")
    for name, module in found.items():
        if _bypassed(module):
            raise InputError(f"module {name!r}: its forward is never called, since nn.MultiheadAttention reads its weight")
    return found


def _keep_to_the_modules(model: nn.Module) -> None:
    """Make `nn.TransformerEncoderLayer` call its modules while something is inserted into one.

    Where nothing needs a gradient it would read their weights itself, and pass over what is inserted.
    """
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            inside = any(hasattr(module, ATTRIBUTE) for module in layer.modules())
            if inside and not hasattr(layer, FAST):
                setattr(layer, FAST, layer.activation_relu_or_gelu)
                layer.activation_relu_or_gelu = 0  # what torch asks for before it takes its fast path
            elif not inside and hasattr(layer, FAST):
                layer.activation_relu_or_gelu = getattr(layer, FAST)
                delattr(layer, FAST)


def _bypassed(module: nn.Module) -> bool:
    return type(module).__name__ == "NonDynamicallyQuantizableLinear"


def _numel(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)
