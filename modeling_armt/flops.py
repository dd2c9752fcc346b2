"""FLOPs that a recurrent model needs, by part, counted from its layers and the lengths of its input.

A multiplication and an addition are two; norms, activations and softmax are left out, as by torch's `FlopCounterMode`.
Needed attention has the scores at or below the diagonal, and inside the window of a layer that slides; a kernel with a
mask computes the whole square, which `causal=False` counts. Where hidden states of a segment's text are not asked for,
the last layer needs its MLP, and the scores that are seen, of write tokens only; its queries are counted everywhere, as
they share products with keys and values.

Shapes: R read, T text and W write positions of a segment, C all of them; D model width, V vocabulary, d key width,
K features of a memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .backbones.base import SLIDING
from .loss import target_positions
from .segmentation import borders

if TYPE_CHECKING:
    from .configuration_base import RecurrentConfig
    from .modeling_base import RecurrentModel


@dataclass(frozen=True)
class Flops:
    """Of the parts: products with the weights of the decoder layers; attention scores and the values under them; the
    memory read and written, with its own weights; the head."""

    dense: float = 0
    attention: float = 0
    read: float = 0
    write: float = 0
    head: float = 0

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: Flops) -> Flops:
        return Flops(**{name: value + getattr(other, name) for name, value in self.parts().items()})

    def __mul__(self, times: float) -> Flops:
        return Flops(**{name: value * times for name, value in self.parts().items()})


class FlopCount:
    """Counts for one model.

    Args:
        model: on any device, the meta device too.
    """

    def __init__(self, model: RecurrentModel):
        self.model, self.config = model, model.config
        decoder, layers = model.family.decoder, [*model.family.layers]
        head = [model.get_output_embeddings(), getattr(decoder, "project_out", None)]  # the latter of OPT
        self.layer_weights, self.trained_layer_weights = _weights(layers), _weights(layers, trained=True)
        self.last_mlp_weights = _weights([getattr(layers[-1], "mlp", None)])  # none where it is no module (OPT)
        self.head_weights, self.trained_head_weights = _weights(head), _weights(head, trained=True)
        self.text_weights = _weights([getattr(decoder, "project_in", None)])  # of OPT's token embeddings
        self.memory_layers = len(getattr(self.config, "layers_with_memory", ()))  # with associations

    def segment(self, text: int, seen: bool, writes: bool, causal: bool = True, wanted: bool = True) -> Flops:
        """A forward pass over one segment of one row, without the head.

        Args:
            text: T. seen: the row's memory is not empty. writes: write tokens stand behind the text.
            causal: count the attention that is needed; False: whole squares.
            wanted: hidden states of the text are asked for.
        """
        before, behind = self.model.memory_sizes
        positions = before + text + (behind if writes else 0)
        skipped = 0 if wanted or not writes else before + text
        layers = 2 * positions * self.layer_weights - 2 * skipped * self.last_mlp_weights
        return Flops(
            dense=layers + 2 * text * self.text_weights,
            attention=self.attention(positions, causal, skipped),
            read=self.memory_layers * self._read(positions) if seen and self.memory_layers else 0,
            write=self.memory_layers * self._write(behind, seen) if writes and self.memory_layers else 0,
        )

    def sequence(
        self,
        length: int,
        seen: bool = False,
        write_last: bool = True,
        causal: bool = True,
        wanted: Sequence[int] | None = None,
    ) -> Flops:
        """A forward pass over one row of `length` tokens, segment by segment, without the head.

        Args:
            seen: a memory is handed over. write_last: the last segment writes.
            wanted: places of the tokens whose hidden states are asked for, ascending; (): a text that is but read;
                None: all.
        """
        cuts = borders(length, self.config.segment_size, self.config.segment_alignment)
        kinds = Counter(
            (
                stop - start,
                seen or start > 0,
                self.config.num_mem_tokens > 0 and (write_last or stop < length),
                causal,
                wanted is None or bisect_left(wanted, start) < bisect_left(wanted, stop),
            )
            for start, stop in zip(cuts, cuts[1:])
        )
        return sum((self.segment(*kind) * times for kind, times in kinds.items()), Flops())

    def decoder(self, length: int) -> Flops:
        """A forward pass of the backbone alone: full attention over `length` tokens, without the head."""
        dense = 2 * length * (self.layer_weights + self.text_weights)
        return Flops(dense=dense, attention=self.attention(length))

    def head(self, positions: int) -> Flops:
        """Logits at so many positions."""
        return Flops(head=2 * positions * self.head_weights)

    def backward(self, forward: Flops) -> Flops:
        """Each product has a gradient of either factor; frozen weights need none.

        Exact where every product of the forward pass matters for the loss, and the last MLP has its share of the
        trained weights.
        """
        return Flops(
            dense=forward.dense * (1 + self.trained_layer_weights / self.layer_weights),
            attention=2 * forward.attention,
            read=2 * forward.read,
            write=2 * forward.write,
            head=forward.head * (1 + self.trained_head_weights / self.head_weights),
        )

    def training(self, batch: Mapping[str, Tensor]) -> Flops:
        """Forward and backward pass over a batch: no padding, the head at labels only, no last write, nothing twice.

        Args:
            batch: `input_ids` (B, N); `attention_mask` (B, N), 0 on padding; `labels` (B, N), without them no head,
                and all hidden states.
        """
        ids, mask, labels = batch["input_ids"], batch.get("attention_mask"), batch.get("labels")
        tokens = torch.ones(ids.shape, dtype=torch.bool) if mask is None else mask.bool()
        targets = None if labels is None else target_positions(labels, mask)
        forward = self.head(0 if targets is None else int(targets.sum()))
        rows = Counter(zip(tokens.sum(1).tolist(), _places(tokens, targets)))  # few kinds: each is counted once
        for (length, wanted), times in rows.items():
            forward += self.sequence(length, write_last=False, wanted=wanted) * times
        return forward + self.backward(forward)

    def attention(self, positions: int, causal: bool = True, skipped: int = 0) -> int:
        """All layers over one row of positions: a score, and its share of the output, take twice the width each.

        Args:
            skipped: positions, the first ones, without queries in the last layer.
        """
        config = self.model.family.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        windows = [config.sliding_window if kind == SLIDING else positions for kind in self.model.family.kinds]
        if causal:
            pairs = sum(_visible(positions, window) for window in windows) - _visible(skipped, windows[-1])
        else:
            pairs = len(windows) * positions**2 - skipped * positions
        return 4 * config.num_attention_heads * width * pairs

    def _read(self, positions: int) -> int:
        """One layer: W_q, A and z for every position."""
        width, features = self.config.hidden_size, self.config.num_features
        return 2 * positions * (width * self.config.d_mem + features * width + features)

    def _write(self, tokens: int, seen: bool) -> int:
        """One layer: W_k, W_v, W_b, outer products; and what a memory that is not empty has under the keys."""
        width, features = self.config.hidden_size, self.config.num_features
        write = width * self.config.d_mem + width * width + width + features * width
        return 2 * tokens * (write + (features * width + features if seen else 0))


def without_weights(model_class: type[RecurrentModel], config: RecurrentConfig) -> RecurrentModel:
    """A model on the meta device, to count from a configuration alone."""
    with torch.device("meta"):
        return model_class(config)


def _weights(modules: Iterable[nn.Module | None], trained: bool = False) -> int:
    """Elements of their weight matrices, or of those that are trained."""
    parameters = (parameter for module in modules if module is not None for parameter in module.parameters())
    return sum(p.numel() for p in parameters if p.dim() == 2 and (p.requires_grad or not trained))


def _places(tokens: Tensor, wanted: Tensor | None) -> list[tuple[int, ...] | None]:
    """Of each row, the places among its tokens (B, N) of those that are wanted (B, N); None: all."""
    if wanted is None:
        return [None] * len(tokens)
    place_of = tokens.cumsum(1) - 1
    return [tuple(row.tolist()) for row in place_of[wanted].split(wanted.sum(1).tolist())]


def _visible(positions: int, window: int) -> int:
    """Pairs of a position and one that it sees: itself, and those before it inside the window."""
    inside = min(positions, window)
    return inside * (inside + 1) // 2 + (positions - inside) * inside
