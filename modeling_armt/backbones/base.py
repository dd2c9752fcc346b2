"""What the recurrent models need of a Hugging Face decoder: its parts, called one by one.

The layer loop is ours, because the memory sits between layers. A family of models is one subclass in one file of
this folder, listed in `backbones/__init__.py`.

Shapes: B batch, T positions, D model width, V vocabulary.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .blocked_attention import BlockedAttention
from .narrow import narrowed, runs_again

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class LayerInputs:
    """What the layers take beside hidden states.

    Attributes:
        masks: kind of attention -> mask. rotary: kind of attention -> (cos, sin); empty without rotary positions.
        cache: keys and values of earlier positions, to which the layers append.
        skipped: positions, the first ones, of which nobody asks what becomes: the last layer may leave them out.
    """

    masks: dict[str, Tensor | None]
    rotary: dict[str, tuple[Tensor, Tensor]]
    cache: Cache | None
    skipped: int = 0


@lru_cache
def _cache_name(function: Callable) -> str:
    """Its keyword for the key-value cache, which differs by family and by version (5.24) of transformers."""
    names = inspect.signature(function).parameters
    return next(name for name in ("cache", "past_key_values", "layer_past") if name in names)


class Backbone:
    """A view of a causal language model; it owns no parameters and holds no state.

    Attributes:
        model_types: of the Hugging Face configurations that belong to the family.
        learned_positions: positions are embeddings, added before the first layer.
        layers_name, norm_name: of the decoder layers and the final norm in the decoder.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    learned_positions: ClassVar[bool] = False
    layers_name: ClassVar[str] = "layers"
    norm_name: ClassVar[str] = "norm"
    recordable: ClassVar[bool] = True  # whether its layers can be recorded as a CUDA graph

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.decoder = self.decoder_of(model)
        self.config = model.config
        self.kinds = self._attention_kinds()
        self.cache_name = _cache_name(type(self.layers[0]).forward)

    @staticmethod
    def decoder_of(model: PreTrainedModel) -> nn.Module:
        """What holds the embeddings, the layers and the final norm."""
        return model.base_model

    def _attention_kinds(self) -> list[str]:
        """Kind of attention of each layer, as the family's own model chooses it."""
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None:
            return list(kinds)
        sliding = getattr(self.config, "sliding_window", None) is not None
        return [SLIDING if sliding else FULL] * self.config.num_hidden_layers

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, lowest first."""
        return getattr(self.decoder, self.layers_name)

    @property
    def final_norm(self) -> nn.Module:
        """What stands between the last layer and the head."""
        return getattr(self.decoder, self.norm_name)

    @property
    def max_positions(self) -> int:
        """Longest sequence, memory tokens included, that the positions of the model allow."""
        return self.config.max_position_embeddings

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (B, T, D), before positions are added."""
        return self.decoder.get_input_embeddings()(input_ids)

    def rotary(self, hidden: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Rotary embeddings by kind of attention, computed once a segment and shared by all layers."""
        return {}

    def begin(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None = None
    ) -> tuple[Tensor, LayerInputs]:
        """Everything before the first layer.

        Args:
            embeddings: (B, T, D). positions: (1, T) or (B, T) long; -1: the token has no position of the backbone.
            mask: (B, C + T), nonzero where a position may be attended to, C positions of `cache` first; None: all.
                The nonzero ones of a row stand together, so that columns are as far apart as positions.
            cache: keys and values of earlier positions; the layers append to it.

        Returns:
            hidden (B, T, D) and what every layer takes beside it.
        """
        arguments = {
            "config": self.config,
            "inputs_embeds": embeddings,
            "attention_mask": mask,
            _cache_name(create_causal_mask): cache,
        }
        create = {FULL: create_causal_mask, SLIDING: create_sliding_window_causal_mask}
        masks = {kind: create[kind](**arguments) for kind in dict.fromkeys(self.kinds)}
        return embeddings, LayerInputs(masks, self.rotary(embeddings, positions), cache)

    def run_layer(self, number: int, hidden: Tensor, inputs: LayerInputs) -> Tensor:
        """Decoder layer `number`, from 0: (B, T, D) -> (B, T, D)."""
        if not self.narrows(number, inputs):
            return self.call_layer(number, hidden, inputs)
        with narrowed(self.layers[number], inputs.skipped):
            return self.call_layer(number, hidden, inputs)

    def narrows(self, number: int, inputs: LayerInputs) -> bool:
        """Whether layer `number` leaves out skipped positions: of the last one no other sees them."""
        is_last = number + 1 == len(self.layers)
        return bool(inputs.skipped) and is_last and not runs_again(self.layers[number])

    def call_layer(self, number: int, hidden: Tensor, inputs: LayerInputs) -> Tensor:
        """The layer's own forward pass, with the arguments that its family takes."""
        kind = self.kinds[number]
        layer = self.layers[number]
        arguments: dict[str, Any] = {
            "attention_mask": inputs.masks[kind],
            self.cache_name: inputs.cache,
        }
        if inputs.rotary:
            arguments["position_embeddings"] = inputs.rotary[kind]
        return layer(hidden, **arguments)

    def faster_attention(self, device: torch.device) -> AbstractContextManager:
        """A context to run layers in, one after the other (not under `vmap`)."""
        blocks = device.type == "cpu" and not runs_again(self.layers[0])
        return BlockedAttention() if blocks else nullcontext()

    @property
    def softcap(self) -> float | None:
        """Logits are squeezed into (-softcap, softcap)."""
        return getattr(self.config, "final_logit_softcapping", None)

    def prepare_head(self, hidden: Tensor) -> Tensor:
        """What the output embeddings are applied to, of hidden states (..., D) that come from the last layer."""
        return self.final_norm(hidden)

    def logits(self, prepared: Tensor) -> Tensor:
        """Logits (..., V) of what `prepare_head` returned."""
        logits = self.model.get_output_embeddings()(prepared)
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D) that come from the last layer."""
        return self.logits(self.prepare_head(hidden))

    @property
    def plain_head(self) -> nn.Linear | None:
        """The head, where logits are nothing but a linear map; else None."""
        head = self.model.get_output_embeddings()
        return head if type(head) is nn.Linear and self.softcap is None else None
