"""Cells under `torch.compile`: norms, activations and feature maps become part of few kernels.

One graph serves all layers of a kind and all segments of a shape: parameters are inputs of the graph. Full segments
take it; others (padded rows, open segments of `generate`) run as they are, so that nothing is compiled for each length.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.func import functional_call

from ..backbones import LayerInputs
from .stacks import Cell, Stack, by_kind


@cache
def compile_once(function: Callable) -> Callable:
    """The function under `torch.compile`, which takes a second to import and is left alone until it is wanted."""
    return torch.compile(function, dynamic=False)


def run_cell(
    lead: Cell,
    parameters: dict[str, Tensor],
    hidden: Tensor,
    memory: tuple[Tensor, ...],
    seen: Tensor | None,
    inputs: LayerInputs,
    num_written: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    return functional_call(lead, parameters, (hidden, memory, seen, inputs, num_written))


def run_group(
    stack: Stack,
    parameters: dict[str, Tensor],
    hidden: Tensor,
    memory: tuple[Tensor, ...],
    seen: Tensor,
    inputs: LayerInputs,
    num_written: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`stack.run`, for a group of all its cells."""
    return stack.run(parameters, hidden, memory, seen, inputs, num_written)


class CompiledCells:
    """Runs cells of one model."""

    def __init__(self, cells: list[Cell]):
        self.lead = {cell: group[0] for group in by_kind(cells) for cell in group}

    def run(
        self,
        cell: Cell,
        hidden: Tensor,
        memory: tuple[Tensor, ...],
        seen: Tensor | None,
        inputs: LayerInputs,
        num_written: int,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`cell(hidden, ...)`, of all positions."""
        inputs = replace(inputs, skipped=0)  # one graph, whatever the last layer leaves out
        parameters = {name: tensor.view_as(tensor) for name, tensor in cell.tensors().items()}  # else the lead's are
        run = compile_once(run_cell)
        return run(self.lead[cell], parameters, hidden, memory, seen, inputs, num_written)  # a case of their own
