"""How a segment and its memory tokens stand in one row of positions.

Shapes: b rows, R read tokens, T text positions, W write tokens, D model width.
"""

import torch
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)
TILE = 128  # rows that a GPU computes at a time in a matrix product


def lay_out(read: Tensor | None, text: Tensor, write: Tensor | None, padding: Tensor | None) -> Tensor:
    """(b, R, D), (b, T, D), (b, W, D) -> (b, R + T + W, D): padding, read tokens, text, write tokens.

    Args:
        padding: (b,) long, positions before each row's first text token; None: none.
    """
    if read is not None:
        text = torch.cat((read.to(text.dtype), text), dim=1)
        if padding is not None:
            text = _shift_left_part(text, read.shape[1], padding.to(text.device))
    return text if write is None else torch.cat((text, write.to(text.dtype)), dim=1)


def _shift_left_part(x: Tensor, size: int, by: Tensor) -> Tensor:
    """Move the first `size` columns of each row of x (b, C, D) to the right, over the `by` (b,) columns behind them."""
    column, by = torch.arange(x.shape[1], device=x.device), by.unsqueeze(1)
    source = torch.where(column < by + size, (column - by).clamp(min=0), column)
    return x.gather(1, source.unsqueeze(-1).expand_as(x))


def positions_and_mask(
    sizes: tuple[int, int, int], padding: Tensor | None, reserved: bool, device
) -> tuple[Tensor, Tensor | None]:
    """Positions (1 or b, R + T + W) of a segment's tokens, and its mask (b, R + T + W), None: everything is a token.

    Args:
        sizes: R, T, W. reserved: memory tokens have no position of the backbone: -1.
    """
    read, text, write = sizes
    columns = torch.arange(read + text + write, device=device).unsqueeze(0)
    starts = 0 if padding is None else padding.to(device).unsqueeze(1)
    positions = columns - starts
    mask = None if padding is None else positions >= 0
    if reserved:
        positions = positions - read
        positions = positions.masked_fill((positions < 0) | (columns >= read + text), -1)
    return (positions if mask is None else positions.clamp(min=-1 if reserved else 0)), mask


def warn_of_size(size: int, device: torch.device) -> None:
    """Once: on a GPU, a matrix product of `size` rows, those of a whole segment, is rounded up to whole tiles."""
    whole = -(-size // TILE) * TILE
    if device.type == "cuda" and size != whole:
        logger.warning_once(
            f"segments with their memory tokens have {size} positions, and a GPU computes {whole}: raise segment_size "
            f"by {whole - size}, or choose another multiple of {TILE}"
        )
