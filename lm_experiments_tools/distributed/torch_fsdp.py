"""Fully sharded data parallel (FSDP2), started by torchrun: parameters and optimizer state are split over ranks.

A recurrent model calls each layer once a segment, and samples have different numbers of segments, so collectives
inside layers would be many, and not the same number on all ranks. Here all layers are asked for when an update begins,
arrive while those before them run, and stay until its last backward pass; then gradients are summed once, each rank
keeping its part. So no rank that fails inside a pass (out of memory) leaves another one waiting there. Between
updates a rank holds 1 / ranks of weights and optimizer state (12 of the 16 bytes a parameter of AdamW in float32);
inside an update all weights and gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
import torch.distributed.checkpoint  # noqa: F401  for shards.py, whose thread must not import while data workers fork
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial

from ..errors import UserError
from .torch_ddp import DdpEngine


class FsdpEngine(DdpEngine):
    def __init__(self, timeout: float | None = None):
        super().__init__(timeout)
        self.gradient_scale = 1.0  # gradients are summed, not averaged
        self.settling_passes = 0
        self.mesh = init_device_mesh(self.device.type, (self.world_size,))
        self.save_group = dist.new_group(backend="gloo", timeout=self.timeout)  # of the thread that writes checkpoints

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Split every layer (`_no_split_modules` of Hugging Face's models) on its own, and the rest together.

        Raises:
            UserError: the model handles its layers as a whole (`needs_whole_layers`).
        """
        if getattr(model, "needs_whole_layers", False):
            raise UserError("FSDP splits layers, which diagonal, auto and compile need whole: choose --engine ddp")
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)  # as DDP does
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        layers = getattr(model, "_no_split_modules", None) or ()
        for module in [module for module in model.modules() if type(module).__name__ in layers]:
            fully_shard(module, mesh=self.mesh, reshard_after_forward=False)
        fully_shard(model, mesh=self.mesh, reshard_after_forward=False)
        model.set_requires_gradient_sync(False)
        model.set_reshard_after_backward(False)
        split = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [split[names[id(parameter)]] for parameter in group["params"]]
            if group.get("fused") and not isinstance(optimizer, torch.optim.Adam):  # AdamW is one; others have no rule
                group["fused"] = False
        return model

    def gather_parameters(self, module: nn.Module) -> None:
        for part in _parts(module):
            part.unshard(async_op=True)

    def no_reduction(self, module: nn.Module):
        return nullcontext()

    def reduce_gradients(self, module: nn.Module, in_backward: bool) -> None:
        gathered = list(module.parameters())
        gradients = [parameter.grad for parameter in gathered]
        for parameter in gathered:
            parameter.grad = None
        _reshard(module)
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            if gradient is not None:
                of_all = DTensor.from_local(gradient, self.mesh, [Partial()], run_check=False)
                parameter.grad = of_all.redistribute(placements=parameter.placements)

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[None]:
        for part in _parts(module):
            part.unshard()
        yield
        _reshard(module)


def _parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _reshard(module: nn.Module) -> None:
    for part in _parts(module):
        part.reshard()
