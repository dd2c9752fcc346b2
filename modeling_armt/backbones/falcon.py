"""Falcon with rotary positions. Its layers return their attention weights beside the hidden states."""

from torch import Tensor
from transformers import PreTrainedModel

from .base import FULL, Backbone, LayerInputs


class Falcon(Backbone):
    model_types = ("falcon",)
    layers_name, norm_name = "h", "ln_f"
    recordable = False  # it indexes with a list, which is copied to the device each time

    def __init__(self, model: PreTrainedModel):
        if model.config.alibi:
            raise ValueError("this Falcon has ALiBi positions (alibi=True in its configuration); only rotary ones work")
        super().__init__(model)

    def rotary(self, hidden: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {FULL: self.decoder.rotary_emb(hidden, position_ids=positions)}

    def call_layer(self, number: int, hidden: Tensor, inputs: LayerInputs) -> Tensor:
        mask, rotary = inputs.masks[FULL], inputs.rotary[FULL]
        layer = self.layers[number]
        return layer(hidden, alibi=None, attention_mask=mask, position_embeddings=rotary, layer_past=inputs.cache)[0]
