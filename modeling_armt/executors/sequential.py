"""The reference order of the recurrence: segment by segment.

Shapes: B batch, b rows that have a segment, T text positions of a segment, D model width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..state import Memory


@dataclass(frozen=True)
class SegmentInput:
    """One segment of a batch.

    Attributes:
        embeddings: (b, T, D), tokens at the right end of each row.
        padding: (b,) long on the CPU, positions before each row's first token; None: none.
        writes: the segment is closed by memory tokens, which write.
        rows: (b,) long, rows of the batch; None: all.
        cut_graph: no gradient flows from this segment into earlier ones.
        text_wanted: someone asks for hidden states of the text; else they may be without meaning.
    """

    embeddings: Tensor
    padding: Tensor | None = None
    writes: bool = True
    rows: Tensor | None = None
    cut_graph: bool = False
    text_wanted: bool = True

    def filled(self, size: int) -> "SegmentInput":
        """One that does not write, as long as those that do: no position sees what stands behind it."""
        if self.writes or self.padding is not None:
            return self
        missing = size - self.embeddings.shape[1]
        return replace(self, embeddings=F.pad(self.embeddings, (0, 0, 0, missing)), writes=True)


RunSegment = Callable[[SegmentInput, Memory | None, Tensor | None], tuple[Tensor, Memory | None]]


def run(
    run_segment: RunSegment,
    segments: Iterable[SegmentInput],
    memory: Memory | None,
    segments_seen: Tensor | None,
    batch: int,
    keep: Callable[[int, Tensor], Tensor | None],
    replay: bool = False,
) -> tuple[list[Tensor | None], Memory | None, Tensor | None]:
    """Run all segments, each with the memory that the one before left.

    Args:
        run_segment: (segment, memory of its rows, which of them have seen a segment (b,) bool) -> hidden states
            (b, T, D) of the text, and the next memory. Without memory nothing was written yet.
        segments: read one at a time; without `memory`, the first must have all rows.
        segments_seen: (B,) long, with `memory`.
        keep: (segment's index, its hidden states) -> what of them to keep, or None.
        replay: keep only the memory at the borders for the backward pass, and run each segment again there.

    Returns:
        What was kept, segment by segment; the memory after the last segment and the segments that wrote, per row.
    """
    step = partial(checkpoint, run_segment, use_reentrant=False) if replay else run_segment
    kept = []
    for index, segment in enumerate(segments):
        rows = segment.rows
        if segment.cut_graph and memory is not None:
            memory = tuple(tensor.detach() for tensor in memory)
        part, seen = memory, segments_seen
        if memory is not None:
            if rows is not None:
                part, seen = tuple(tensor[rows.to(tensor.device)] for tensor in memory), segments_seen[rows]
            seen = seen > 0
        hidden, part = step(segment, part, seen)
        if segment.writes:
            memory = part if rows is None else _put_rows(memory, part, rows)
            segments_seen = _count(segments_seen, rows, batch, hidden.device)
        kept.append(keep(index, hidden))
    return kept, memory, segments_seen


def _put_rows(whole: Memory, part: Memory, rows: Tensor) -> Memory:
    return tuple(old.index_copy(0, rows.to(old.device), new.to(old)) for old, new in zip(whole, part))


def _count(segments_seen: Tensor | None, rows: Tensor | None, batch: int, device) -> Tensor:
    if segments_seen is None:
        segments_seen = torch.zeros(batch, dtype=torch.long, device=device)
    if rows is None:
        return segments_seen + 1
    return segments_seen.index_add(0, rows, torch.ones_like(rows))
