"""GPT-NeoX (Pythia): rotary positions on a part of each head, attention and MLP in parallel."""

from torch import Tensor
from transformers import Cache

from .base import FULL, Backbone, LayerInputs


class GptNeoX(Backbone):
    model_types = ("gpt_neox",)
    norm_name = "final_layer_norm"

    def rotary(self, hidden: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {FULL: self.decoder.rotary_emb(hidden, position_ids=positions)}

    def begin(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None = None
    ) -> tuple[Tensor, LayerInputs]:
        return super().begin(self.decoder.emb_dropout(embeddings), positions, mask, cache)
