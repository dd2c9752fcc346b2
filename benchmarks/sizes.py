"""Sizes of models that are measured, with random weights and without dropout."""

import torch
from torch import nn
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from lm_experiments_tools.errors import UserError
from modeling_armt import ArmtConfig, ArmtForCausalLM, RmtConfig, RmtForCausalLM
from modeling_armt.configuration_armt import EXECUTORS
from modeling_armt.configuration_base import RecurrentConfig
from modeling_armt.modeling_base import RecurrentModel

COMPILED, REPLAYED = "+compile", "+replay"
KINDS = {
    "armt": (ArmtForCausalLM, ArmtConfig),
    "rmt": (RmtForCausalLM, RmtConfig),
    "none": (ArmtForCausalLM, ArmtConfig),
}
SPECIAL = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)  # decoding never ends by itself


def _gpt2(layers: int, width: int, heads: int, vocabulary: int, positions: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_layer=layers, n_embd=width, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **SPECIAL,
    )  # fmt: skip


def _llama_1b(positions: int) -> LlamaConfig:
    """Llama-3.2-1B."""
    return LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=positions, tie_word_embeddings=True, **SPECIAL,
    )  # fmt: skip


SIZES = {
    "tiny": lambda positions: _gpt2(2, 32, 2, 128, positions),
    "toy": lambda positions: _gpt2(4, 128, 2, 50257, positions),
    "gpt2-small": lambda positions: _gpt2(12, 768, 12, 50257, positions),
    "llama-1b": _llama_1b,
}


def model_config(
    size: str, segment_size: int, num_mem_tokens: int, positions: int = 0, kind: str = "armt", **options
) -> RecurrentConfig:
    """Configuration of a model around a decoder with at least the positions of a segment.

    Raises:
        UserError: no such size or kind.
    """
    if size not in SIZES:
        raise UserError(f"there is no size {size!r}; choose of {', '.join(SIZES)}")
    if kind not in KINDS:
        raise UserError(f"there is no model type {kind!r}; choose of {', '.join(KINDS)}")
    memory = 0 if kind == "none" else num_mem_tokens
    backbone: PreTrainedConfig = SIZES[size](max(positions, segment_size + 2 * memory))
    return KINDS[kind][1](backbone_config=backbone, segment_size=segment_size, num_mem_tokens=memory, **options)


def make_model(config: RecurrentConfig, device: str, dtype: torch.dtype) -> RecurrentModel:
    """Random weights; those that a fresh memory has as zeros too, so that what is read matters."""
    torch.manual_seed(0)
    with torch.device(device):
        model = (ArmtForCausalLM if isinstance(config, ArmtConfig) else RmtForCausalLM)(config)
    for name, parameter in model.named_parameters():
        if name.endswith("W_v"):
            nn.init.normal_(parameter, std=0.02)
    return model.to(dtype).eval()


def check_way(way: str) -> str:
    """An executor, then `+compile` and `+replay` where they are wanted.

    Raises:
        UserError: it is none.
    """
    if way.removesuffix(REPLAYED).removesuffix(COMPILED) not in EXECUTORS:
        raise UserError(f"there is no {way!r}: give one of {', '.join(EXECUTORS)}, with {COMPILED} behind it or not")
    return way


def choose(model: ArmtForCausalLM, way: str) -> None:
    """Run the recurrence in a way that `check_way` lets pass."""
    model.config.segment_checkpointing = way.endswith(REPLAYED)
    way = way.removesuffix(REPLAYED)
    model.compiles = way.endswith(COMPILED)
    model.config.executor = way.removesuffix(COMPILED)
