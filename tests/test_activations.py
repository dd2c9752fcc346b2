"""GELU by tanh, which Hugging Face composes of seven operations, is one where a decoder is wrapped, and the same."""

import pytest
import torch
from tiny_models import KINDS, backbone_config, make, tokens
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from modeling_armt import ArmtForCausalLM
from modeling_armt.backbones.activations import fuse_activations

COMPOSED = ["gelu_new", "gelu_fast", "gelu_accurate"]
OTHERS = ["gelu", "gelu_10", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"]


def fused(name):
    """The activation of that name, as it is where a decoder is wrapped."""
    holder = nn.ModuleDict({"act": ACT2FN[name]})
    fuse_activations(holder)
    return holder["act"]


def value_and_slope(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return y, slope


@pytest.mark.parametrize("name", COMPOSED)
def test_value_and_gradient_are_those_of_the_composed_function(name):
    x = torch.cat((torch.linspace(-12, 12, 100_001), torch.randn(100_000)))
    assert isinstance(fused(name), nn.GELU)
    for mine, exact in zip(value_and_slope(fused(name), x), value_and_slope(ACT2FN[name], x.double())):
        torch.testing.assert_close(mine.double(), exact, atol=2e-6, rtol=0)  # the composed one is within 6e-7


@pytest.mark.parametrize("name", OTHERS)
def test_other_activations_stay(name):
    assert type(fused(name)) is type(ACT2FN[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapped_decoder_gives_what_it_gave(kind):
    ids = tokens(2, 6)
    decoder = AutoModelForCausalLM.from_config(backbone_config("gpt2")).eval()
    expected = decoder(ids).logits
    model_class, options = KINDS[kind]
    model = model_class.from_backbone(decoder, segment_size=6, num_mem_tokens=0, **options)
    assert not [module for module in model.modules() if type(module).__name__ == "NewGELUActivation"]
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-6, rtol=0)


def test_saving_keeps_the_name_of_the_function(tmp_path):
    model, ids = make(), tokens(2, 9)
    model.save_pretrained(tmp_path)
    loaded = ArmtForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.backbone_config.activation_function == "gelu_new"
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-6, rtol=0)
