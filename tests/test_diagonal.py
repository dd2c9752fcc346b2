"""The diagonal order gives what the sequential one gives: outputs, memory, all gradients.

Compared in float64, to 1e-9: in float32 a memory that divides by almost nothing makes much of rounding, and little
would be left to tell a right order from a wrong one.
"""

import pytest
import torch
from tiny_models import CONFIGS, LORA, SEGMENT, make, padded, tokens

from modeling_armt import ArmtForCausalLM


@pytest.fixture
def in_double(monkeypatch):
    """All arithmetic in float64, that of the memory too."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "float", torch.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def both(family="llama", **options):
    return make(family, **options), make(family, executor="diagonal", **options)


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def assert_same(a, b, tolerance=1e-9):
    close(a.logits, b.logits, tolerance)
    close(a.memory_state.A, b.memory_state.A, tolerance)
    close(a.memory_state.z, b.memory_state.z, tolerance)
    assert torch.equal(a.memory_state.segments_seen, b.memory_state.segments_seen)


def gradients(model, ids, **inputs):
    model.zero_grad()
    model.train()
    output = model(ids, labels=ids, **inputs)
    output.loss.backward()
    return output.loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(one, other, ids, tolerance=1e-9, **inputs):
    (a, mine), (b, others) = (gradients(model, ids, **inputs) for model in (one, other))
    close(a, b, tolerance)
    assert any(gradient is not None and gradient.any() for gradient in mine.values())
    for name, gradient in mine.items():
        assert (gradient is None) == (others[name] is None), name
        if gradient is not None:
            close(gradient, others[name], tolerance)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("segments", [1, 2, 5])  # of three layers: fewer and more
def test_outputs_and_memory_are_the_same(in_double, family, segments):
    one, other = both(family)
    ids = tokens(2, segments * SEGMENT - 1)  # the last segment is a short one
    a, b = one(ids), other(ids)
    assert_same(a, b)
    assert_same(one(ids, memory_state=a.memory_state), other(ids, memory_state=b.memory_state))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("reads_on", [True, False])
def test_gradients_are_the_same(in_double, family, reads_on):
    one, other = both(family)
    assert_same_gradients(one, other, tokens(2, 5 * SEGMENT - 2), output_memory_state=reads_on)


OPTIONS = {
    "memory in some layers": dict(memory_layers=[0, 2]),
    "memory in one layer": dict(memory_layers=[1]),
    "no memory": dict(num_mem_tokens=0),
    "no correction": dict(use_correction=False),
    "short graphs": dict(bptt_depth=2),
    "replayed": dict(segment_checkpointing=True),
    "short segment first": dict(segment_alignment="right"),
    "even segments": dict(segment_alignment="center"),
    "LoRA": dict(lora=LORA),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_the_recurrence_is_kept(in_double, name):
    one, other = both("llama", **OPTIONS[name])
    ids = tokens(2, 4 * SEGMENT + 3)
    if OPTIONS[name].get("num_mem_tokens") == 0:
        close(one(ids).logits, other(ids).logits)
    else:
        assert_same(one(ids), other(ids))
    assert_same_gradients(one, other, ids)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_different_lengths_are_left_to_the_sequential_order(in_double, side):
    one, other = both()
    ids, mask, _ = padded([tokens(1, 3 * SEGMENT), tokens(1, 2 * SEGMENT + 1, seed=1)], side)
    a, b = one(ids, attention_mask=mask), other(ids, attention_mask=mask)
    close(a.memory_state.A, b.memory_state.A)
    close(a.logits[mask.bool()], b.logits[mask.bool()])


def test_rows_whose_memory_is_empty_and_rows_whose_is_not_read_together(in_double):
    one, other = both()
    ids, state = tokens(2, 3 * SEGMENT), one(tokens(2, SEGMENT, seed=1)).memory_state
    state = one.empty_state(2).where(torch.tensor([True, False]), state)
    assert_same(one(ids, memory_state=state), other(ids, memory_state=state))


def test_gradients_reach_a_memory_that_was_handed_over(in_double):
    found = []
    for model in both():
        first = model(tokens(2, 2 * SEGMENT, seed=1))
        ids = tokens(2, 3 * SEGMENT)
        model(ids, labels=ids, memory_state=first.memory_state).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        close(gradient, found[1][name])


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_float32_agrees_to_rounding(family):
    one, other = both(family)
    assert_same(one(tokens(2, 3 * SEGMENT)), other(tokens(2, 3 * SEGMENT)), 1e-5)
    assert_same_gradients(one, other, tokens(2, 3 * SEGMENT), 1e-5)


def test_reading_and_generation_use_it_for_what_lies_before_the_open_segment(in_double, monkeypatch):
    one, other = both()
    ids, calls = tokens(2, 5 * SEGMENT + 2), []
    execute = ArmtForCausalLM.execute
    monkeypatch.setattr(
        ArmtForCausalLM, "execute", lambda self, *args, **k: calls.append(1) or execute(self, *args, **k)
    )
    close(one.read(ids).A, other.read(ids).A)
    written = [
        model.generate(ids, max_new_tokens=3 * SEGMENT, do_sample=False, pad_token_id=0) for model in (one, other)
    ]
    assert torch.equal(*written) and len(calls) == 4


def test_parameters_are_views_of_the_stack_and_nothing_is_held_twice():
    _, model = both("gpt2")
    model(tokens(1, 2 * SEGMENT))
    (stack,) = model.stacks()
    inside = {tensor.untyped_storage().data_ptr() for tensor in stack.storage.values()}
    layers = [*model.family.layers.parameters(), *model.memory_layers.parameters()]
    assert {parameter.untyped_storage().data_ptr() for parameter in layers} == inside
    assert sum(tensor.nbytes for tensor in stack.storage.values()) == sum(parameter.nbytes for parameter in layers)


def test_what_changes_a_parameter_changes_the_stack(tmp_path):
    one, other = both()
    ids = tokens(2, 3 * SEGMENT)
    for model in (one, other):
        model(ids)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        gradients(model, ids)
        optimizer.step()
    assert_same(one.eval()(ids), other.eval()(ids), 1e-4)
    other.load_state_dict(make("llama", shaken=False).state_dict())
    close(other(ids).logits, make("llama", shaken=False)(ids).logits, 1e-5)


def test_parameters_that_were_replaced_are_stacked_anew():
    one, other = both()
    ids = tokens(2, 3 * SEGMENT)
    other(ids)
    for model in (one, other):
        model.to(torch.bfloat16).to(torch.float32)
    assert_same(one(ids), other(ids), 1e-5)


def test_a_model_with_stacked_parameters_is_saved_and_copied_as_any_other(tmp_path):
    from copy import deepcopy

    _, model = both()
    ids = tokens(2, 3 * SEGMENT)
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    loaded = ArmtForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.executor == "diagonal"
    close(loaded(ids).logits, expected, 1e-6)
    copied = deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    close(model(ids).logits, expected, 1e-6)
    assert not copied(ids).logits.any()


def test_an_executor_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="executor is 'wavefront'; choose one of"):
        make(executor="wavefront")
