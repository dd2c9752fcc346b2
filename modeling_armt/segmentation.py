"""How a batch is cut into segments: pure functions of lengths and masks.

Each row is cut from its own tokens, so padding on either side changes neither borders nor positions. A segment in which
rows differ in length has its padding on the left: tokens of a row stand together, and with the memory tokens behind.

Shapes: B batch, N tokens of the input, b rows that have a segment, T tokens of the longest row of a segment.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Segment:
    """One segment of a batch.

    Attributes:
        size: T.
        columns: input columns of its tokens: a slice where all rows share them, else (b, T) long. Before the
            tokens of a shorter row, any column stands; it is masked.
        rows: (b,) long, rows of the batch that have this segment; None: all.
        lengths: (b,) long, tokens of each row; None: all have T.
    """

    size: int
    columns: slice | Tensor
    rows: Tensor | None = None
    lengths: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """The segment's part of an input (B, N, ...) -> (b, T, ...)."""
        if isinstance(self.columns, slice):
            return x[:, self.columns]
        return x[self.row_index(x.device), self.columns.to(x.device)]

    def row_columns(self, batch: int) -> list[Tensor]:
        """Input columns of each row's tokens, in order."""
        if isinstance(self.columns, slice):
            return [torch.arange(self.columns.start, self.columns.stop)] * batch
        padding = [0] * len(self.columns) if self.lengths is None else self.padding.tolist()
        return [columns[start:] for columns, start in zip(self.columns, padding)]

    def row_index(self, device) -> Tensor:
        """(b, 1) long: the batch row of each row of the segment."""
        rows = torch.arange(self.columns.shape[0]) if self.rows is None else self.rows
        return rows.to(device).unsqueeze(1)

    def valid(self) -> Tensor | None:
        """(b, T) bool: where a token stands; None: everywhere."""
        if self.lengths is None:
            return None
        return torch.arange(self.size) >= self.padding.unsqueeze(1)

    @property
    def padding(self) -> Tensor | None:
        """(b,) long: positions before each row's first token; None: none."""
        return None if self.lengths is None else self.size - self.lengths


def borders(length: int, segment_size: int, alignment: str) -> list[int]:
    """Borders of the segments of one sequence: 0, ..., length.

    `left` fills segments from the start, `right` from the end, `center` cuts into the least number of equal parts.
    """
    if alignment == "left":
        cuts = list(range(0, length, segment_size))
    elif alignment == "right":
        cuts = [0] + list(range(length - segment_size, 0, -segment_size))[::-1]
    else:
        parts = -(-length // segment_size)
        cuts = list(range(0, length, -(-length // parts)))
    return cuts + [length]


def plan_segments(shape: tuple[int, int], mask: Tensor | None, segment_size: int, alignment: str) -> list[Segment]:
    """Cut a batch of `shape` (B, N).

    Args:
        mask: (B, N), nonzero where a token stands; None: everywhere. Read on the CPU, once a call.

    Raises:
        ValueError: the mask has another shape, or a row has no token.
    """
    batch, length = shape
    if mask is None:
        cuts = borders(length, segment_size, alignment)
        return [Segment(stop - start, slice(start, stop)) for start, stop in zip(cuts, cuts[1:])]
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; the input has {tuple(shape)}")
    mask = mask.bool().cpu()
    if bool(mask.all()):
        return plan_segments(shape, None, segment_size, alignment)
    tokens = [row.nonzero().squeeze(1) for row in mask]
    empty = [row for row, columns in enumerate(tokens) if not len(columns)]
    if empty:
        raise ValueError(f"attention_mask has no token in row {empty[0]}: every row needs at least one")
    cuts = [borders(len(columns), segment_size, alignment) for columns in tokens]
    return [_row_segment(index, tokens, cuts, batch) for index in range(max(len(row_cuts) for row_cuts in cuts) - 1)]


def _row_segment(index: int, tokens: list[Tensor], cuts: list[list[int]], batch: int) -> Segment:
    rows = [row for row in range(batch) if len(cuts[row]) > index + 1]
    parts = [tokens[row][cuts[row][index] : cuts[row][index + 1]] for row in rows]
    return ragged_segment(parts, None if len(rows) == batch else torch.tensor(rows))


def ragged_segment(columns: list[Tensor], rows: Tensor | None) -> Segment:
    """The segment with these input columns of each of its rows."""
    lengths = torch.tensor([len(own) for own in columns])
    padded = pad_sequence(columns, batch_first=True, padding_side="left")
    size = padded.shape[1]
    return Segment(size, padded, rows, None if bool((lengths == size).all()) else lengths)


def take_all(plan: list[Segment], x: Tensor) -> Iterable[Tensor]:
    """Each segment's part of an input (B, N, ...).

    One operation for all parts, so that one gradient of the input's size is made: each part alone would make its own.
    """
    if all(isinstance(segment.columns, slice) for segment in plan):
        return x[:, : plan[-1].columns.stop].split([segment.size for segment in plan], dim=1)
    places = [segment.row_index("cpu") * x.shape[1] + segment.columns for segment in plan]
    together = torch.cat([own.flatten() for own in places]).to(x.device)
    parts = x.flatten(0, 1)[together].split([own.numel() for own in places])
    return [part.unflatten(0, own.shape) for part, own in zip(parts, places)]


def split_last_segments(plan: list[Segment], batch: int) -> tuple[list[Segment], Segment]:
    """Part a plan into segments that are followed by another and, as one segment of all rows, each row's last."""
    last: list[Tensor] = [torch.empty(0)] * batch
    closed = []
    for index, segment in enumerate(plan):
        own = dict(zip(_rows_of(segment, batch), segment.row_columns(batch)))
        later = set() if index + 1 == len(plan) else set(_rows_of(plan[index + 1], batch))
        last_now = [row for row in own if row not in later]
        for row in last_now:
            last[row] = own[row]
        if not last_now:
            closed.append(segment)
        elif later:
            rows = sorted(later)
            closed.append(ragged_segment([own[row] for row in rows], torch.tensor(rows)))
    return closed, ragged_segment(last, None)


def _rows_of(segment: Segment, batch: int) -> list[int]:
    return list(range(batch)) if segment.rows is None else segment.rows.tolist()
