"""Where training runs: a Lightning Fabric for the devices, precision and machines that a user names."""

from __future__ import annotations

from typing import Any


def fabric(
    devices: int | str = 1,
    accelerator: str = "auto",
    precision: str = "32-true",
    strategy: str = "auto",
    nodes: int = 1,
) -> Any:
    """A ``lightning_fabric.Fabric`` that copes with tasks that some processes have no labels for.

    Args:
        devices: how many on each machine, or ``"auto"`` for all. More than one runs DDP; call ``launch()`` on the result, or
            start the program by ``torchrun``.
        accelerator: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: ``32-true``, ``bf16-mixed``, ``16-mixed``, ``bf16-true``, ... as Fabric names them.
        strategy: ``auto``, ``ddp``, ``fsdp``, or any that Fabric knows.
        nodes: machines.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    if strategy == "ddp" or (strategy == "auto" and (devices not in (1, "1") or nodes > 1)):
        # A task that is absent from one process's batch leaves its head without gradient there.
        return Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=precision,
            strategy=DDPStrategy(find_unused_parameters=True),
        )
    return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, precision=precision, strategy=strategy)
