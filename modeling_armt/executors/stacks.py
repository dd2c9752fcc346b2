"""Layers of one kind as one module over stacked parameters.

The parameters of the layers become views of the stack, so nothing is held twice, and what changes one (an optimizer, a
checkpoint that is loaded) changes the other. In training, the gradient of the stack is handed to them by layer.

Shapes: n layers of a stack, g of them in a group, B batch, C positions, D model width, K features.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..backbones import Backbone, LayerInputs
from ..layer import ArmtLayer
from .folded_attention import FoldedAttention

PLAIN = (bool, int, float, str, type(None))


class Cell(nn.Module):
    """A decoder layer and its memory, if it has one, as one module."""

    def __init__(self, family: Backbone, number: int, memory_layer: ArmtLayer | None):
        super().__init__()
        self.family, self.number = family, number
        self.layer, self.memory_layer = family.layers[number], memory_layer

    def forward(
        self,
        hidden: Tensor,
        memory: tuple[Tensor, ...] | None,
        seen: Tensor | None,
        inputs: LayerInputs,
        num_written: int,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """hidden (B, C, D), memory (A, z), () without one, None where nothing was written yet -> the same of the next
        layer and the next segment."""

        def decoder_layer(x: Tensor) -> Tensor:
            return self.family.run_layer(self.number, x, inputs)

        if self.memory_layer is None:
            return decoder_layer(hidden), ()
        return self.memory_layer(hidden, memory, decoder_layer, num_written, seen)

    def is_of(self, family: Backbone) -> bool:
        """Whether the layer is still the model's own: adapters and wrappers replace layers."""
        return self.layer is family.layers[self.number]

    def signature(self) -> tuple:
        """What must be equal in two cells for one to run with the other's parameters."""
        modules = tuple(
            (
                name,
                type(module),
                *sorted((n, v) for n, v in vars(module).items() if _matters(n, v)),
            )
            for name, module in self.named_modules()
            if module is not self
        )
        tensors = tuple((name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in self.tensors().items())
        return self.family.kinds[self.number], self.memory_layer is None, modules, tensors

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.named_parameters()) | dict(self.named_buffers())


def _matters(name: str, value: Any) -> bool:
    """Whether an attribute of a module may tell it from the same one in another layer; the index of a layer is for the
    key-value cache."""
    return name != "layer_idx" and type(value) in PLAIN


class _Stacked(torch.autograd.Function):
    """A stack as a function of its parameters, which are views of it: nothing is copied."""

    @staticmethod
    def forward(ctx, stack: Tensor, *parameters: Tensor) -> Tensor:
        return stack.view_as(stack)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *gradient.unbind(0)


@dataclass
class Stack:
    """Cells of one kind.

    Attributes:
        cells: lowest layer first. storage: name of a parameter or buffer -> its values in all cells (n, ...).
    """

    cells: list[Cell]
    storage: dict[str, Tensor]

    @property
    def numbers(self) -> list[int]:
        """Of the layers."""
        return [cell.number for cell in self.cells]

    @property
    def has_memory(self) -> bool:
        return self.cells[0].memory_layer is not None

    def is_current(self) -> bool:
        """Whether the parameters are still views of the stack: moving or replacing them ends that."""
        return all(
            tensor.data_ptr() == self.storage[name][place].data_ptr() and tensor.device == self.storage[name].device
            for place, cell in enumerate(self.cells)
            for name, tensor in cell.tensors().items()
        )

    def parameters(self) -> dict[str, Tensor]:
        """The stacked parameters, connected with those of the layers where gradients are wanted."""
        own = [cell.tensors() for cell in self.cells]
        return {
            name: _Stacked.apply(stack, *(tensors[name] for tensors in own))
            if torch.is_grad_enabled() and own[0][name].requires_grad
            else stack
            for name, stack in self.storage.items()
        }

    def span(self, low: int, high: int) -> slice:
        """The places in the stack of layers `low` to `high` - 1."""
        return slice(bisect_left(self.numbers, low), bisect_left(self.numbers, high))

    def run(
        self,
        parameters: dict[str, Tensor],
        hidden: Tensor,
        memory: tuple[Tensor, ...],
        seen: Tensor,
        inputs: LayerInputs,
        num_written: int,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A group of cells at once: hidden (g, B, C, D), memory A (g, B, K, D) and z (g, B, K), seen (g, B)."""

        def one(parameters: dict[str, Tensor], hidden: Tensor, memory: tuple[Tensor, ...], seen: Tensor):
            return functional_call(self.cells[0], parameters, (hidden, memory, seen, inputs, num_written))

        with FoldedAttention():
            return vmap(one, randomness="different")(parameters, hidden, memory, seen)


def make_stacks(cells: list[Cell]) -> list[Stack]:
    """Group the cells of a model by kind, and make their parameters views of stacks.

    Raises:
        ValueError: the parameters cannot be stacked.
    """
    if not are_whole(cells):
        raise ValueError("layers that are sharded, offloaded or on several devices cannot run as diagonals")
    return [_share_storage(group) for group in by_kind(cells)]


def by_kind(cells: list[Cell]) -> list[list[Cell]]:
    """Cells that can run with one another's parameters, together."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.signature(), []).append(cell)
    return list(groups.values())


def are_whole(cells: list[Cell]) -> bool:
    """Whether all parameters are plain tensors on one device: not sharded, offloaded or spread."""
    tensors = [tensor for cell in cells for tensor in cell.tensors().values()]
    devices = {tensor.device for tensor in tensors}
    return len(devices) == 1 and devices != {torch.device("meta")} and {*map(type, tensors)} <= {nn.Parameter, Tensor}


@torch.no_grad()
def _share_storage(cells: list[Cell]) -> Stack:
    own = [cell.tensors() for cell in cells]
    storage = {name: torch.stack([tensors[name] for tensors in own]) for name in own[0]}
    for place, tensors in enumerate(own):
        for name, tensor in tensors.items():
            tensor.data = storage[name][place]
    return Stack(cells, storage)
