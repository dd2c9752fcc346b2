"""What the Trainer needs of an engine. Each engine is one file of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed import ProcessGroup

from ..errors import UserError


class Engine(Protocol):
    """Ranks that train one model together.

    Attributes:
        rank: 0 to world_size - 1. device: of this rank.
        gradient_scale: what a rank's loss is multiplied with so that reduced gradients are the sum over ranks.
        settling_passes: backward passes after which gradients are summed in the order that they keep.
        save_group: of the ranks that write parts of a checkpoint, for collectives beside training; None: rank 0 writes.
    """

    rank: int
    world_size: int
    device: torch.device
    gradient_scale: float
    settling_passes: int
    save_group: ProcessGroup | None

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """The module to call in training; its gradients are reduced over ranks.

        Where parameters are split over ranks, those of the optimizer, which has no state yet, are exchanged.
        """

    def gather_parameters(self, module: nn.Module) -> None:
        """Before the forward passes of an update: parameters become whole on every rank, until gradients are summed."""

    def no_reduction(self, module: nn.Module) -> AbstractContextManager:
        """Inside, backward passes only accumulate on this rank."""

    def reduce_gradients(self, module: nn.Module, in_backward: bool) -> None:
        """After the last backward pass of an update: sum over ranks what the backward pass has not.

        Args:
            in_backward: that pass ran outside `no_reduction`.
        """

    def gathered(self, module: nn.Module) -> AbstractContextManager:
        """Inside, parameters are whole on every rank, and forward passes are no collectives."""

    def sum_(self, tensor: torch.Tensor) -> None:
        """Sum over ranks, in place."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on every rank."""

    def main_first(self) -> AbstractContextManager:
        """Rank 0 runs the block before the others: for caches on a shared disk."""

    def barrier(self) -> None: ...

    def close(self) -> None: ...


@contextmanager
def rank_0_first(engine: Engine) -> Iterator[None]:
    """`Engine.main_first` where there are ranks to wait for."""
    if engine.rank:
        engine.barrier()
    yield
    if not engine.rank:
        engine.barrier()


def local_device(local_rank: int) -> torch.device:
    """The GPU of a rank, which becomes the current one; the CPU where there is none.

    Raises:
        UserError: this machine has fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"rank {local_rank} of this machine has no GPU, there are {count}: start at most {count} processes a "
            "machine, or set CUDA_VISIBLE_DEVICES= to run on its CPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


ENGINES = ("auto", "single", "ddp", "fsdp", "horovod")


def make_engine(name: str = "auto", timeout: float | None = None) -> Engine:
    """The engine of this name; auto: by what the launcher sets, torchrun WORLD_SIZE, horovodrun HOROVOD_SIZE.

    Args:
        timeout: seconds after which a rank gives up waiting for the others; None: the engine's default.

    Raises:
        UserError: no such engine, not started by torchrun, or Horovod is not installed.
    """
    if name == "auto":
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        name = "horovod" if "HOROVOD_SIZE" in os.environ else "ddp" if launched else "single"
    if name in ("ddp", "fsdp") and "RANK" not in os.environ:
        raise UserError(f"engine {name} is started by torchrun: torchrun --nproc_per_node 2 PROGRAM.py ...")
    if name == "ddp":
        from .torch_ddp import DdpEngine

        return DdpEngine(timeout)
    if name == "fsdp":
        from .torch_fsdp import FsdpEngine

        return FsdpEngine(timeout)
    if name == "horovod":
        from .horovod import HorovodEngine

        return HorovodEngine(timeout)
    if name == "single":
        from .single import SingleEngine

        return SingleEngine()
    raise UserError(f"no engine {name!r}; choose one of {', '.join(ENGINES)}")
