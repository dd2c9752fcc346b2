"""FLOPs that a recurrent model needs, by part, counted from its layers and the lengths of its input.

A multiplication and an addition are two; norms, activations and softmax are left out, as by torch's `FlopCounterMode`.
Needed attention has the scores at or below the diagonal, and inside the window of a layer that slides; a kernel with a
mask computes the whole square, which `causal=False` counts.

Shapes: R read, T text and W write positions of a segment, C all of them; D model width, V vocabulary, d key width,
K features of a memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .backbones.base import SLIDING
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
        self.head_weights, self.trained_head_weights = _weights(head), _weights(head, trained=True)
        self.text_weights = _weights([getattr(decoder, "project_in", None)])  # of OPT's token embeddings
        self.memory_layers = len(getattr(self.config, "layers_with_memory", ()))  # with associations

    def segment(self, text: int, seen: bool, writes: bool, causal: bool = True) -> Flops:
        """A forward pass over one segment of one row, without the head.

        Args:
            text: T. seen: the row's memory is not empty. writes: write tokens stand behind the text.
            causal: count the attention that is needed; False: whole squares.
        """
        before, behind = self.model.memory_sizes
        positions = before + text + (behind if writes else 0)
        return Flops(
            dense=2 * positions * self.layer_weights + 2 * text * self.text_weights,
            attention=self.attention(positions, causal),
            read=self.memory_layers * self._read(positions) if seen and self.memory_layers else 0,
            write=self.memory_layers * self._write(behind, seen) if writes and self.memory_layers else 0,
        )

    def sequence(self, length: int, seen: bool = False, write_last: bool = True, causal: bool = True) -> Flops:
        """A forward pass over one row of `length` tokens, segment by segment, without the head.

        Args:
            seen: a memory is handed over. write_last: the last segment writes.
        """
        cuts = borders(length, self.config.segment_size, self.config.segment_alignment)
        kinds = Counter(
            (stop - start, seen or start > 0, self.config.num_mem_tokens > 0 and (write_last or stop < length))
            for start, stop in zip(cuts, cuts[1:])
        )
        return sum((self.segment(*kind, causal) * times for kind, times in kinds.items()), Flops())

    def decoder(self, length: int) -> Flops:
        """A forward pass of the backbone alone: full attention over `length` tokens, without the head."""
        dense = 2 * length * (self.layer_weights + self.text_weights)
        return Flops(dense=dense, attention=self.attention(length))

    def head(self, positions: int) -> Flops:
        """Logits at so many positions."""
        return Flops(head=2 * positions * self.head_weights)

    def backward(self, forward: Flops) -> Flops:
        """Each product has a gradient of either factor; frozen weights need none.

        Exact where every product of the forward pass matters for the loss.
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
            batch: `input_ids` (B, N); `attention_mask` (B, N), 0 on padding; `labels` (B, N), without them no head.
        """
        ids, mask, labels = batch["input_ids"], batch.get("attention_mask"), batch.get("labels")
        lengths = [ids.shape[1]] * ids.shape[0] if mask is None else mask.bool().sum(1).tolist()
        forward = self.head(0 if labels is None else int((labels[:, 1:] != -100).sum()))
        for length, rows in Counter(lengths).items():
            forward += self.sequence(length, write_last=False) * rows
        return forward + self.backward(forward)

    def attention(self, positions: int, causal: bool = True) -> int:
        """All layers over one row of positions: a score, and its share of the output, take twice the width each."""
        config = self.model.family.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        pairs = 0
        for kind in self.model.family.kinds:
            window = config.sliding_window if kind == SLIDING else positions
            pairs += _visible(positions, window) if causal else positions**2
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


def _visible(positions: int, window: int) -> int:
    """Pairs of a position and one that it sees: itself, and those before it inside the window."""
    inside = min(positions, window)
    return inside * (inside + 1) // 2 + (positions - inside) * inside
