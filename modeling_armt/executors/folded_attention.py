"""Fused attention under `torch.func.vmap`: the mapped dimension becomes a part of the batch.

torch has no rule of its own for all of its fused kernels, and calls those once for each element then.

Shapes: g mapped elements, B batch, H heads, T positions, d width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.attention_mode import AttentionMode


class FoldedAttention(AttentionMode):
    """A context in which `F.scaled_dot_product_attention` can be mapped over without loss of speed."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args, **kwargs
    ) -> Tensor:
        options = dict(zip(("dropout_p", "is_causal"), args)) | kwargs
        return _attend(query, key, value, attn_mask, options)


@torch._dynamo.allow_in_graph  # a compiler that looked inside would not see the rule for `vmap`
def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    return _Attention.apply(query, key, value, mask, options)


class _Attention(torch.autograd.Function):
    """Its rule for `vmap` is all that is wanted of it: that runs the plain function, which has gradients of its own."""

    generate_vmap_rule = False

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask, **options)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info, in_dims: tuple, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict):
        folded = [_fold(x, dim, info.batch_size) for x, dim in zip((query, key, value), in_dims)]
        if mask is not None and (in_dims[3] is not None or mask.shape[0] > 1):  # else one for all
            mask = _fold(mask, in_dims[3], info.batch_size)
        output = F.scaled_dot_product_attention(*folded, mask, **options)
        return output.unflatten(0, (info.batch_size, -1)), 0


def _fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """(B, H, T, d), mapped over `dim` if any -> (g * B, H, T, d)."""
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)
