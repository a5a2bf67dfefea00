"""A register: the one list of a verb's methods, which the command line, the docs, the benchmarks and the tests all read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from polytask.errors import InputError, suggest

T = TypeVar("T")


class Register(Generic[T]):
    """Names and what they stand for; an unknown name is an error that suggests the nearest known one.

    >>> methods = Register("balancer")
    >>> @methods.add("equal")
    ... class Equal: ...
    >>> methods["equal"].__name__
    'Equal'
    >>> methods["equl"]
    Traceback (most recent call last):
    ...
    polytask.errors.InputError: unknown balancer 'equl': did you mean 'equal'?
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """A decorator that enrols what it decorates under ``name``."""

        def enrol(entry: T) -> T:
            if name in self._entries:
                raise InputError(f"the {self.noun} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return enrol

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise InputError(f"unknown {self.noun} {name!r}: {suggest(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        return iter(self._entries.items())
