"""What the Trainer needs of an engine. Each engine is one file of this folder."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn


class Engine(Protocol):
    """Ranks that train one model together.

    Attributes:
        rank: 0 to world_size - 1. device: of this rank.
        gradient_scale: what a rank's loss is multiplied with so that reduced gradients are the sum over ranks.
    """

    rank: int
    world_size: int
    device: torch.device
    gradient_scale: float

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training; its gradients are reduced over ranks."""

    def no_reduction(self, module: nn.Module) -> AbstractContextManager:
        """Inside, backward passes only accumulate on this rank."""

    def sum_(self, tensor: torch.Tensor) -> None:
        """Sum over ranks, in place."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on every rank."""

    def main_first(self) -> AbstractContextManager:
        """Rank 0 runs the block before the others: for caches on a shared disk."""

    def barrier(self) -> None: ...

    def close(self) -> None: ...


def make_engine() -> Engine:
    """DDP under a launcher that sets WORLD_SIZE (torchrun), a single process otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from .torch_ddp import DdpEngine

        return DdpEngine()
    from .single import SingleEngine

    return SingleEngine()
