"""The full diagonal, replayed as one CUDA graph.

A diagonal of small segments is a hundred kernels that a GPU runs faster than Python can launch them. Between the ramps
all diagonals are the same computation, so it is recorded once a text, and then launched as a whole.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

Memories = list[tuple[Tensor, ...]]
Step = Callable[[Tensor, Memories], tuple[Tensor, Memories]]


class Steady:
    """A step over buffers that stay where they are; without a GPU it is not recorded, but called.

    Attributes:
        memories: of all stacks, as the last step left them.
    """

    def __init__(self, step: Step, hidden: Tensor, memories: Memories):
        """
        Args:
            step: (hidden, memories) -> the next of both, of the same shapes; it may not wait for the GPU.
            hidden, memories: what the next call begins with; they are copied.
        """
        self.step = step
        self.hidden, self.memories = hidden.clone(), [tuple(map(torch.clone, part)) for part in memories]
        self.graph = None
        if hidden.is_cuda:
            self._record(memories)

    def __call__(self, hidden: Tensor) -> Tensor:
        """The next hidden states, valid until the next call."""
        self.hidden.copy_(hidden)
        if self.graph is None:
            return self._advance()
        self.graph.replay()
        return self.output

    def _advance(self) -> Tensor:
        output, memories = self.step(self.hidden, self.memories)
        self._set(memories)
        return output

    def _set(self, memories: Memories) -> None:
        for part, values in zip(self.memories, memories):
            for buffer, value in zip(part, values):
                buffer.copy_(value)

    def _record(self, memories: Memories) -> None:
        side = _side_stream(self.hidden.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what libraries set up at their first call may not be recorded
            self._advance()
            self._set(memories)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=side):
            self.output = self._advance()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all texts: cuBLAS keeps a workspace of 32 MiB for each stream that it has seen."""
    return torch.cuda.Stream(device)
