"""Where training runs: a Lightning Fabric for the devices, precision and machines that a user names."""

from __future__ import annotations

from typing import Any

from polytask.errors import InputError


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
        strategy: ``auto``, ``ddp``, or ``fsdp``: parameters, gradients and optimizer states in pieces, one on each device
            (PyTorch's second FSDP), for a model that is too large for one. Or any other that Fabric knows.
        nodes: machines.

    Raises `InputError` for devices that are not there and for names that Fabric does not know.
    """
    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    chosen: Any = strategy
    if strategy == "ddp" or (strategy == "auto" and (devices not in (1, "1") or nodes > 1)):
        # A task that is absent from one process's batch leaves its head without gradient there.
        chosen = DDPStrategy(find_unused_parameters=True)
    elif strategy == "fsdp":
        each = int(devices) if devices != "auto" else torch.accelerator.device_count()
        chosen = ModelParallelStrategy(_in_pieces, data_parallel_size=each * nodes, tensor_parallel_size=1)
    try:
        return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, precision=precision, strategy=chosen)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"devices {devices}, precision {precision!r}, strategy {strategy!r}: {reason}") from error


def _in_pieces(model: Any, mesh: Any) -> Any:
    """Shard each block of the encoder's lists of layers on its own, so that one at a time is whole, then all the rest.

    Only the encoder's: every batch runs all of it, where a part that only some processes ran would leave the others waiting.
    """
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    def shard(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, nn.ModuleList | nn.Sequential) and any(True for _ in child.parameters()):
                fully_shard(child, mesh=mesh["data_parallel"])
            else:
                shard(child)

    shard(getattr(model, "encoder", nn.Identity()))
    return fully_shard(model, mesh=mesh["data_parallel"])
