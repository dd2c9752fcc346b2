"""One process, one device."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn


class SingleEngine:
    save_group = None
    rank = 0
    world_size = 1
    gradient_scale = 1.0
    settling_passes = 0

    def __init__(self):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        return model

    def gather_parameters(self, module: nn.Module) -> None:
        pass

    def no_reduction(self, module: nn.Module):
        return nullcontext()

    def reduce_gradients(self, module: nn.Module, in_backward: bool) -> None:
        pass

    def gathered(self, module: nn.Module):
        return nullcontext()

    def sum_(self, tensor: torch.Tensor) -> None:
        pass

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def main_first(self):
        return nullcontext()

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass
