"""ARMT as a Hugging Face model.

    model = ArmtForCausalLM.from_backbone("gpt2", segment_size=512, num_mem_tokens=16, d_mem=64)
    output = model(input_ids, labels=labels)

Shapes: b rows, C positions of a segment, W write tokens, D model width.
"""

import torch
from torch import Tensor, nn

from .backbones import LayerInputs
from .configuration_armt import ArmtConfig
from .executors.diagonal import run as run_diagonals
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
        self._stacks: list[Stack] | None = None
        self.memory_layers = nn.ModuleDict({str(layer): ArmtLayer(config) for layer in config.layers_with_memory})

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ArmtLayer):
            module.reset_parameters()
        else:
            super()._init_weights(module)

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
        for number in range(len(self.family.layers)):
            if str(number) not in self.memory_layers:
                hidden = self.family.run_layer(number, hidden, inputs)
                continue
            memory_layer = self.memory_layers[str(number)]

            def decoder_layer(x: Tensor, number: int = number) -> Tensor:
                return self.family.run_layer(number, x, inputs)

            hidden, updated = memory_layer(hidden, before[len(after)], decoder_layer, num_written, seen)
            after.append(updated)
        if not num_written:
            return hidden, memory
        A, z = zip(*after)
        return hidden, (*A, *z)

    def execute(self, *args, **options) -> tuple[list[Tensor | None], Memory | None, Tensor | None]:
        if self.config.executor == "diagonal":
            return run_diagonals(self, *args, **options)
        return super().execute(*args, **options)

    def stacks(self) -> list[Stack]:
        """The layers with their memories, stacked by kind; made anew when parameters were moved or replaced."""
        if self._stacks is None or not all(stack.is_current() for stack in self._stacks):
            numbers = range(len(self.family.layers))
            memories = dict(self.memory_layers.items())
            self._stacks = make_stacks([Cell(self.family, number, memories.get(str(number))) for number in numbers])
        return self._stacks

    def empty_state(self, batch: int, device: torch.device | str | None = None) -> MemoryState:
        layers, config = len(self.memory_layers), self.config
        return MemoryState.zeros(layers, batch, config.num_features, config.hidden_size, device or self.device)
