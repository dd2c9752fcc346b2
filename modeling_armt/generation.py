"""Reading into open segments: what `use_cache` and Hugging Face's `generate` rest on.

Full segments go to memory; the open one is continued with a key-value cache. When a token comes for a segment that is
full, the segment is written to memory and a new one opened: generation has no length limit, and a constant cost.

Shapes: B batch, N input tokens, T new tokens of a piece, R read and W write tokens, D model width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cache import ArmtCache
from .segmentation import Segment, plan_segments, ragged_segment, split_last_segments
from .selection import Selection
from .state import Memory, RecurrentState

if TYPE_CHECKING:
    from .modeling_base import RecurrentModel

CACHE_NAMES = ("cache", "past_key_values")  # since transformers 5.24, and before


class RecurrentGeneration:
    """What Hugging Face's `GenerationMixin` has to know about a memory."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first forward makes an `ArmtCache`

    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if any(inputs.get(name) is not None for name in CACHE_NAMES):
            inputs.pop("memory_state", None)  # it has moved into the cache
        known = _parameters(type(self).forward)
        return {name: value for name, value in inputs.items() if name in known}  # stop_strings' tokenizer is in them

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs: dict[str, Any], *args, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if "cache" in outputs and "cache" not in model_kwargs:  # before transformers 5.24
            model_kwargs["past_key_values"] = outputs.cache
        return model_kwargs

    def _expand_inputs_for_generation(self, expand_size: int = 1, is_encoder_decoder: bool = False, **kwargs):
        """Beams and several returned sequences of a prompt start from the same memory."""
        state = kwargs.get("memory_state")
        if state is not None:
            kwargs["memory_state"] = state.repeat(expand_size)
        return super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, **kwargs
        )


@lru_cache
def _parameters(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


class Reader:
    """Reads tokens and leaves the last segment of each row open.

    Args:
        commit: write a full segment to memory before the next token; False: let the open segment grow.
    """

    def __init__(self, model: RecurrentModel, commit: bool):
        self.model, self.commit = model, commit
        self.num_read, self.num_written = model.memory_sizes

    def read(
        self,
        embeddings: Tensor,
        mask: Tensor | None,
        state: RecurrentState | None,
        cache: ArmtCache | None,
        wanted: Tensor | None,
    ) -> tuple[Tensor, ArmtCache]:
        """Read (B, N, D); returns the hidden states at `wanted` (see `Selection`) and the cache.

        Raises:
            ValueError: a state beside a cache, or a cache of another batch.
        """
        shape = tuple(embeddings.shape[:2])
        if cache is None:
            plan, kept, cache, selection = self._start(embeddings, mask, state, wanted)
        else:
            if state is not None:
                raise ValueError("give either memory_state or cache, which holds a memory itself")
            self.model.check_state(cache.state, shape[0])
            plan, kept = self._pieces(mask, shape, cache), []
            selection = Selection(plan, shape, wanted)
        for piece in plan:
            kept.append(selection.keep(len(kept), self._extend(cache, piece, embeddings)))
        cache.input_length += shape[1]
        return selection.gather(kept, embeddings), cache

    def _start(self, embeddings: Tensor, mask: Tensor | None, state: RecurrentState | None, wanted: Tensor | None):
        """All segments but each row's last into memory."""
        model, shape = self.model, tuple(embeddings.shape[:2])
        plan = plan_segments(shape, mask, model.config.segment_size, model.config.segment_alignment)
        closed, last = split_last_segments(plan, shape[0])
        selection, kept = Selection([*closed, last], shape, wanted), []
        if closed:
            kept, written = model.run_segments(embeddings, closed, state, selection, write_last=True)
            state = state if written is None else written
        elif state is not None:
            model.check_state(state, shape[0])
        cache = ArmtCache(model.empty_state(shape[0]) if state is None else state)
        return [last], kept, cache, selection

    def _pieces(self, mask: Tensor | None, shape: tuple[int, int], cache: ArmtCache) -> list[Segment]:
        """Cut new tokens where the open segment of their row is full."""
        batch, length = shape
        if mask is not None and tuple(mask.shape) != shape:
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; the input has {shape}")
        everywhere = mask is None or bool(mask.all())
        if everywhere and (length == 1 or not self.commit):
            return [Segment(length, slice(0, length))]
        mask = torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool().cpu()
        columns = [row.nonzero().squeeze(1) for row in mask]
        size = self.model.config.segment_size if self.commit else max(length, 1)
        room = [size - fill % size if self.commit else length for fill in self._fill(cache).tolist()]
        parts = [[own[:first], *own[first:].split(size)] for own, first in zip(columns, room)]
        nothing = columns[0][:0]
        count = max(len([part for part in own if len(part)]) for own in parts)
        if not count:
            raise ValueError("attention_mask has no token in any row: there is nothing to read")
        return [ragged_segment([own[i] if i < len(own) else nothing for own in parts], None) for i in range(count)]

    def _fill(self, cache: ArmtCache) -> Tensor:
        """(B,) text tokens in the open segments."""
        return (cache.used - self.num_read).clamp(min=0)

    def _extend(self, cache: ArmtCache, piece: Segment, embeddings: Tensor) -> Tensor:
        """Append a piece to the open segments; its hidden states (B, T, D)."""
        batch = embeddings.shape[0]
        lengths = torch.full((batch,), piece.size) if piece.lengths is None else piece.lengths
        comes = lengths > 0
        full = comes & (self._fill(cache) >= self.model.config.segment_size)
        if self.commit and bool(full.any()):
            self._close(cache, full)
        opens = comes & (cache.used == 0)
        if self.num_read and bool(opens.any()):
            read_tokens = self.model.read_tokens(cache.state.unbind(), batch)
            self._feed(cache, read_tokens, opens * self.num_read, is_text=False)
            cache.append(opens * self.num_read, self.num_read)
        text = piece.take(embeddings)
        if piece.lengths is None:
            hidden, _ = self._feed(cache, text, lengths)
        else:  # a row's tokens must follow its open segment without a gap
            place = torch.arange(piece.size)
            to_left = ((place + piece.padding.unsqueeze(1)) % piece.size).to(text.device)
            to_right = ((place - piece.padding.unsqueeze(1)) % piece.size).to(text.device)
            hidden, _ = self._feed(cache, _take_along(text, to_left), lengths)
            hidden = _take_along(hidden, to_right)
        cache.append(lengths, piece.size)
        return hidden

    def _close(self, cache: ArmtCache, rows: Tensor) -> None:
        """Run the memory tokens behind the open segments, and write those of `rows` (B,) bool to memory."""
        state = cache.state
        if self.num_written:
            write_tokens = self.model.write_tokens(state.unbind(), len(rows))
            _, memory = self._feed(cache, write_tokens, rows * self.num_written, self.num_written, is_text=False)
            state = state.where(rows, self.model.state_class.bind(memory, state.segments_seen + 1))
            cache.drop_last(self.num_written)
        cache.close(rows, state)

    def _feed(
        self, cache: ArmtCache, embeddings: Tensor, lengths: Tensor, num_written: int = 0, is_text: bool = True
    ) -> tuple[Tensor, Memory | None]:
        """Run the first `lengths` (B,) of the tokens (B, T, D) of each row behind its open segment.

        Returns:
            Hidden states (B, T, D), and the memory, written to by the last `num_written` tokens.
        """
        device = embeddings.device
        place = torch.minimum(torch.arange(embeddings.shape[1]), (lengths - 1).clamp(min=0).unsqueeze(1))
        positions = cache.used.unsqueeze(1) + place
        if self.model.config.memory_positions == "reserved":
            positions = positions - self.num_read if is_text else torch.full_like(positions, -1)
        mask = cache.mask(lengths, embeddings.shape[1])
        hidden, inputs = self.model.family.begin(
            embeddings, positions.to(device), None if mask is None else mask.to(device), cache.keys_values
        )
        state = cache.state
        return self.model.run_layers(hidden, inputs, state.unbind(), state.segments_seen > 0, num_written)


def _take_along(x: Tensor, index: Tensor) -> Tensor:
    """x (B, T, D) with its positions in the order of index (B, T)."""
    return x.gather(1, index.unsqueeze(-1).expand_as(x))
