"""Families of decoders that can be wrapped."""

from transformers import PreTrainedModel

from .activations import fuse_activations
from .base import Backbone, LayerInputs
from .falcon import Falcon
from .gpt_neox import GptNeoX
from .learned_positions import LearnedPositions, Opt
from .rotary import Gemma3, Rotary

FAMILIES: tuple[type[Backbone], ...] = (LearnedPositions, Opt, Rotary, Gemma3, GptNeoX, Falcon)


def supported_model_types() -> list[str]:
    return sorted(name for family in FAMILIES for name in family.model_types)


def backbone_of(model: PreTrainedModel) -> Backbone:
    """The view of `model` that belongs to its family; activations of `model` become fused ones.

    Raises:
        ValueError: the family is not supported; the message names those that are.
    """
    for family in FAMILIES:
        if model.config.model_type in family.model_types:
            fuse_activations(model)
            return family(model)
    raise ValueError(
        f"no backbone for model type {model.config.model_type!r}; supported: {', '.join(supported_model_types())}. "
        "To add a family, write modeling_armt/backbones/FAMILY.py and list it in backbones/__init__.py"
    )


__all__ = ["Backbone", "LayerInputs", "backbone_of", "supported_model_types"]
