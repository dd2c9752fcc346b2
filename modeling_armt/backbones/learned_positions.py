"""GPT-2 and OPT: a learned embedding for each position, added before the first layer."""

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from .base import Backbone, LayerInputs


class LearnedPositions(Backbone):
    model_types = ("gpt2",)
    layers_name, norm_name = "h", "ln_f"
    learned_positions = True

    def begin(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None = None
    ) -> tuple[Tensor, LayerInputs]:
        has_position = (positions >= 0).unsqueeze(-1)
        hidden = embeddings + has_position * self.embed_positions(positions.clamp(min=0))
        return super().begin(self.drop(hidden), positions, mask, cache)

    def embed_positions(self, positions: Tensor) -> Tensor:
        return self.decoder.wpe(positions)

    def drop(self, hidden: Tensor) -> Tensor:
        return self.decoder.drop(hidden)


class Opt(LearnedPositions):
    """The table of positions has two unused rows in front; the smallest models project the embeddings."""

    model_types = ("opt",)
    layers_name = "layers"

    @staticmethod
    def decoder_of(model: PreTrainedModel) -> nn.Module:
        return model.base_model.decoder

    @property
    def final_norm(self) -> nn.Module:
        return self.decoder.final_layer_norm or nn.Identity()

    def embed(self, input_ids: Tensor) -> Tensor:
        embeddings = self.decoder.embed_tokens(input_ids)
        return embeddings if self.decoder.project_in is None else self.decoder.project_in(embeddings)

    def embed_positions(self, positions: Tensor) -> Tensor:
        return self.decoder.embed_positions(None, position_ids=positions)

    def drop(self, hidden: Tensor) -> Tensor:
        return hidden

    def prepare_head(self, hidden: Tensor) -> Tensor:
        hidden = super().prepare_head(hidden)
        return hidden if self.decoder.project_out is None else self.decoder.project_out(hidden)
