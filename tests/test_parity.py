"""Outputs, states and gradients equal the equations (`naive_armt`) and, where it is at hand, the published code."""

import os
from pathlib import Path

import pytest
import torch
from naive_armt import NaiveArmt
from safetensors import safe_open
from transformers import GPT2Config

from modeling_armt import ArmtForCausalLM
from modeling_armt.interchange import import_weights, our_name

REFERENCE = Path(os.environ.get("ARMT_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))
needs_reference = pytest.mark.skipif(
    not (REFERENCE / "armt_gpt2.safetensors").exists(), reason=f"no published vectors in {REFERENCE}"
)


def gpt2(vocab=23, positions=24, width=12, layers=2, heads=2):
    return GPT2Config(
        vocab_size=vocab, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


@pytest.mark.parametrize("use_correction", [True, False])
def test_outputs_states_and_gradients_equal_the_equations(use_correction):
    torch.manual_seed(3)
    model = ArmtForCausalLM.from_backbone(
        gpt2(), segment_size=5, num_mem_tokens=3, d_mem=3, nu=2, use_correction=use_correction
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for layer in model.memory_layers.values():
            layer.W_v.normal_(std=0.5)
    ids = torch.randint(23, (2, 13))
    labels = ids.masked_fill(torch.rand(2, 13) < 0.5, -100)
    naive = NaiveArmt(model.state_dict(), heads=2, segment_size=5, nu=2, use_correction=use_correction)
    output = model(ids, labels=labels, output_logits=True)
    output.loss.backward()
    loss = naive.loss(ids, labels)
    loss.backward()
    torch.testing.assert_close(output.loss.double(), loss, atol=1e-5, rtol=0)
    for row in range(2):
        logits, states = naive.row(ids[row].tolist())
        torch.testing.assert_close(output.logits[row].double(), logits, atol=1e-5, rtol=0)
        for layer, (A, z) in enumerate(states[-1]):
            torch.testing.assert_close(output.memory_state.A[layer, row].double(), A, atol=1e-5, rtol=0)
            torch.testing.assert_close(output.memory_state.z[layer, row].double(), z, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        expected = naive.w[name].grad
        assert relative_error(parameter.grad, expected) < 1e-4, name


def relative_error(value, expected):
    return ((value - expected).norm() / (expected.norm() + 1e-12)).item()


@pytest.fixture(scope="module", params=["armt", "rmt"])
def published(request):
    with safe_open(REFERENCE / f"{request.param}_gpt2.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, file.metadata()


def published_model(published, tmp_path):
    """The model of the vectors, imported as a user imports a checkpoint."""
    tensors, metadata = published
    weights = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
    positions, width = weights["model.transformer.wpe.weight"].shape
    config = gpt2(
        vocab=len(weights["model.transformer.wte.weight"]), positions=positions, width=width, layers=3, heads=4
    )
    config.save_pretrained(tmp_path)
    options = {name: int(metadata[name]) for name in ("segment_size", "nu") if name in metadata}
    model, unused = import_weights(weights, str(tmp_path), **options)
    assert not unused
    return model


def published_labels(tensors):
    ids = tensors["input_ids"]
    labels = torch.full_like(ids, -100)
    wanted = tensors["labels_mask"].bool()
    labels[:, 1:][wanted[:, :-1]] = ids[:, 1:][wanted[:, :-1]]
    return labels


def published_gradients(tensors):
    """By our names."""
    return {our_name(n.removeprefix("grad.")): t for n, t in tensors.items() if n.startswith("grad.")}


@needs_reference
def test_logits_loss_states_and_gradients_equal_the_published_code(published, tmp_path):
    tensors, _ = published
    model = published_model(published, tmp_path)
    ids, mask = tensors["input_ids"], tensors["attention_mask"]
    labels = published_labels(tensors)
    output = model(ids, attention_mask=mask, labels=labels, output_logits=True)
    torch.testing.assert_close(output.logits, tensors["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, tensors["loss"][0], atol=1e-5, rtol=0)
    output.loss.backward()
    gradients = published_gradients(tensors)
    named = dict(model.named_parameters())
    assert gradients.keys() == named.keys()
    for name, expected in gradients.items():
        assert relative_error(named[name].grad, expected) < 1e-4, name
    if model.config.model_type == "rmt":  # its vectors hold no states
        return
    size = model.config.segment_size
    for segment in range(ids.shape[1] // size + 1):
        state = model(ids[:, : (segment + 1) * size]).memory_state
        for layer in range(model.config.num_hidden_layers):
            prefix = f"state.segment{segment}.layer{layer}."
            torch.testing.assert_close(state.A[layer], tensors[prefix + "A"], atol=1e-5, rtol=0)
            torch.testing.assert_close(state.z[layer], tensors[prefix + "z"], atol=1e-5, rtol=0)


@needs_reference
def test_greedy_continuation_equals_the_published_code(published, tmp_path):
    tensors, _ = published
    model = published_model(published, tmp_path)
    prompt = tensors["input_ids"][:, :-5]
    expected = tensors["generated"]
    generated = model.generate(
        prompt, max_new_tokens=expected.shape[1], do_sample=False, eos_token_id=None, commit_open_segment=False
    )
    assert torch.equal(generated[:, prompt.shape[1] :], expected)
