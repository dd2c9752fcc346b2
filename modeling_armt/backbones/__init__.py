"""Families of decoders that ARMT can wrap."""

from transformers import PreTrainedModel

from .base import Backbone, LayerInputs
from .learned_positions import LearnedPositions
from .rotary import Rotary

FAMILIES: tuple[type[Backbone], ...] = (LearnedPositions, Rotary)


def supported_model_types() -> list[str]:
    return sorted(name for family in FAMILIES for name in family.model_types)


def backbone_of(model: PreTrainedModel) -> Backbone:
    """The view of `model` that belongs to its family.

    Raises:
        ValueError: the family is not supported; the message names those that are.
    """
    for family in FAMILIES:
        if model.config.model_type in family.model_types:
            return family(model)
    raise ValueError(
        f"no backbone for model type {model.config.model_type!r}; supported: {', '.join(supported_model_types())}. "
        "To add a family, write modeling_armt/backbones/FAMILY.py and list it in backbones/__init__.py"
    )


__all__ = ["Backbone", "LayerInputs", "backbone_of", "supported_model_types"]
