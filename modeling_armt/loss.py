"""Targets of a batch and the loss on them.

Labels follow Hugging Face: as long as the input, -100 is ignored, the shift is inside: the label at t + 1 is the
target of position t, across segment borders too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


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
    """Mean over the targets, in float32; logits (n, V), targets (n,). Without targets: a zero with a graph."""
    if not len(targets):
        return logits.float().sum()
    return F.cross_entropy(logits.float(), targets)
