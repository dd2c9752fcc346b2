"""Causal attention on a CPU in blocks of queries, each of which sees the keys up to its own end.

The backward pass of torch's fused attention computes the probabilities anew, in small pieces: twice the time that its
arithmetic takes at the sizes of a segment. Here they are kept, half of the square.

Shapes: N rows times heads, T positions, d width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention_mode import AttentionMode

BLOCK = 88  # queries; 64 to 132 are as fast
KEPT = 20  # times d, positions; those of 16 times d take the memory of activations of an MLP of width 4D
EXACT = (torch.float32, torch.float64)


class BlockedAttention(AttentionMode):
    """A context in which `F.scaled_dot_product_attention` takes blocks where it can.

    A layer that is run again in the backward pass must not be in it: it would be run outside of it then.
    """

    def attend(self, *args, **options) -> Tensor:
        if _fits(*args, **options):
            return _attend(*args[:3], **options)
        return F.scaled_dot_product_attention(*args, **options)


def _fits(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, enable_gqa=False, **options) -> bool:
    return (
        is_causal
        and attn_mask is None
        and not (dropout_p or enable_gqa)
        and query.dtype in EXACT
        and not torch.is_autocast_enabled("cpu")  # which would compute in bfloat16
        and query.device.type == "cpu"
        and query.shape == key.shape == value.shape
        and query.shape[2] <= KEPT * query.shape[3]
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, **options) -> Tensor:
    """(b, H, T, d), three times -> (b, H, T, d)."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    flat = (x.flatten(0, 1) for x in (query, key, value))
    return _Blocks.apply(*flat, scale).view(query.shape)


def _blocks(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]


class _Blocks(torch.autograd.Function):
    """query, key, value (N, T, d) -> (N, T, d)."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output, kept = torch.empty_like(value), []
        later = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu(1)
        for start, stop in _blocks(query.shape[1]):
            scores = (query[:, start:stop] @ key[:, :stop].mT).mul_(scale)
            size = stop - start
            scores[:, :, start:].masked_fill_(later[:size, :size], float("-inf"))
            kept.append(scores.softmax(-1))
            output[:, start:stop] = kept[-1] @ value[:, :stop]
        ctx.scale = scale
        ctx.save_for_backward(query, key, value, output, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *kept = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        mean = (gradient * output).sum(-1, keepdim=True)  # of a row's gradients, under its probabilities
        for (start, stop), weights in zip(_blocks(query.shape[1]), kept):
            here = gradient[:, start:stop]
            of_value[:, :stop].baddbmm_(weights.mT, here)
            of_scores = (here @ value[:, :stop].mT).sub_(mean[:, start:stop]).mul_(weights)
            of_query[:, start:stop].baddbmm_(of_scores, key[:, :stop], beta=0, alpha=ctx.scale)
            of_key[:, :stop].baddbmm_(of_scores.mT, query[:, start:stop], alpha=ctx.scale)
        return of_query, of_key, of_value, None
