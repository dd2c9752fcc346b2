"""Horovod data parallel, started by horovodrun: NCCL on GPUs, gloo on CPUs; see `scripts/install_horovod.sh`."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from .base import local_device, rank_0_first


class HorovodEngine:
    """Gradients are summed once an update, after its last backward pass, in one group.

    `hvd.DistributedOptimizer` is not used: it drops optimizer state that was loaded before it wraps, and reduces in
    hooks, in an order that repeats at more than two ranks only without fusion.
    """

    gradient_scale = 1.0  # gradients are summed, not averaged
    settling_passes = 0
    save_group = None

    def __init__(self, timeout: float | None = None):
        """`timeout`: seconds that a collective waits for other ranks; None: Horovod's default."""
        if timeout is not None:
            os.environ["HOROVOD_STALL_CHECK_TIME_SECONDS"] = str(max(1, int(timeout) // 2))
            os.environ["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] = str(int(timeout))
            os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"] = str(int(timeout))
        try:
            import horovod.torch as hvd
        except ImportError as error:
            raise UserError("engine horovod: Horovod is not installed; run scripts/install_horovod.sh") from error
        self.hvd = hvd
        hvd.init()
        self.rank, self.world_size = hvd.rank(), hvd.size()
        self.device = local_device(hvd.local_rank())

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        self.hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        return model

    def gather_parameters(self, module: nn.Module) -> None:
        pass

    def no_reduction(self, module: nn.Module):
        return nullcontext()

    def reduce_gradients(self, module: nn.Module, in_backward: bool) -> None:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if gradients:
            handle = self.hvd.grouped_allreduce_async_(gradients, op=self.hvd.Sum, name="gradients")
            self.hvd.synchronize(handle)

    def gathered(self, module: nn.Module):
        return nullcontext()

    def sum_(self, tensor: torch.Tensor) -> None:
        self.hvd.allreduce_(tensor, op=self.hvd.Sum, name="sum")

    def gather(self, value: Any) -> list[Any]:
        return self.hvd.allgather_object(value, name="gather")

    def main_first(self):
        return rank_0_first(self)

    def barrier(self) -> None:
        self.hvd.barrier()

    def close(self) -> None:
        self.hvd.shutdown()
