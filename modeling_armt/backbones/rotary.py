"""Decoders built like Llama: rotary positions, pre- or post-norm layers under `model.layers`.

Layers may differ in their attention: full or a sliding window (Mistral, Qwen 2, Gemma), and in Gemma 3 each of the two
has its own rotary base.
"""

from torch import Tensor

from .base import Backbone


class Rotary(Backbone):
    model_types = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", "gemma2")

    def rotary(self, hidden: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return dict.fromkeys(self.kinds, self.decoder.rotary_emb(hidden, position_ids=positions))


class Gemma3(Rotary):
    model_types = ("gemma3_text",)

    def rotary(self, hidden: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {kind: self.decoder.rotary_emb(hidden, positions, kind) for kind in dict.fromkeys(self.kinds)}
