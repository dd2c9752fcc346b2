"""The reference order of the recurrence: segment by segment, layer by layer.

Shapes: B batch, b rows that have a segment, T positions of a segment with its memory tokens, D model width.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..layer import ArmtLayer, LayerMemory
from ..state import MemoryState


@dataclass(frozen=True)
class Cell:
    """One layer of the stack: the decoder layer and the memory around it, if it has one."""

    memory: ArmtLayer | None
    decoder_layer: Callable[[Tensor, dict], Tensor]


@dataclass(frozen=True)
class SegmentInput:
    """One segment, ready for the first layer.

    Attributes:
        hidden: (b, T, D). inputs: what every decoder layer takes beside it.
        num_written: memory tokens at the end of `hidden`, which write; 0: the segment only reads.
        rows: (b,) long, rows of the batch; None: all.
        cut_graph: no gradient flows from this segment into earlier ones.
    """

    hidden: Tensor
    inputs: dict
    num_written: int
    rows: Tensor | None = None
    cut_graph: bool = False


def run(
    cells: Sequence[Cell],
    segments: Iterable[SegmentInput],
    state: MemoryState | None,
    batch: int,
    keep: Callable[[int, Tensor], Tensor | None],
    output_state: bool = True,
) -> tuple[list[Tensor], MemoryState | None]:
    """Run all segments through all layers.

    Args:
        segments: read one at a time; without `state`, the first must have all rows.
        state: memory before the first segment; None: empty.
        batch: B.
        keep: (segment's index, its hidden states (b, T, D)) -> what of them to keep, or None.
        output_state: False saves the copy that joins the layers' memories.

    Returns:
        What was kept, segment by segment, and the memory after the last segment; None if nothing ever wrote,
        or where it is not asked for.
    """
    memories: list[LayerMemory | None] = [None] * sum(cell.memory is not None for cell in cells)
    if state is not None:
        memories = list(zip(state.A.unbind(0), state.z.unbind(0)))
    segments_seen = None if state is None else state.segments_seen
    kept = []
    for index, segment in enumerate(segments):
        if segment.cut_graph:
            memories = [memory and (memory[0].detach(), memory[1].detach()) for memory in memories]
        hidden, rows = segment.hidden, segment.rows
        seen = None if segments_seen is None else _rows(segments_seen, rows) > 0
        number = -1  # of the layer among those with memory
        for cell in cells:
            if cell.memory is None:
                hidden = cell.decoder_layer(hidden, segment.inputs)
                continue
            number += 1
            before = memories[number]
            part = before and (_rows(before[0], rows), _rows(before[1], rows))
            hidden, part = cell.memory(
                hidden, part, partial(cell.decoder_layer, inputs=segment.inputs), segment.num_written, seen
            )
            if segment.num_written:
                memories[number] = part if rows is None else _put_rows(before, part, rows)
        if segment.num_written:
            segments_seen = _count(segments_seen, rows, batch, hidden.device)
        kept.append(keep(index, hidden))
    if segments_seen is None or not output_state:
        return kept, None
    A, z = zip(*memories)
    return kept, MemoryState(torch.stack(A), torch.stack(z), segments_seen)


def _rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def _put_rows(whole: LayerMemory, part: LayerMemory, rows: Tensor) -> LayerMemory:
    return whole[0].index_copy(0, rows, part[0]), whole[1].index_copy(0, rows, part[1])


def _count(segments_seen: Tensor | None, rows: Tensor | None, batch: int, device) -> Tensor:
    if segments_seen is None:
        segments_seen = torch.zeros(batch, dtype=torch.long, device=device)
    if rows is None:
        return segments_seen + 1
    return segments_seen.index_add(0, rows, torch.ones_like(rows))
