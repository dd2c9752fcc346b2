"""What generation carries from token to token: the memory, and the keys and values of the open segment.

Rows of a batch may be at different places of their open segments. New tokens are appended to the key-value cache as
one column for all rows; `mask` says which columns belong to the open segment of which row.

Shapes: B batch, C columns of the key-value cache.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from .state import MemoryState


@dataclass
class ArmtCache:
    """The memory and the open segment of every row.

    Attributes:
        state: memory of the closed segments. mask: (B, C) bool, columns of the row's open segment.
        fill: (B,) long, tokens in the row's open segment. keys_values: of the open segments, one entry a layer.
    """

    state: MemoryState
    mask: Tensor
    fill: Tensor
    keys_values: DynamicCache = field(default_factory=DynamicCache)

    @classmethod
    def empty(cls, state: MemoryState) -> "ArmtCache":
        batch, device = state.batch_size, state.A.device
        return cls(
            state=state,
            mask=torch.zeros(batch, 0, dtype=torch.bool, device=device),
            fill=torch.zeros(batch, dtype=torch.long, device=device),
        )

    def append(self, valid: Tensor) -> Tensor:
        """Make room for T columns, `valid` (B, T) bool; returns the positions (B, T) of their tokens."""
        positions = self.fill.unsqueeze(1) + torch.arange(valid.shape[1], device=valid.device)
        self.mask = torch.cat((self.mask, valid), dim=1)
        self.fill = self.fill + valid.sum(dim=1)
        return positions

    def close(self, rows: Tensor, num_mem_tokens: int, state: MemoryState) -> None:
        """Forget the open segment of `rows` (B,) bool, whose `num_mem_tokens` last columns were memory tokens."""
        self.state = state
        self.keys_values.crop(-num_mem_tokens)
        self.mask = self.mask & ~rows.unsqueeze(1)
        self.fill = self.fill.masked_fill(rows, 0)
        if bool(rows.all()):
            self.keys_values = DynamicCache()
            self.mask = self.mask[:, :0]
