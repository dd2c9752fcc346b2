"""Associative memory in its plainest form: feature map, read and write (arXiv 2407.04841, equations 1 to 4).

Every faster version is tested against these functions.

Shapes: B batch, T tokens, M memory tokens, D model width, d key width, nu order of DPFP, K = 2 * d * nu features.
A (B, K, D) associates features of keys with values; z (B, K) normalises what is read from it. Both are float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5  # of the published code: added to both denominators and to the squared norm of a key


def dpfp(x: Tensor, nu: int) -> Tensor:
    """Deterministic parameter-free projection (arXiv 2102.11174, section 5.3): (..., d) -> (..., 2 * d * nu), >= 0."""
    x = torch.cat((F.relu(x), F.relu(-x)), dim=-1)
    return torch.cat([x * x.roll(shift, dims=-1) for shift in range(1, nu + 1)], dim=-1)


def read(A: Tensor, z: Tensor, queries: Tensor) -> Tensor:
    """What the memory holds under each query (equation 4); zeros where nothing was written.

    Args:
        A: (B, K, D). z: (B, K). queries: (B, T, K), features of the queries.

    Returns:
        (B, T, D).
    """
    return (queries @ A) / ((queries @ z.unsqueeze(-1)) + EPSILON)


def write(
    A: Tensor, z: Tensor, keys: Tensor, values: Tensor, beta: Tensor, seen: Tensor, use_correction: bool = True
) -> tuple[Tensor, Tensor]:
    """Write M associations, all against the same previous memory (equations 1 to 3).

    The value that a key already has is subtracted, so that writing a key again overwrites it. gamma, the share of a
    key that is new, keeps z from counting such a key twice; gradients do not flow through it (appendix F).

    Args:
        A: (B, K, D). z: (B, K). keys: (B, M, K), features of the keys. values: (B, M, D).
        beta: (B, M, 1), how strongly to write, 0 to 1.
        seen: (B,) bool, False for a row whose memory is empty: there gamma is exactly 1.
        use_correction: False sets gamma to 1 everywhere.

    Returns:
        The next A (B, K, D) and z (B, K).
    """
    overlap = keys @ z.unsqueeze(-1) + EPSILON  # (B, M, 1)
    old_values = (keys @ A) / overlap
    next_A = torch.baddbmm(A, keys.transpose(1, 2), beta * (values - old_values))
    if use_correction:
        keys = torch.where(seen[:, None, None], new_share(keys, overlap).detach(), 1.0) * keys
    return next_A, z + keys.sum(dim=1)


def new_share(keys: Tensor, overlap: Tensor) -> Tensor:
    """gamma (..., 1) of keys (..., K) whose products with z are `overlap` - EPSILON (..., 1)."""
    return (1 - overlap / (keys.square().sum(-1, keepdim=True) + EPSILON)).clamp(0, 1)


def write_first(keys: Tensor, values: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """`write` into an empty memory: nothing to subtract, gamma is 1."""
    return keys.transpose(1, 2) @ (beta * values), keys.sum(dim=1)
