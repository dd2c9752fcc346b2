"""`torch.distributed` data parallel, started by torchrun: NCCL on GPUs, gloo on CPUs."""

import ctypes
import os
import signal
from contextlib import nullcontext
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .base import local_device, rank_0_first

PR_SET_PDEATHSIG = 1  # of prctl(2)
GROUPS = count()  # made by this process


class DdpEngine:
    save_group = None

    def __init__(self, timeout: float | None = None):
        """`timeout`: seconds that a collective waits for other ranks; None: torch's default."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # save and end when the launcher is killed
        self.device = local_device(int(os.environ["LOCAL_RANK"]))
        self.timeout = None if timeout is None else timedelta(seconds=timeout)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=self.timeout, **_meeting_place())
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.gradient_scale = float(self.world_size)  # DDP averages over ranks
        self.settling_passes = 2  # DDP orders its buckets anew after the first backward pass

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        return DistributedDataParallel(model, device_ids=[self.device.index] if self.device.index is not None else None)

    def gather_parameters(self, module: nn.Module) -> None:
        pass

    def no_reduction(self, module: nn.Module):
        return module.no_sync()

    def reduce_gradients(self, module: nn.Module, in_backward: bool) -> None:
        if in_backward:
            return
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world_size

    def gathered(self, module: nn.Module):
        return nullcontext()

    def sum_(self, tensor: torch.Tensor) -> None:
        dist.all_reduce(tensor)

    def gather(self, value: Any) -> list[Any]:
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def main_first(self):
        return rank_0_first(self)

    def barrier(self) -> None:
        dist.barrier()

    def close(self) -> None:
        dist.destroy_process_group()


@cache
def _store() -> tuple[dist.Store, int, int]:
    """Of this process, with its rank and their number; one for all groups that it makes, one behind the other."""
    return next(dist.rendezvous("env://"))


def _meeting_place() -> dict[str, Any]:
    """Where ranks find each other: in the launcher's store, each group under names of its own.

    A curriculum makes a group for each stage, and on a single node torchrun gives restarted ranks (--max-restarts) the
    store of the ones before: a rank that is early would find the addresses of a group that is no more.
    """
    store, rank, ranks = _store()
    names = f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}-group-{next(GROUPS)}"
    return {"store": dist.PrefixStore(names, store), "rank": rank, "world_size": ranks}
