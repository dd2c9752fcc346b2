"""GELU by tanh as one operation, where Hugging Face composes it of seven, each with its own pass over memory."""

from torch import nn
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation

GELU_BY_TANH = {AccurateGELUActivation, FastGELUActivation, NewGELUActivation}


def fuse_activations(model: nn.Module) -> None:
    """Put torch's function in the place of the modules that compute the same, in place; names and parameters stay."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) in GELU_BY_TANH:
                setattr(module, name, nn.GELU(approximate="tanh"))
