"""What ARMT needs of a Hugging Face decoder: its parts, called one by one.

The layer loop is ours, because the memory sits between layers. A family of models is one subclass in one file of
this folder, listed in `backbones/__init__.py`.

Shapes: B batch, T positions, D model width, V vocabulary.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

LayerInputs = dict[str, Any]


class Backbone(ABC):
    """A view of a causal language model; it owns no parameters and holds no state."""

    model_types: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.decoder = model.base_model
        self.config = model.config

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The decoder layers, lowest first."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """What stands between the last layer and the head."""

    @property
    def max_positions(self) -> int:
        """Longest sequence, memory tokens included, that the positions of the model allow."""
        return self.config.max_position_embeddings

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (B, T, D), before positions are added."""
        return self.decoder.get_input_embeddings()(input_ids)

    def begin(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None = None
    ) -> tuple[Tensor, LayerInputs]:
        """Everything before the first layer.

        Args:
            embeddings: (B, T, D). positions: (1, T) or (B, T) long.
            mask: (B, C + T), nonzero where a position may be attended to, C positions of `cache` first; None: all.
            cache: keys and values of earlier positions; the layers append to it.

        Returns:
            hidden (B, T, D) and the keyword arguments that every layer takes.
        """
        inputs = {
            "attention_mask": create_causal_mask(
                config=self.config, inputs_embeds=embeddings, attention_mask=mask, past_key_values=cache
            ),
            "past_key_values": cache,
        }
        return embeddings, inputs

    def run_layer(self, layer: nn.Module, hidden: Tensor, inputs: LayerInputs) -> Tensor:
        """One decoder layer, (B, T, D) -> (B, T, D)."""
        return layer(hidden, **inputs)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D) that come from the last layer."""
        return self.model.get_output_embeddings()(self.final_norm(hidden))
