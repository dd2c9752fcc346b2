"""Associative memory around one decoder layer: read before it, write after it.

Shapes: B batch, T tokens of a segment with its memory tokens, M memory tokens, D model width, d key width,
K = 2 * d * nu features. The memory of one layer is a pair A (B, K, D), z (B, K), float32 whatever the compute type.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .associative import dpfp, write_first
from .associative import read as read_memory
from .associative import write as write_memory
from .configuration_armt import ArmtConfig

LayerMemory = tuple[Tensor, Tensor]


class ArmtLayer(nn.Module):
    """The parameters of one layer's memory, and its read and write.

    The decoder layer itself stays in the backbone, under its own name, and is passed to each call: so LoRA, tied
    weights and checkpoints of the backbone see the model that they know.
    """

    def __init__(self, config: ArmtConfig):
        super().__init__()
        width = config.hidden_size
        self.nu = config.nu
        self.use_correction = config.use_correction
        self.W_q = nn.Parameter(torch.empty(config.d_mem, width))
        self.W_k = nn.Parameter(torch.empty(config.d_mem, width))
        self.W_v = nn.Parameter(torch.empty(width, width))
        self.W_b = nn.Parameter(torch.empty(1, width))
        self.bias_b = nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        """W_v is zero, so a freshly wrapped model equals its backbone run segment by segment."""
        bound = self.W_q.shape[1] ** -0.5
        for weight in (self.W_q, self.W_k, self.W_b):
            nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(self.W_v)
        nn.init.zeros_(self.bias_b)

    @torch.no_grad()
    def sharpen_gate(self, factor: float) -> None:
        """Multiply the logits of beta: gates on either side of 0.5 move away from it."""
        self.W_b.mul_(factor)
        self.bias_b.mul_(factor)

    def forward(
        self,
        hidden: Tensor,
        memory: LayerMemory | None,
        decoder_layer: Callable[[Tensor], Tensor],
        num_written: int,
        seen: Tensor | None,
    ) -> tuple[Tensor, LayerMemory | None]:
        """One cell of the recurrence.

        Args:
            hidden: (B, T, D). memory: A and z, or None where nothing was written to any row yet.
            decoder_layer: (B, T, D) -> (B, T, D).
            num_written: the last `num_written` positions are memory tokens and write; 0: the memory stays as it is.
            seen: (B,) bool, rows whose memory is not empty; unused without `memory`.

        Returns:
            hidden (B, T, D) and the next memory.
        """
        if memory is not None:
            hidden = hidden + self.read(hidden, memory)
        hidden = decoder_layer(hidden)
        if num_written:
            memory = self.write(hidden[:, -num_written:], memory, seen)
        return hidden, memory

    def read(self, hidden: Tensor, memory: LayerMemory) -> Tensor:
        """What every position of `hidden` (B, T, D) finds in the memory, in the type of `hidden`."""
        projected = F.linear(hidden, self.W_q)
        with torch.autocast(hidden.device.type, enabled=False):
            return read_memory(*memory, dpfp(projected.float(), self.nu)).to(hidden.dtype)

    def write(self, hidden: Tensor, memory: LayerMemory | None, seen: Tensor | None) -> LayerMemory:
        """Write the memory tokens' outputs `hidden` (B, M, D)."""
        projected, values = F.linear(hidden, self.W_k), F.linear(hidden, self.W_v)
        gate = F.linear(hidden, self.W_b, self.bias_b)
        with torch.autocast(hidden.device.type, enabled=False):
            keys = dpfp(projected.float(), self.nu)
            values, beta = values.float(), gate.float().sigmoid()
            if memory is None:
                return write_first(keys, values, beta)
            return write_memory(*memory, keys, values, beta, seen, self.use_correction)
