"""Which hidden states of a segmented input are kept, and how they come together again.

Shapes: B batch, N input tokens, b rows that have a segment, T tokens of a segment, D model width, V vocabulary,
n wanted positions.
"""

import torch
from torch import Tensor

from .segmentation import Segment


def last_tokens(shape: tuple[int, int], mask: Tensor | None, number: int) -> Tensor:
    """(B, N) bool: the last `number` tokens of each row, wherever its padding stands."""
    if mask is None:
        return (torch.arange(shape[1]) >= shape[1] - number).expand(shape)
    mask = mask.bool().cpu()
    from_the_end = mask.flip(1).cumsum(1).flip(1)
    return mask & (from_the_end <= number)


Pick = tuple[Tensor, Tensor, Tensor]  # rows and slots inside a segment, and their places b * N + t in the input


class Selection:
    """The wanted positions of an input.

    Args:
        plan: the segments of the input.
        wanted: (B, N) bool on the CPU; None: all positions.
    """

    def __init__(self, plan: list[Segment], shape: tuple[int, int], wanted: Tensor | None):
        self.plan, self.shape = plan, shape
        self.everything = wanted is None
        self.picks = [None if wanted is None else _pick(segment, wanted) for segment in plan]

    @property
    def reaches_past_first_segment(self) -> bool:
        """Whether a segment that can read a memory holds a wanted position."""
        return len(self.plan) > 1 and (self.everything or any(pick is not None for pick in self.picks[1:]))

    def wants(self, index: int) -> bool:
        """Whether a position of segment `index` is wanted."""
        return self.everything or self.picks[index] is not None

    def keep(self, index: int, hidden: Tensor) -> Tensor | None:
        """What to keep of the hidden states (b, T, D) of segment `index`."""
        if self.everything:
            return hidden
        if not self.wants(index):
            return None
        row, slot, _ = self.picks[index]
        return hidden[row.to(hidden.device), slot.to(hidden.device)]

    def gather(self, kept: list[Tensor | None], like: Tensor) -> Tensor:
        """All kept hidden states: (B, N, D), zeros on padding, where everything is wanted; else (n, D), by row, then
        by position. `like` gives width, type and device where nothing is wanted."""
        if self.everything:
            return self._join(kept)
        if all(part is None for part in kept):
            return like.new_zeros(0, like.shape[-1])
        order = torch.cat([pick[2] for pick in self.picks if pick is not None]).argsort()
        hidden = torch.cat([part for part in kept if part is not None])
        return hidden[order.to(hidden.device)]

    def _join(self, kept: list[Tensor]) -> Tensor:
        if all(isinstance(segment.columns, slice) for segment in self.plan):
            return torch.cat(kept, dim=1)
        whole = kept[0].new_zeros(*self.shape, kept[0].shape[-1])
        flat = whole.view(-1, whole.shape[-1])
        for hidden, segment in zip(kept, self.plan):
            valid = segment.valid()
            valid = torch.ones(hidden.shape[:2], dtype=torch.bool) if valid is None else valid
            places = _places(segment, *valid.nonzero(as_tuple=True), self.shape[1])
            flat[places.to(hidden.device)] = hidden[valid.to(hidden.device)]
        return whole


def to_rows(logits: Tensor, wanted: Tensor | None) -> Tensor:
    """Logits of wanted positions (n, V) -> (B, k, V), rows with fewer than the longest's k padded on the left."""
    if wanted is None:
        return logits
    counts = wanted.sum(1)
    size = int(counts.max())
    if bool((counts == size).all()):
        return logits.view(len(counts), size, -1)
    place = torch.arange(size) >= size - counts.unsqueeze(1)
    rows = logits.new_zeros(*place.shape, logits.shape[-1])
    rows[place.to(logits.device)] = logits
    return rows


def _pick(segment: Segment, wanted: Tensor) -> Pick | None:
    """The positions of the segment that are wanted."""
    inside = segment.take(wanted)
    valid = segment.valid()
    row, slot = (inside if valid is None else inside & valid).nonzero(as_tuple=True)
    return (row, slot, _places(segment, row, slot, wanted.shape[1])) if len(row) else None


def _places(segment: Segment, row: Tensor, slot: Tensor, length: int) -> Tensor:
    """Places b * N + t in the input of slots of a segment."""
    columns = segment.columns
    column = slot + columns.start if isinstance(columns, slice) else columns[row, slot]
    batch_row = row if segment.rows is None else segment.rows[row]
    return batch_row * length + column
