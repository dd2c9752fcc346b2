"""ARMT around GPT-2 as it is most simply written: what `train_step.py` compares with, not to be improved.

Attention scores of all heads are made and masked, the head runs at every position of every segment, logits are joined,
and everything is saved for the backward pass.

Shapes: B batch, N tokens, T text positions of a segment, C with the memory tokens, D model width, V vocabulary,
K features.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_armt import ArmtForCausalLM
from modeling_armt.layer import ArmtLayer

EPSILON = 1e-5
Memory = tuple[Tensor, Tensor]  # A (B, K, D), z (B, K)


def plain_loss(model: ArmtForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of ids (B, N) with labels (B, N), of the weights of `model`."""
    config, decoder = model.config, model.backbone.transformer
    memory: list[Memory | None] = [None] * config.num_hidden_layers
    logits = []
    for text in ids.split(config.segment_size, dim=1):
        tokens = model.memory_tokens.expand(len(ids), -1, -1)
        hidden = torch.cat((decoder.wte(text), tokens), dim=1)
        hidden = hidden + decoder.wpe(torch.arange(hidden.shape[1], device=ids.device))
        for number, block in enumerate(decoder.h):
            own = model.memory_layers[str(number)]
            if memory[number] is not None:
                hidden = hidden + _read(own, hidden, memory[number])
            hidden = _block(block, hidden, config.backbone_config.n_head)
            memory[number] = _write(own, hidden[:, text.shape[1] :], memory[number])
        logits.append(model.backbone.lm_head(decoder.ln_f(hidden))[:, : text.shape[1]])
    joined = torch.cat(logits, dim=1)[:, :-1]
    return F.cross_entropy(joined.reshape(-1, joined.shape[-1]).float(), labels[:, 1:].reshape(-1))


def _block(block: nn.Module, hidden: Tensor, heads: int) -> Tensor:
    """One decoder layer over hidden (B, C, D)."""
    batch, size, width = hidden.shape
    qkv = block.attn.c_attn(block.ln_1(hidden)).view(batch, size, 3, heads, width // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / math.sqrt(width // heads)
    hidden_from = torch.ones(size, size, dtype=torch.bool, device=hidden.device).triu(1)
    weights = scores.masked_fill(hidden_from, float("-inf")).softmax(-1)
    mixed = (weights.to(value.dtype) @ value).transpose(1, 2).reshape(batch, size, width)
    hidden = hidden + block.attn.c_proj(mixed)
    x = block.mlp.c_fc(block.ln_2(hidden))
    x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))
    return hidden + block.mlp.c_proj(x)


def _features(x: Tensor, nu: int) -> Tensor:
    x = torch.cat((x.relu(), (-x).relu()), dim=-1).float()
    return torch.cat([x * x.roll(shift, dims=-1) for shift in range(1, nu + 1)], dim=-1)


def _read(own: ArmtLayer, hidden: Tensor, memory: Memory) -> Tensor:
    A, z = memory
    queries = _features(F.linear(hidden, own.W_q), own.nu)
    with torch.autocast(hidden.device.type, enabled=False):
        return ((queries @ A) / ((queries * z[:, None]).sum(-1, keepdim=True) + EPSILON)).to(hidden.dtype)


def _write(own: ArmtLayer, tokens: Tensor, memory: Memory | None) -> Memory:
    keys, values = _features(F.linear(tokens, own.W_k), own.nu), F.linear(tokens, own.W_v).float()
    beta = F.linear(tokens, own.W_b, own.bias_b).float().sigmoid()
    with torch.autocast(tokens.device.type, enabled=False):
        if memory is None:
            return keys.transpose(1, 2) @ (beta * values), keys.sum(1)
        A, z = memory
        overlap = (keys * z[:, None]).sum(-1, keepdim=True) + EPSILON
        new = (1 - overlap / ((keys * keys).sum(-1, keepdim=True) + EPSILON)).clamp(0, 1).detach()
        return A + keys.transpose(1, 2) @ (beta * (values - (keys @ A) / overlap)), z + (new * keys).sum(1)
