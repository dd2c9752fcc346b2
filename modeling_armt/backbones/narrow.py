"""A decoder layer of whose outputs only the last ones matter.

Positions meet in attention alone. So keys and values are needed of all of them, but queries and the MLP, most of a
layer, of those that matter: the others get zeros instead.

Shapes: b rows, H heads, C positions, S of them skipped, D model width, d width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_mode import AttentionMode


def runs_again(layer: nn.Module) -> bool:
    """Whether the layer may be run once more in the backward pass, outside of contexts of the forward pass."""
    return getattr(layer, "gradient_checkpointing", False)


@contextmanager
def narrowed(layer: nn.Module, skipped: int) -> Iterator[None]:
    """A context in which `layer` gives the first `skipped` positions hidden states without meaning.

    Attention other than torch's fused one, and an MLP that is not a module of its own (OPT's), run as ever.
    """
    mlp = getattr(layer, "mlp", None)
    hooks = []
    if mlp is not None:
        hooks.append(
            mlp.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, skipped:].contiguous(), *inputs[1:]))
        )
        hooks.append(mlp.register_forward_hook(lambda _, inputs, output: F.pad(output, (0, 0, skipped, 0))))
    try:
        with _LastQueries(skipped):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _LastQueries(AttentionMode):
    """A context in which fused attention is that of queries from number `skipped` on."""

    def __init__(self, skipped: int):
        self.skipped = skipped

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options,
    ) -> Tensor:
        """query (b, H, C, d) -> (b, H, C, d), zeros first."""
        query = query[:, :, self.skipped :]
        if attn_mask is not None:
            attn_mask = attn_mask[..., self.skipped :, :]
        elif is_causal:
            size = query.shape[2], key.shape[2]
            attn_mask = torch.ones(size, dtype=torch.bool, device=query.device).tril(self.skipped)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)
        return F.pad(output, (0, 0, self.skipped, 0))
