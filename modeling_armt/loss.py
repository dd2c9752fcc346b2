"""Targets of a batch and the loss on them.

Labels follow Hugging Face: as long as the input, -100 is ignored, the shift is inside: the label at t + 1 is the
target of position t, across segment borders too.

Shapes: B batch, N input tokens, n targets, D model width, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORED = -100
CHUNK = 1024  # logits held at a time: 1024 * 50257 * 4 bytes = 0.2 GB for GPT-2


def target_positions(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Where a prediction is asked for: (B, N) bool on the CPU, True at t if the label at t + 1 counts.

    Raises:
        ValueError: a label stands on padding or right behind padding, where no token predicts it.
    """
    positions = torch.zeros(labels.shape, dtype=torch.bool)
    positions[:, :-1] = labels[:, 1:].ne(IGNORED).cpu()
    if mask is not None:
        mask = mask.bool().cpu()
        stray = positions & ~mask
        stray[:, :-1] |= positions[:, :-1] & ~mask[:, 1:]
        if bool(stray.any()):
            row, column = stray.nonzero()[0].tolist()
            raise ValueError(
                f"labels[{row}, {column + 1}] is set on padding or right behind it; set it to {IGNORED} there"
            )
    return positions


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over the targets, in float32; logits (n, V), targets (n,). Without targets: a zero with a graph."""
    if not len(targets):
        return logits.float().sum()
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def fused_cross_entropy(
    hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], plain_head: nn.Linear | None
) -> Tensor:
    """`cross_entropy(logits(hidden), targets)` that never holds the logits of more than `CHUNK` targets.

    Args:
        hidden: (n, D), ready for the head. targets: (n,). logits: the head, (..., D) -> (..., V).
        plain_head: the head, where it is a linear map and nothing else: torch's own fused loss takes it in float32.
    """
    if len(targets) <= CHUNK:
        return cross_entropy(logits(hidden), targets)
    # torch's own returns its sum in the type of the input: in bfloat16 that is two or three digits
    in_float32 = hidden.dtype == torch.float32 and not torch.is_autocast_enabled(hidden.device.type)
    if plain_head is not None and in_float32 and hasattr(F, "linear_cross_entropy"):
        options = nn.LinearCrossEntropyOptions()  # chunks of torch's choice
        return F.linear_cross_entropy(
            hidden, plain_head.weight, targets, linear_bias=plain_head.bias, reduction="sum", options=options
        )
    losses = [
        checkpoint(lambda part, wanted: cross_entropy(logits(part), wanted), part, wanted, use_reentrant=False)
        for part, wanted in zip(hidden.split(CHUNK), targets.split(CHUNK))
    ]
    return torch.stack(losses).sum()
