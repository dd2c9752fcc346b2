"""ARMT as a Hugging Face model.

    model = ArmtForCausalLM.from_backbone("gpt2", segment_size=512, num_mem_tokens=16, d_mem=64)
    output = model(input_ids, labels=labels)

Shapes: b rows, C positions of a segment, W write tokens, D model width.
"""

import torch
from torch import Tensor, nn

from .backbones import LayerInputs
from .configuration_armt import ArmtConfig
from .executors.auto import FasterOrder
from .executors.compiled import CompiledCells
from .executors.diagonal import run as run_diagonals
from .executors.sequential import SegmentInput
from .executors.stacks import Cell, Stack, make_stacks
from .layer import ArmtLayer
from .modeling_base import RecurrentModel
from .state import Memory, MemoryState


class ArmtForCausalLM(RecurrentModel):
    """A Hugging Face decoder with associative recurrent memory (arXiv 2407.04841).

    The same memory tokens follow the text of every segment. Before a layer, every position reads the layer's memory;
    after it, the memory tokens write to it.
    """

    config_class = ArmtConfig
    state_class = MemoryState

    def add_memory(self) -> None:
        config = self.config
        if config.num_mem_tokens:
            self.memory_tokens = nn.Parameter(torch.empty(config.num_mem_tokens, config.hidden_size))
        self._cells: list[Cell] | None = None
        self._stacks: list[Stack] | None = None
        self._compiled: CompiledCells | None = None
        self.compiles = False
        self._faster_order = FasterOrder(self)
        self.memory_layers = nn.ModuleDict({str(layer): ArmtLayer(config) for layer in config.layers_with_memory})

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ArmtLayer):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def sharpen_gates(self, factor: float) -> None:
        """Multiply the logits of all write gates (beta of equation 2), in place.

        A gate of 1e-3 costs nothing on the 16 segments of a training, and is 80 whole writes on 80 thousand; tripled
        logits make it 1e-9, and a gate of 0.98 one of 0.99999.
        """
        for layer in self.memory_layers.values():
            layer.sharpen_gate(factor)

    def write_tokens(self, memory: Memory | None, batch: int) -> Tensor:
        tokens = self.memory_tokens
        if self.config.memory_positions == "reserved":
            tokens = tokens + self.memory_positions
        return tokens.expand(batch, -1, -1)

    def run_layers(
        self, hidden: Tensor, inputs: LayerInputs, memory: Memory | None, seen: Tensor | None, num_written: int
    ) -> tuple[Tensor, Memory | None]:
        layers = len(self.memory_layers)
        before = [None] * layers if memory is None else list(zip(memory[:layers], memory[layers:]))
        after = []
        is_full = hidden.shape[1] == self.config.segment_size + self.config.num_mem_tokens and inputs.cache is None
        run = self._compiled_cells().run if self.compiles and is_full else Cell.__call__
        for cell in self.cells():
            own = before[len(after)] if cell.memory_layer is not None else ()
            run_one = Cell.__call__ if self.family.narrows(cell.number, inputs) else run
            hidden, updated = run_one(cell, hidden, own, seen, inputs, num_written)
            if cell.memory_layer is not None:
                after.append(updated)
        if not num_written:
            return hidden, memory
        A, z = zip(*after)
        return hidden, (*A, *z)

    def run_segment(
        self, segment: SegmentInput, memory: Memory | None, seen: Tensor | None
    ) -> tuple[Tensor, Memory | None]:
        if not self.compiles:
            return super().run_segment(segment, memory, seen)
        batch = len(segment.embeddings)
        if memory is None and len(self.memory_layers):  # an empty one has the graph of a full one, gradients too
            empty = self.empty_state(batch)
            memory = tuple(tensor.requires_grad_(torch.is_grad_enabled()) for tensor in empty.unbind())
            seen = empty.segments_seen > 0
        hidden, memory = super().run_segment(segment.filled(self.config.segment_size), memory, seen)
        return hidden[:, : segment.embeddings.shape[1]], memory

    def compile_cells(self) -> None:
        """From now on run full segments by `torch.compile`; the first of a shape takes a minute."""
        self.compiles = True

    @property
    def needs_whole_layers(self) -> bool:
        """Whether layers run otherwise than by a call of each, which is what sharding them builds on."""
        return self.compiles or self.config.executor != "sequential"

    def run_cells(self, *args, **options) -> tuple[list[Tensor | None], Memory | None, Tensor | None]:
        if self.config.executor == "diagonal":
            return run_diagonals(self, *args, **options)
        if self.config.executor == "auto":
            return self._faster_order.run(*args, **options)
        return super().run_cells(*args, **options)

    def cells(self) -> list[Cell]:
        """The layers with their memories, lowest first."""
        if self._cells is None or not all(cell.is_of(self.family) for cell in self._cells):
            memories = dict(self.memory_layers.items())
            numbers = range(len(self.family.layers))
            self._cells = [Cell(self.family, number, memories.get(str(number))) for number in numbers]
            self._compiled = None
        return self._cells

    def _compiled_cells(self) -> CompiledCells:
        cells = self.cells()
        if self._compiled is None:
            self._compiled = CompiledCells(cells)
        return self._compiled

    def stacks(self) -> list[Stack]:
        """The cells, stacked by kind; made anew when parameters were moved or replaced."""
        if self._stacks is None or not all(stack.is_current() for stack in self._stacks):
            self._stacks = make_stacks(self.cells())
        return self._stacks

    def empty_state(self, batch: int, device: torch.device | str | None = None) -> MemoryState:
        layers, config = len(self.memory_layers), self.config
        return MemoryState.zeros(layers, batch, config.num_features, config.hidden_size, device or self.device)
