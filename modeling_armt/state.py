"""The memory as a value: an argument and a result of every call; no module holds it in between.

Shapes: L layers with memory, B batch, K features, D model width, M memory tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

State = TypeVar("State", bound="RecurrentState")
Memory = tuple[Tensor, ...]  # what a state holds beside `segments_seen`, batch first: the executors' form of it


class HasFingerprint(Protocol):
    """A model, as far as a saved memory is concerned."""

    def fingerprint(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class RecurrentState(ABC):
    """What all kinds of memory can do. A subclass is a frozen dataclass of tensors, `segments_seen` (B,) among them.

    Attributes:
        BATCH_DIM: name of a tensor -> its batch dimension.
    """

    BATCH_DIM: ClassVar[dict[str, int]] = {}

    @property
    def batch_size(self) -> int:
        return self.segments_seen.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; the same after one segment and after a million."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def detach(self: State) -> State:
        """The same values, cut from the graph that made them."""
        return self._map(lambda tensor, _: tensor.detach())

    def to(self: State, device) -> State:
        return self._map(lambda tensor, _: tensor.to(device))

    def select(self: State, rows) -> State:
        """The memory of some rows of the batch, in the order given (a list or a long tensor; rows may repeat)."""
        rows = torch.as_tensor(rows, device=self.segments_seen.device)
        return self._map(lambda tensor, dim: tensor.index_select(dim, rows.to(tensor.device)))

    def repeat(self: State, times: int) -> State:
        """Fork: every row `times` times in succession, e.g. one book for a batch of questions."""
        return self._map(lambda tensor, dim: tensor.repeat_interleave(times, dim))

    def where(self: State, rows: Tensor, other: State) -> State:
        """`other` in `rows` (B,) bool, this state in the rest."""

        def pick(mine: Tensor, dim: int, theirs: Tensor) -> Tensor:
            shape = [1] * mine.dim()
            shape[dim] = -1
            return torch.where(rows.to(mine.device).view(shape), theirs, mine)

        theirs = other._tensors()
        return type(self)(
            **{name: pick(mine, self.BATCH_DIM[name], theirs[name]) for name, mine in self._tensors().items()}
        )

    def check(self, expected: "RecurrentState", device: torch.device) -> None:
        """Raise `ValueError` unless kind and shapes are those of `expected`, on `device`; the message gives both."""
        if type(self) is not type(expected):
            raise ValueError(f"memory_state is a {type(self).__name__}; this model needs a {type(expected).__name__}")
        theirs = expected._tensors()
        for name, tensor in self._tensors().items():
            needed = theirs[name]
            if tensor.shape != needed.shape:
                raise ValueError(
                    f"memory_state.{name} has shape {tuple(tensor.shape)} (batch in dimension {self.BATCH_DIM[name]}); "
                    f"this model and batch need {tuple(needed.shape)}"
                )
            if tensor.device != device:
                raise ValueError(f"memory_state.{name} is on {tensor.device}; the model is on {device}")

    def save(self, path: str | Path, model: HasFingerprint) -> None:
        """Write one safetensors file, marked with the model that can read it."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        save_file(tensors, path, metadata={"kind": type(self).__name__} | model.fingerprint())

    @classmethod
    def load(cls: type[State], path: str | Path, model: HasFingerprint) -> State:
        """Read a saved memory, on the CPU.

        Raises:
            ValueError: another kind of memory, or one of a model with another architecture or other memory weights.
        """
        with safe_open(path, "pt") as file:
            saved = file.metadata() or {}
            expected = {"kind": cls.__name__} | model.fingerprint()
            differing = [name for name in expected if saved.get(name) != expected[name]]
            if differing:
                found = ", ".join(f"{name} {saved.get(name)} instead of {expected[name]}" for name in differing)
                raise ValueError(f"{path} is the memory of another model ({found})")
            return cls(**{name: file.get_tensor(name) for name in cls.BATCH_DIM})

    @abstractmethod
    def unbind(self) -> Memory:
        """The memory alone, every tensor batch first."""

    @classmethod
    @abstractmethod
    def bind(cls: type[State], memory: Memory, segments_seen: Tensor) -> State:
        """The inverse of `unbind`."""

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _map(self: State, function: Callable[[Tensor, int], Tensor]) -> State:
        changed = {name: function(tensor, self.BATCH_DIM[name]) for name, tensor in self._tensors().items()}
        return type(self)(**changed)


@dataclass(frozen=True)
class MemoryState(RecurrentState):
    """Associative memory of every layer that has one, for every row of a batch.

    Attributes:
        A: (L, B, K, D) float32, the associations.
        z: (L, B, K) float32, the normaliser.
        segments_seen: (B,) int64, segments written so far; 0: the row's memory is empty.
    """

    A: Tensor
    z: Tensor
    segments_seen: Tensor

    BATCH_DIM = {"A": 1, "z": 1, "segments_seen": 0}

    @classmethod
    def zeros(cls, layers: int, batch: int, features: int, width: int, device=None) -> "MemoryState":
        return cls(
            A=torch.zeros(layers, batch, features, width, device=device),
            z=torch.zeros(layers, batch, features, device=device),
            segments_seen=torch.zeros(batch, dtype=torch.long, device=device),
        )

    def unbind(self) -> Memory:
        """A of all layers, then z of all layers."""
        return (*self.A.unbind(0), *self.z.unbind(0))

    @classmethod
    def bind(cls, memory: Memory, segments_seen: Tensor) -> "MemoryState":
        layers, device = len(memory) // 2, segments_seen.device  # layers may be spread over devices
        A, z = ([tensor.to(device) for tensor in part] for part in (memory[:layers], memory[layers:]))
        return cls(torch.stack(A), torch.stack(z), segments_seen)


@dataclass(frozen=True)
class TokenState(RecurrentState):
    """Memory tokens that are passed from segment to segment (RMT).

    Attributes:
        tokens: (B, M, D). segments_seen: (B,) int64, segments that wrote so far.
    """

    tokens: Tensor
    segments_seen: Tensor

    BATCH_DIM = {"tokens": 0, "segments_seen": 0}

    def unbind(self) -> Memory:
        return (self.tokens,)

    @classmethod
    def bind(cls, memory: Memory, segments_seen: Tensor) -> "TokenState":
        return cls(memory[0].to(segments_seen.device), segments_seen)
