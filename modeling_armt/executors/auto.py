"""The faster of the two orders, measured once for each shape of input.

Both orders agree to rounding, not bit for bit; so a run that must repeat exactly names its order.
"""

import time
from collections.abc import Callable, Iterable
from itertools import chain, islice

import torch
from torch import Tensor

from ..state import Memory
from .diagonal import Model
from .diagonal import run as run_diagonals
from .sequential import SegmentInput
from .sequential import run as run_in_order
from .stacks import are_whole

Order = Callable[..., tuple[list[Tensor | None], Memory | None, Tensor | None]]
WARM_UP, REPEATS = 1, 3


class FasterOrder:
    """Of one model.

    Attributes:
        chosen: shape of the input -> the order that was faster.
    """

    def __init__(self, model: Model):
        self.model = model
        self.orders: dict[str, Order] = {"sequential": self._in_order, "diagonal": self._by_diagonals}
        self.chosen: dict[tuple, str] = {}

    def _in_order(self, *args, **options):
        return run_in_order(self.model.run_segment, *args, **options)

    def _by_diagonals(self, *args, **options):
        return run_diagonals(self.model, *args, **options)

    def run(
        self,
        segments: Iterable[SegmentInput],
        memory: Memory | None,
        segments_seen: Tensor | None,
        batch: int,
        keep: Callable[[int, Tensor], Tensor | None],
        replay: bool = False,
    ) -> tuple[list[Tensor | None], Memory | None, Tensor | None]:
        """`sequential.run`; the first input of a shape is also the one that is measured, on its first segments."""
        segments = iter(segments)
        cells = self.model.cells()
        head = list(islice(segments, 2 * len(cells)))  # from as many on, more of them change little
        order = "sequential"
        if len(head) > 1 and head[0].rows is None and head[0].padding is None and are_whole(cells):
            first = head[0].embeddings
            shape = (len(head), *first.shape, str(first.device), torch.is_grad_enabled(), _compute_type(first), replay)
            if shape not in self.chosen:
                self.chosen[shape] = self._measure(head, memory, segments_seen, batch, replay)
            order = self.chosen[shape]
        return self.orders[order](chain(head, segments), memory, segments_seen, batch, keep, replay=replay)

    def _measure(self, head: list[SegmentInput], *inputs) -> str:
        seconds = {name: [] for name in self.orders}
        device = head[0].embeddings.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout draws
            for attempt in range(WARM_UP + REPEATS):
                for name, order in self.orders.items():
                    start = time.perf_counter()
                    self._pass(order, head, *inputs)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    if attempt >= WARM_UP:
                        seconds[name].append(time.perf_counter() - start)
        return min(seconds, key=lambda name: sorted(seconds[name])[REPEATS // 2])

    def _pass(self, order: Order, head: list[SegmentInput], memory, segments_seen, batch: int, replay: bool) -> None:
        """One forward pass and, where gradients are wanted, one backward pass that leaves no gradient behind."""
        kept, _, _ = order(head, memory, segments_seen, batch, lambda index, hidden: hidden[:, -1:], replay=replay)
        wanted = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if torch.is_grad_enabled() and wanted:
            torch.autograd.grad(sum(hidden.sum() for hidden in kept), wanted, allow_unused=True, retain_graph=True)


def _compute_type(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
