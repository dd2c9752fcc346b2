"""Greedy generation: full segments go to memory, the open one is continued with a key-value cache.

Shapes: B batch, N prompt tokens, M memory tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cache import ArmtCache
from .executors import sequential
from .executors.sequential import SegmentInput
from .segmentation import Segment, plan_segments
from .state import MemoryState

if TYPE_CHECKING:
    from .modeling_armt import ArmtForCausalLM


def generate_greedily(
    model: ArmtForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    max_new_tokens: int,
    eos_token_id: int | None,
    memory_state: MemoryState | None,
) -> Tensor:
    """(B, N) -> (B, N + new tokens); see `ArmtForCausalLM.generate`."""
    logits, cache = prefill(model, input_ids, attention_mask, memory_state)
    ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    tokens = [input_ids]
    for step in range(max_new_tokens):
        if step:
            logits = advance(model, cache, tokens[-1])
        token = logits.argmax(dim=-1, keepdim=True)
        if eos_token_id is not None:
            token = token.masked_fill(ended.unsqueeze(1), eos_token_id)
            ended = ended | (token.squeeze(1) == eos_token_id)
        tokens.append(token)
        if eos_token_id is not None and bool(ended.all()):
            break
    return torch.cat(tokens, dim=1)


def prefill(
    model: ArmtForCausalLM, input_ids: Tensor, attention_mask: Tensor | None, memory_state: MemoryState | None
) -> tuple[Tensor, ArmtCache]:
    """Read the prompt: all segments of a row but its last into memory, the last into the open segment.

    Returns:
        Logits (B, V) of the next token, and the cache.
    """
    config = model.config
    plan = plan_segments(tuple(input_ids.shape), attention_mask, config.segment_size, config.segment_alignment)
    closed, last = split_last_segments(plan, len(input_ids))
    state = memory_state
    if closed:
        embeddings = model.family.embed(input_ids)
        _, state = model._run(embeddings, closed, memory_state, lambda *_: None, output_state=True)
    cache = ArmtCache.empty(model.empty_state(len(input_ids)) if state is None else state)
    valid = last.valid()
    valid = torch.ones(len(input_ids), last.size, dtype=torch.bool) if valid is None else valid
    hidden = _extend(model, cache, model.family.embed(last.take(input_ids)), valid.to(input_ids.device))
    return model.family.head(hidden[torch.arange(len(hidden)), cache.fill - 1]), cache


def advance(model: ArmtForCausalLM, cache: ArmtCache, token: Tensor) -> Tensor:
    """Feed one token to each row, (B, 1); logits (B, V) of the next. A full segment is written to memory first."""
    full = cache.fill >= model.config.segment_size
    if bool(full.any()):
        _close(model, cache, full)
    hidden = _extend(model, cache, model.family.embed(token), torch.ones_like(token, dtype=torch.bool))
    return model.family.head(hidden[:, -1])


def split_last_segments(plan: list[Segment], batch: int) -> tuple[list[Segment], Segment]:
    """Part a plan into closed segments and, as one segment with all rows, the last segment of each row."""
    columns = [torch.empty(0, dtype=torch.long)] * batch
    closed = []
    for index, segment in enumerate(plan):
        rows = torch.arange(batch) if segment.rows is None else segment.rows
        later = set() if index + 1 == len(plan) else _row_set(plan[index + 1], batch)
        goes_on = torch.tensor([row in later for row in rows.tolist()])
        if bool(goes_on.all()):
            closed.append(segment)
            continue
        own = _columns(segment, len(rows))
        lengths = torch.full((len(rows),), segment.size) if segment.lengths is None else segment.lengths
        for place in (~goes_on).nonzero().squeeze(1).tolist():
            columns[int(rows[place])] = own[place, : lengths[place]]
        if bool(goes_on.any()):
            closed.append(Segment(segment.size, own[goes_on], rows[goes_on], lengths[goes_on]))
    lengths = torch.tensor([len(own) for own in columns])
    padded = torch.nn.utils.rnn.pad_sequence(columns, batch_first=True)
    return closed, Segment(padded.shape[1], padded, lengths=lengths)


def _row_set(segment: Segment, batch: int) -> set[int]:
    return set(range(batch)) if segment.rows is None else set(segment.rows.tolist())


def _columns(segment: Segment, rows: int) -> Tensor:
    if isinstance(segment.columns, slice):
        return torch.arange(segment.columns.start, segment.columns.stop).expand(rows, -1)
    return segment.columns


def _extend(model: ArmtForCausalLM, cache: ArmtCache, embeddings: Tensor, valid: Tensor) -> Tensor:
    """Append tokens (B, T, D) to the open segments; their hidden states (B, T, D)."""
    positions = cache.append(valid)
    hidden, inputs = model.family.begin(embeddings, positions, cache.mask, cache.keys_values)
    segment = SegmentInput(hidden, inputs, num_written=0)
    kept, _ = sequential.run(model.cells(), [segment], cache.state, len(hidden), lambda _, out: out, output_state=False)
    return kept[0]


def _close(model: ArmtForCausalLM, cache: ArmtCache, rows: Tensor) -> None:
    """Run the memory tokens behind the open segments and write those of `rows` (B,) bool to memory."""
    num_mem_tokens = model.config.num_mem_tokens
    state = cache.state
    if num_mem_tokens:
        batch, device = len(rows), rows.device
        positions = cache.fill.unsqueeze(1) + torch.arange(num_mem_tokens, device=device)
        mask = torch.cat((cache.mask, cache.mask.new_ones(batch, num_mem_tokens)), dim=1)
        embeddings = model.memory_tokens.expand(batch, -1, -1)
        hidden, inputs = model.family.begin(embeddings, positions, mask, cache.keys_values)
        segment = SegmentInput(hidden, inputs, num_mem_tokens)
        _, written = sequential.run(model.cells(), [segment], state, batch, lambda *_: None)
        state = state.where(rows, written)
    cache.close(rows, num_mem_tokens, state)
