"""Tiny random models of every family, for the tests."""

import torch
from transformers import (
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from modeling_armt import ArmtForCausalLM, RmtForCausalLM

VOCAB, SEGMENT, MEMORY, WIDTH = 31, 6, 3, 16

LAYERS = dict(hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4)
GROUPED = LAYERS | dict(num_key_value_heads=2)
TOKENS = dict(vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, pad_token_id=0)
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]


def sizes(positions):
    return TOKENS | dict(max_position_embeddings=positions)


CONFIGS = {
    "gpt2": lambda n: GPT2Config(
        **TOKENS, n_positions=n, n_embd=WIDTH, n_layer=3, n_head=2, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0
    ),
    "opt": lambda n: OPTConfig(
        **sizes(n), hidden_size=WIDTH, ffn_dim=24, num_hidden_layers=3, num_attention_heads=4, dropout=0,
        word_embed_proj_dim=WIDTH,
    ),
    "opt-projected": lambda n: OPTConfig(
        **sizes(n), hidden_size=WIDTH, ffn_dim=24, num_hidden_layers=3, num_attention_heads=4, dropout=0,
        word_embed_proj_dim=8, do_layer_norm_before=False,
    ),
    "gpt_neox": lambda n: GPTNeoXConfig(**sizes(n), **LAYERS, rotary_pct=0.5),
    "llama": lambda n: LlamaConfig(**sizes(n), **GROUPED),
    "mistral": lambda n: MistralConfig(**sizes(n), **GROUPED, sliding_window=4),
    "qwen2": lambda n: Qwen2Config(
        **sizes(n), **GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=2
    ),
    "qwen3": lambda n: Qwen3Config(**sizes(n), **GROUPED, head_dim=8),
    "gemma2": lambda n: Gemma2Config(
        **sizes(n), **GROUPED, head_dim=8, sliding_window=4, query_pre_attn_scalar=8, layer_types=SLIDING
    ),
    "gemma3": lambda n: Gemma3TextConfig(
        **sizes(n), **GROUPED, head_dim=8, sliding_window=4, query_pre_attn_scalar=8, layer_types=SLIDING
    ),
    "phi3": lambda n: Phi3Config(**sizes(n), **GROUPED, sliding_window=5),
    "olmo2": lambda n: Olmo2Config(**sizes(n), **GROUPED),
    "smollm3": lambda n: SmolLM3Config(**sizes(n), **GROUPED, no_rope_layers=[1, 0, 1]),
    "falcon": lambda n: FalconConfig(
        **sizes(n), hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, alibi=False,
        new_decoder_architecture=True, num_kv_heads=2,
    ),
    "falcon-7b": lambda n: FalconConfig(
        **sizes(n), hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, alibi=False, multi_query=True,
    ),
}  # fmt: skip
LORA = {"r": 2, "lora_alpha": 4}
KINDS = {"armt": (ArmtForCausalLM, dict(d_mem=4)), "rmt": (RmtForCausalLM, {})}


def backbone_config(family, positions=32):
    torch.manual_seed(1)
    return CONFIGS[family](positions)


def shake(model):
    """Weights at which every part of the model matters."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for name, parameter in model.named_parameters():
            if name.endswith("W_v"):
                parameter.normal_(std=0.3)
    return model


def make(family="gpt2", kind="armt", shaken=True, attention=None, positions=32, **options):
    config = backbone_config(family, positions)
    if attention:
        config._attn_implementation = attention
    model_class, defaults = KINDS[kind]
    options = dict(segment_size=SEGMENT, num_mem_tokens=MEMORY) | defaults | options
    model = model_class.from_backbone(config, **options).eval()
    return shake(model) if shaken else model


def tokens(*shape, seed=0):
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows, side):
    """Rows (1, n) -> a batch, its mask, and where each row stands in it."""
    width = max(row.shape[1] for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    places = []
    for i, row in enumerate(rows):
        n = row.shape[1]
        places.append(slice(0, n) if side == "right" else slice(width - n, width))
        ids[i, places[i]], mask[i, places[i]] = row, 1
    return ids, mask, places


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def assert_same_model(one, other, ids):
    """The same weights bit by bit; outputs to rounding, which depends on where weights lie in memory."""
    weights = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert len(one.state_dict()) == len(weights)
    close(one(ids).logits, other(ids).logits, 1e-6)
