"""The same function on many arguments, over the cores of this machine or of a Ray cluster."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from polytask.errors import InputError, optional

T = TypeVar("T")


def unordered(
    function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], workers: int, ray: bool = False
) -> Iterator[T]:
    """``function(*each)`` for each of ``arguments``, as they are done.

    Args:
        function: runs in other processes, each with its share of the threads; it is sent there with its arguments.
        arguments: what to call it with; large arrays among them are mapped, not copied.
        workers: how many at a time.
        ray: whether the cluster that `join_ray` joined does the work; it then comes in rounds of ``workers``.
    """
    from joblib import Parallel, delayed, parallel_config

    work = [delayed(function)(*each) for each in arguments]
    if ray:
        with parallel_config(backend="ray"), Parallel(n_jobs=workers) as pool:  # one pool: its processes load torch once
            for start in range(0, len(work), workers):  # in rounds, so that finished ones are kept
                yield from pool(work[start : start + workers])
        return
    yield from Parallel(n_jobs=workers, mmap_mode="c", return_as="generator_unordered", batch_size=1)(work)


def join_ray(address: str) -> None:
    """Join a Ray cluster, ``auto``, ``local`` or ``host:port``; `InputError` where none answers."""
    ray = optional("ray", "ray")
    from ray.util.joblib import register_ray

    if not ray.is_initialized():
        host, colon, port = address.rpartition(":")
        try:
            if colon:  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=5).close()
            if address == "local":
                ray.init(log_to_driver=False, include_dashboard=False)
            else:
                ray.init(address=address, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"no Ray cluster answers at {address!r} ({str(error).splitlines()[0]}); "
                "for one that asks for a token set RAY_AUTH_MODE=token"
            ) from error
    register_ray()
