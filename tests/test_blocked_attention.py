"""Attention in blocks of queries is torch's fused one, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from test_diagonal import close, in_double  # noqa: F401  the fixture
from test_narrow import assert_same_step, step
from tiny_models import SEGMENT, make, tokens

from modeling_armt.backbones import blocked_attention
from modeling_armt.backbones.blocked_attention import BLOCK, BlockedAttention

HEADS, WIDTH = 2, 16


@pytest.fixture
def calls(monkeypatch):
    """Sizes of what was computed in blocks."""
    found, attend = [], blocked_attention._attend
    monkeypatch.setattr(
        blocked_attention,
        "_attend",
        lambda query, *args, **options: found.append(query.shape) or attend(query, *args, **options),
    )
    return found


def heads(positions, rows=2, dtype=torch.float64):
    """Query, key and value as views of one product, as most families have them."""
    torch.manual_seed(0)
    whole = torch.randn(rows, positions, 3 * HEADS * WIDTH, dtype=dtype, requires_grad=True)
    parts = [part.unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for part in whole.chunk(3, dim=2)]
    return whole, parts


def value_and_gradient(positions, rows, **options):
    whole, parts = heads(positions, rows)
    output = F.scaled_dot_product_attention(*parts, is_causal=True, **options)
    return output, torch.autograd.grad((output * torch.linspace(-1, 1, WIDTH)).square().sum(), whole)[0]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}])
@pytest.mark.parametrize("positions", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_value_and_gradient_are_those_of_torch(calls, positions, options, rows):
    expected = value_and_gradient(positions, rows, **options)
    with BlockedAttention():
        found = value_and_gradient(positions, rows, **options)
    for mine, theirs in zip(found, expected):
        close(mine, theirs, 1e-12)
    assert len(calls) == 1


def test_autocast_is_left_to_torch(calls):
    _, parts = heads(9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.scaled_dot_product_attention(*parts, is_causal=True)
        with BlockedAttention():
            found = F.scaled_dot_product_attention(*parts, is_causal=True)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected) and not calls


def test_arguments_may_be_named_or_not(calls):
    _, (query, key, value) = heads(9)
    with BlockedAttention():
        named = F.scaled_dot_product_attention(query=query, key=key, value=value, is_causal=True)
        close(F.scaled_dot_product_attention(query, key, value, None, 0.0, True), named, 1e-12)
    assert len(calls) == 2


OTHERS = {
    "a mask": dict(attn_mask=torch.ones(9, 9).bool().tril()),
    "no order": {},
    "dropout": dict(is_causal=True, dropout_p=0.1),
    "bfloat16": dict(is_causal=True, dtype=torch.bfloat16),
    "many positions": dict(is_causal=True, positions=blocked_attention.KEPT * WIDTH + 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_attention_is_left_to_torch(calls, name):
    options = dict(OTHERS[name])
    _, parts = heads(options.pop("positions", 9), dtype=options.pop("dtype", torch.float32))
    torch.manual_seed(1)
    expected = F.scaled_dot_product_attention(*parts, **options)
    torch.manual_seed(1)
    with BlockedAttention():
        assert torch.equal(F.scaled_dot_product_attention(*parts, **options), expected)
    assert not calls


@pytest.mark.parametrize("options", [{}, dict(segment_checkpointing=True)])
@pytest.mark.parametrize("kind", ["armt", "rmt"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "olmo2", "falcon", "falcon-7b"])
def test_training_steps_are_the_same(in_double, monkeypatch, calls, family, kind, options):  # noqa: F811
    monkeypatch.setattr(blocked_attention, "BLOCK", 4)
    model, ids = make(family, kind, **options), tokens(2, 3 * SEGMENT)
    found, count = step(model, ids), len(calls)
    monkeypatch.setattr(blocked_attention, "_fits", lambda *args, **options: False)
    assert_same_step(found, step(model, ids))
    assert len(calls) == count and (count > 0) == (family not in ("olmo2", "falcon-7b"))  # with fewer heads of keys


def test_layers_that_are_run_again_are_left_to_torch(calls):
    model = make()
    model.gradient_checkpointing_enable()
    step(model, tokens(2, 2 * SEGMENT))
    assert not calls
