"""Reading a text while every memory layer is watched.

Shapes: B batch, N tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..executors.sequential import SegmentInput
from ..modeling_armt import ArmtForCausalLM
from ..modeling_base import RecurrentModel
from ..segmentation import Segment, plan_segments
from ..state import Memory, MemoryState
from .record import LayerRecord
from .report import MemoryReport

WINDOW = 1024  # segments; their keys and values are kept: 72 KiB a layer and segment of GPT-2 with 16 memory tokens


@torch.no_grad()
def inspect_memory(
    model: RecurrentModel,
    input_ids: Any,
    memory_state: MemoryState | None = None,
    attention_mask: Tensor | None = None,
    row: int = 0,
    question_tokens: int | None = None,
    window: int = WINDOW,
    progress: bool = False,
) -> MemoryReport:
    """Read one text as the model does, each segment in order, and report what its memory does.

    Computes in the type of the weights, without autocast.

    Args:
        input_ids: (N,), or (B, N) of which one row is read: a tensor, an array or lists.
        memory_state: memory before the text, of as many rows. attention_mask: (B, N), 0 on padding.
        row: the row of the batch.
        question_tokens: the last so many tokens, whose reads are traced to the segments that they come from; None: the
            tokens of the last segment.
        window: segments before the question that are told apart; what earlier ones wrote is one source, as is what
            `memory_state` holds.
        progress: show a progress bar, on a terminal.

    Raises:
        ValueError: the model has no associative memory, an argument does not fit, or the memory is not finite.
    """
    check_model(model)
    ids, state = _pick_row(model, input_ids, memory_state, attention_mask, row)
    plan = plan_segments(ids.shape, None, model.config.segment_size, model.config.segment_alignment)
    asking = _asking(plan, question_tokens)
    if window < 1:
        raise ValueError(f"window is {window}; it must be at least 1 segment")
    first = max(0, next(index for index, number in enumerate(asking) if number) - window)
    records = [
        LayerRecord(number, model.config.num_features, asking, first) for number in model.config.layers_with_memory
    ]
    seen_before = 0 if state is None else int(state.segments_seen[0])
    memory = state.unbind() if seen_before else None
    with _watched(model, records), torch.autocast(model.device.type, enabled=False):
        for segment in tqdm(plan, desc="inspecting", unit=" segments", disable=None if progress else True):
            memory = _run(model, segment.take(ids), memory)
    return MemoryReport(
        features=model.config.num_features,
        memory_tokens=model.config.num_mem_tokens,
        segments_before=seen_before,
        segment_tokens=[segment.size for segment in plan],
        question_tokens=sum(asking),
        first_source=seen_before + first + 1,
        layers=[record.report() for record in records],
    )


def check_model(model: Any) -> None:
    """Raise `ValueError` unless the model has an associative memory."""
    if not isinstance(model, ArmtForCausalLM):
        raise ValueError(f"{type(model).__name__} has no associative memory to inspect: give an ArmtForCausalLM")
    if not model.config.num_mem_tokens:
        raise ValueError("the model has no memory to inspect: its num_mem_tokens is 0")


def _pick_row(
    model: ArmtForCausalLM, input_ids: Any, state: MemoryState | None, mask: Tensor | None, row: int
) -> tuple[Tensor, MemoryState | None]:
    """Tokens (1, N) of one row without its padding, and its memory: a batch gives each row what it gives alone."""
    ids = torch.as_tensor(input_ids, dtype=torch.long)
    ids = ids.unsqueeze(0) if ids.dim() == 1 else ids
    if not 0 <= row < len(ids):
        raise ValueError(f"row is {row}; the batch has {len(ids)} rows, from 0")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; the input has {tuple(ids.shape)}")
    if state is not None:
        model.check_state(state, len(ids))
        state = state.select([row])
    ids = ids[row] if mask is None else ids[row][mask[row].bool().to(ids.device)]
    if not len(ids):
        raise ValueError("there is no token to read")
    return ids.unsqueeze(0).to(model.device), state


def _asking(plan: list[Segment], question_tokens: int | None) -> list[int]:
    """Of each segment, how many of its last tokens belong to the question."""
    total = sum(segment.size for segment in plan)
    left = plan[-1].size if question_tokens is None else question_tokens
    if not 1 <= left <= total:
        raise ValueError(f"question_tokens is {left}; give 1 to {total}, the tokens of the text")
    asking = []
    for segment in reversed(plan):
        asking.append(min(left, segment.size))
        left -= asking[-1]
    return asking[::-1]


@contextmanager
def _watched(model: ArmtForCausalLM, records: list[LayerRecord]) -> Iterator[None]:
    """Until it ends, each record sees every pass of its memory layer, and dropout is off."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    handles = [
        layer.register_forward_hook(record) for layer, record in zip(model.memory_layers.values(), records, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True


def _run(model: ArmtForCausalLM, ids: Tensor, memory: Memory | None) -> Memory:
    """The memory after a segment of tokens (1, T)."""
    seen = None if memory is None else torch.ones(1, dtype=torch.bool, device=ids.device)
    _, memory = model.run_segment(SegmentInput(model.family.embed(ids)), memory, seen)
    return memory
