"""Loops that numba compiles where it is installed, so that several passes over an array become one.

Each stands beside the plain function that runs without numba, and gives the same bits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def fused(plain: Callable[P, R], load: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a loop over numpy's arrays that gives what ``plain`` gives: whichever is faster here runs.

    The loop is compiled when it is first called, for the types that it is called with, and kept on disk beside the source or
    in numba's cache folder. It lets other threads run. Without numba, or with nowhere to keep what is compiled, ``plain``
    runs. Without ``load`` that is so until another loop has loaded numba, which takes longer than a pass over a model saves.
    """

    def decorate(loop: Callable[P, R]) -> Callable[P, R]:
        chosen: list[Callable[P, R]] = []

        @wraps(plain)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            if not chosen and not load and "numba" not in sys.modules:
                return plain(*args, **kwargs)
            if not chosen:
                chosen.append(_compiled(loop) or plain)
            return chosen[0](*args, **kwargs)

        return run

    return decorate


def _compiled(loop: Callable[P, R]) -> Callable[P, R] | None:
    try:
        import numba
    except ImportError:  # also where it is too old for this numpy
        return None
    try:
        compiled: Callable[P, R] = numba.njit(cache=True, nogil=True)(loop)
    except RuntimeError:  # nowhere to keep it, and compiling takes longer than most merges
        return None
    return compiled
