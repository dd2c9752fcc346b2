"""Reading a long text into a memory, in constant memory whatever its length.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from .executors.sequential import SegmentInput
from .state import RecurrentState

if TYPE_CHECKING:
    from .modeling_base import RecurrentModel

SEGMENTS_AT_ONCE = 64  # of a piece, which goes to the device together
LONG = 1 << 16  # tokens, from which on a progress bar is worth it


class RecurrentReading:
    """`model.read`."""

    @torch.no_grad()
    def read(
        self: RecurrentModel,
        input_ids: Any,
        memory_state: RecurrentState | None = None,
        progress: bool | None = None,
    ) -> RecurrentState:
        """Read a text segment by segment and return the memory of it, which is all that is kept.

        Reading goes on where `memory_state` ended, in a new segment; the last segment may be a short one.

        Args:
            input_ids: (B, N), or (N,) for one text: a tensor, an array, a memory-mapped one too; or an iterable of
                such pieces of any lengths, in order.
            progress: show a progress bar; None: for long texts, on a terminal, unless transformers' bars are off.

        Raises:
            ValueError: no token, or pieces of another batch.
        """
        config, device = self.config, self.get_input_embeddings().weight.device
        total = input_ids.shape[-1] if hasattr(input_ids, "shape") else None
        if progress is None:
            unwanted = (total is not None and total < LONG) or not logging.is_progress_bar_enabled()
            disable = unwanted or None  # None: unless on a terminal
        else:
            disable = not progress
        pieces = _pieces(input_ids, SEGMENTS_AT_ONCE * config.segment_size)
        first = next(pieces)
        memory = seen = None
        if memory_state is not None:
            self.check_state(memory_state, len(first))
            memory, seen = memory_state.unbind(), memory_state.segments_seen

        def segments() -> Iterator[SegmentInput]:
            for piece in chain([first], pieces):
                for ids in piece.to(device).split(config.segment_size, dim=1):
                    yield SegmentInput(self.family.embed(ids), writes=config.num_mem_tokens > 0, text_wanted=False)
                bar.update(piece.shape[1])

        with tqdm(total=total, unit=" tokens", unit_scale=True, desc="reading", disable=disable) as bar:
            _, memory, seen = self.execute(segments(), memory, seen, len(first), keep=lambda index, hidden: None)
        return self.empty_state(len(first)) if memory is None else self.state_class.bind(memory, seen)


def _pieces(source: Any, size: int) -> Iterator[Tensor]:
    """Pieces (B, size) of the whole text, the last perhaps shorter."""
    if hasattr(source, "shape"):
        if not source.shape[-1]:
            raise ValueError("there is no token to read")
        for start in range(0, source.shape[-1], size):
            yield _tokens(source[..., start : start + size])
        return
    if not isinstance(source, Iterable):
        raise ValueError(f"input_ids is a {type(source).__name__}; give a tensor, an array or an iterable of them")
    rest = None
    for piece in source:
        piece = _tokens(piece)
        if rest is not None and len(piece) != len(rest):
            raise ValueError(f"a piece has {len(piece)} rows; the ones before have {len(rest)}")
        rest = piece if rest is None else torch.cat((rest, piece), dim=1)
        while rest.shape[1] > size:
            yield rest[:, :size]
            rest = rest[:, size:]
    if rest is None or not rest.shape[1]:
        raise ValueError("there is no token to read")
    yield rest


def _tokens(piece: Any) -> Tensor:
    """(B, n) long of a tensor, an array or a list."""
    if hasattr(piece, "astype"):
        piece = piece.astype("int64")  # a copy: a memory-mapped file may be read-only and of any integer type
    piece = torch.as_tensor(piece, dtype=torch.long)
    return piece.unsqueeze(0) if piece.dim() == 1 else piece
