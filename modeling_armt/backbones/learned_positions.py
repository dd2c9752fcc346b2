"""GPT-2: a learned embedding for each position, added before the first layer."""

from torch import Tensor, nn
from transformers import Cache

from .base import Backbone, LayerInputs


class LearnedPositions(Backbone):
    model_types = ("gpt2",)

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.h

    @property
    def final_norm(self) -> nn.Module:
        return self.decoder.ln_f

    def begin(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None = None
    ) -> tuple[Tensor, LayerInputs]:
        hidden = self.decoder.drop(embeddings + self.decoder.wpe(positions))
        return super().begin(hidden, positions, mask, cache)
