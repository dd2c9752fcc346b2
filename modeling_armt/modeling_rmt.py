"""RMT as a Hugging Face model: the baseline whose memory is a few tokens.

    model = RmtForCausalLM.from_backbone("gpt2", segment_size=480, num_mem_tokens=16)

Shapes: b rows, C positions of a segment, M memory tokens, D model width.
"""

import torch
from torch import Tensor, nn

from .backbones import LayerInputs
from .configuration_rmt import RmtConfig
from .modeling_base import RecurrentModel
from .state import Memory, TokenState


class RmtForCausalLM(RecurrentModel):
    """A Hugging Face decoder with recurrent memory tokens (arXiv 2207.06881, and 2304.11062 for decoders).

    The memory stands before the text of a segment, to be read, and again behind it; what the last layer and the final
    norm make of the second copy is the next memory.
    """

    config_class = RmtConfig
    state_class = TokenState

    @property
    def memory_sizes(self) -> tuple[int, int]:
        return self.config.num_mem_tokens, self.config.num_mem_tokens

    def add_memory(self) -> None:
        config = self.config
        if config.num_mem_tokens:
            self.memory_tokens = nn.Parameter(torch.empty(config.num_mem_tokens, config.hidden_size))

    def read_tokens(self, memory: Memory | None, batch: int) -> Tensor | None:
        if not self.config.num_mem_tokens:
            return None
        return self._placed(self._tokens(memory, batch), slice(0, self.config.num_mem_tokens))

    def write_tokens(self, memory: Memory | None, batch: int) -> Tensor:
        return self._placed(self._tokens(memory, batch), slice(self.config.num_mem_tokens, None))

    def _tokens(self, memory: Memory | None, batch: int) -> Tensor:
        return self.memory_tokens.expand(batch, -1, -1) if memory is None else memory[0]

    def _placed(self, tokens: Tensor, places: slice) -> Tensor:
        return tokens + self.memory_positions[places] if self.config.memory_positions == "reserved" else tokens

    def run_layers(
        self, hidden: Tensor, inputs: LayerInputs, memory: Memory | None, seen: Tensor | None, num_written: int
    ) -> tuple[Tensor, Memory | None]:
        for number in range(len(self.family.layers)):
            hidden = self.family.run_layer(number, hidden, inputs)
        if num_written:
            memory = (self.family.final_norm(hidden[:, -num_written:]),)
        return hidden, memory

    def empty_state(self, batch: int, device: torch.device | str | None = None) -> TokenState:
        """The learned memory tokens: what the first segment reads."""
        device = device or self.device
        seen = torch.zeros(batch, dtype=torch.long, device=device)
        if not self.config.num_mem_tokens:
            return TokenState(torch.zeros(batch, 0, self.config.hidden_size, device=device), seen)
        return TokenState(self.memory_tokens.to(device).expand(batch, -1, -1), seen)
