"""Llama: rotary position embeddings, computed once a segment and shared by all layers."""

from torch import Tensor, nn
from transformers import Cache

from .base import Backbone, LayerInputs


class Rotary(Backbone):
    model_types = ("llama",)

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.decoder.norm

    def begin(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None = None
    ) -> tuple[Tensor, LayerInputs]:
        hidden, inputs = super().begin(embeddings, positions, mask, cache)
        inputs["position_embeddings"] = self.decoder.rotary_emb(hidden, position_ids=positions)
        return hidden, inputs
