"""Every supported family of decoders, in tiny random models."""

import pytest
import torch
from tiny_models import CONFIGS, MEMORY, SEGMENT, VOCAB, WIDTH, backbone_config, close, make, padded, tokens
from transformers import BloomConfig, FalconConfig

from modeling_armt import ArmtForCausalLM


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_memory_off_equals_the_backbone_on_each_segment(family, attention):
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("the Hugging Face model itself has no SDPA: its attention logits are capped")
    model = make(family, attention=attention, num_mem_tokens=0)
    ids = tokens(2, 2 * SEGMENT + 1)
    parts = [model.backbone(part).logits for part in ids.split(SEGMENT, dim=1)]
    close(model(ids).logits, torch.cat(parts, dim=1))


def test_whole_equals_chained(family, kind):
    model = make(family, kind)
    ids = tokens(2, 4 * SEGMENT + 2)
    whole = model(ids)
    state, logits = None, []
    for part in ids.split(2 * SEGMENT, dim=1):
        output = model(part, memory_state=state)
        state = output.memory_state
        logits.append(output.logits)
    close(torch.cat(logits, dim=1), whole.logits)
    for mine, theirs in zip(state.unbind(), whole.memory_state.unbind(), strict=True):
        close(mine, theirs)
    assert state.segments_seen.tolist() == [5, 5]


def test_gradients_reach_every_parameter_of_the_memory(family, kind):
    model = make(family, kind).train()
    ids = tokens(2, 3 * SEGMENT)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_each_row_what_the_row_gives_alone(family, kind, side):
    model = make(family, kind)
    rows = [tokens(1, n, seed=n) for n in (2 * SEGMENT + 3, SEGMENT - 2, SEGMENT)]
    ids, mask, places = padded(rows, side)
    output = model(ids, attention_mask=mask)
    for i, row in enumerate(rows):
        alone = model(row)
        close(output.logits[i : i + 1, places[i]], alone.logits)
        for mine, theirs in zip(output.memory_state.select([i]).unbind(), alone.memory_state.unbind(), strict=True):
            scale = theirs.abs().max().clamp(min=1)  # of the state: tens, where layers end in a norm
            close(mine / scale, theirs / scale)


def test_token_by_token_equals_one_forward_for_rows_at_different_places(family, kind):
    model = make(family, kind)
    rows = [tokens(1, n, seed=n) for n in (SEGMENT + 2, 4)]
    more = tokens(2, 2 * SEGMENT, seed=9)
    ids, mask, _ = padded(rows, "left")
    output = model(ids, attention_mask=mask, use_cache=True)
    steps = []
    for token in more.split(1, dim=1):
        output = model(token, cache=output.cache)
        steps.append(output.logits)
    for i, row in enumerate(rows):
        whole = model(torch.cat((row, more[i : i + 1]), dim=1)).logits
        close(torch.cat(steps, dim=1)[i], whole[0, row.shape[1] :], 1e-4)


def test_an_unknown_family_is_refused_with_what_is_supported_and_the_file_to_add():
    config = BloomConfig(vocab_size=VOCAB, hidden_size=WIDTH, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match=r"'bloom'; supported: .*gpt2.*smollm3.*modeling_armt/backbones/FAMILY.py"):
        ArmtForCausalLM.from_backbone(config)
    config = FalconConfig(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, alibi=True)
    with pytest.raises(ValueError, match="alibi=True"):
        ArmtForCausalLM.from_backbone(config)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_reserved_positions_leave_those_of_the_backbone_to_the_text(family, kind):
    model = make(family, kind, positions=SEGMENT, memory_positions="reserved")
    taken = MEMORY if kind == "armt" else 2 * MEMORY
    assert model.memory_positions.shape == (taken, WIDTH)
    ids = tokens(2, 3 * SEGMENT)
    model(ids, labels=ids).loss.backward()
    assert model.memory_positions.grad.abs().amax(-1).min() > 0
    first, second = model(ids[:, : 2 * SEGMENT]), model(ids[:, :SEGMENT])
    close(first.logits[:, SEGMENT:], model(ids[:, SEGMENT : 2 * SEGMENT], memory_state=second.memory_state).logits)
    if kind == "armt":  # the text stands where it stands in the backbone
        close(second.logits, model.backbone(ids[:, :SEGMENT]).logits)
    with pytest.raises(ValueError, match=rf"{SEGMENT} \+ {taken} memory tokens .* {SEGMENT} positions"):
        make(family, kind, positions=SEGMENT)


def test_reserved_positions_are_refused_where_positions_are_computed():
    assert backbone_config("llama").model_type == "llama"
    with pytest.raises(ValueError, match="'reserved' is for learned positions; llama"):
        make("llama", memory_positions="reserved")
