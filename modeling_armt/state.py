"""The memory as a value: an argument and a result of every call; no module holds it in between.

Shapes: L layers with memory, B batch, K features, D model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MemoryState:
    """Associative memory of every layer that has one, for every row of a batch.

    Attributes:
        A: (L, B, K, D) float32, the associations.
        z: (L, B, K) float32, the normaliser.
        segments_seen: (B,) int64, segments written so far; 0: the row's memory is empty.
    """

    A: Tensor
    z: Tensor
    segments_seen: Tensor

    @classmethod
    def zeros(cls, layers: int, batch: int, features: int, width: int, device=None) -> "MemoryState":
        return cls(
            A=torch.zeros(layers, batch, features, width, device=device),
            z=torch.zeros(layers, batch, features, device=device),
            segments_seen=torch.zeros(batch, dtype=torch.long, device=device),
        )

    @property
    def batch_size(self) -> int:
        return self.segments_seen.shape[0]

    def detach(self) -> "MemoryState":
        """The same values, cut from the graph that made them."""
        return MemoryState(self.A.detach(), self.z.detach(), self.segments_seen)

    def to(self, device) -> "MemoryState":
        return MemoryState(self.A.to(device), self.z.to(device), self.segments_seen.to(device))

    def select(self, rows) -> "MemoryState":
        """The memory of some rows of the batch, in the order given (a list or a long tensor; rows may repeat)."""
        rows = torch.as_tensor(rows, device=self.A.device)
        return MemoryState(self.A[:, rows], self.z[:, rows], self.segments_seen[rows])

    def where(self, rows: Tensor, other: "MemoryState") -> "MemoryState":
        """`other` in `rows` (B,) bool, this state in the rest."""
        return MemoryState(
            torch.where(rows[None, :, None, None], other.A, self.A),
            torch.where(rows[None, :, None], other.z, self.z),
            torch.where(rows, other.segments_seen, self.segments_seen),
        )

    def check(self, layers: int, batch: int, features: int, width: int) -> None:
        """Raise `ValueError` unless this state fits a model and a batch; the message gives both shapes."""
        expected = (layers, batch, features, width)
        if tuple(self.A.shape) != expected:
            raise ValueError(
                f"memory_state.A has shape {tuple(self.A.shape)} (layers, batch, features, width); "
                f"this model and batch need {expected}"
            )
