"""Where nobody asks for hidden states of a segment's text, the last layer leaves them out; nothing else changes.

Compared in float64 with layers that compute everything, to 1e-9.
"""

from contextlib import contextmanager

import pytest
import torch
from test_diagonal import close, in_double  # noqa: F401  the fixture
from test_executor_choice import compiling, graphs  # noqa: F401  the fixture
from tiny_models import CONFIGS, LORA, SEGMENT, make, padded, tokens

from modeling_armt.backbones import base

LABELLED = SEGMENT - 1  # tokens at the end
OPTIONS = {
    "LoRA": dict(lora=LORA),
    "replayed": dict(segment_checkpointing=True),
    "short graphs": dict(bptt_depth=2),
    "memory below the last layer": dict(memory_layers=[0, 1]),
    "short segment first": dict(segment_alignment="right"),
    "diagonals": dict(executor="diagonal"),
    "the faster order": dict(executor="auto"),
}


@pytest.fixture
def narrowings(monkeypatch):
    """Counts the runs of a layer that left positions out, and can forbid them."""

    class Narrowings:
        count, allowed = 0, True

    plain, found = base.narrowed, Narrowings()

    @contextmanager
    def counted(layer, skipped):
        found.count += 1
        with plain(layer, skipped):
            yield

    monkeypatch.setattr(base, "narrowed", counted)
    monkeypatch.setattr(base, "runs_again", lambda layer, runs=base.runs_again: not found.allowed or runs(layer))
    return found


def step(model, ids, mask=None):
    """Loss, memory and gradients of a training step whose labels are the last tokens."""
    labels = ids.clone()
    labels[:, :-LABELLED] = -100
    if mask is not None:
        labels[(mask == 0) | (mask.cumsum(1) == 1)] = -100
    model.train().zero_grad()
    output = model(ids, attention_mask=mask, labels=labels)
    (output.loss + sum(part.square().mean() for part in output.memory_state.unbind())).backward()
    return output.loss, output.memory_state, {name: p.grad for name, p in model.named_parameters()}


def assert_same_step(one, other, tolerance=1e-9):
    close(one[0], other[0], tolerance)
    for mine, others in zip(one[1].unbind(), other[1].unbind(), strict=True):
        close(mine, others, tolerance)
    for name, gradient in one[2].items():
        assert (gradient is None) == (other[2][name] is None), name
        if gradient is not None:
            close(gradient, other[2][name], tolerance)


def narrowed_and_whole(narrowings, model, function):
    """What a function of the model gives in either way, and how often positions were left out."""
    narrowed, count = function(model), narrowings.count
    narrowings.allowed = False
    return narrowed, function(model), count


@pytest.mark.parametrize("kind", ["armt", "rmt"])
@pytest.mark.parametrize("family", CONFIGS)
def test_loss_memory_and_gradients_are_those_of_whole_layers(in_double, narrowings, family, kind):  # noqa: F811
    ids = tokens(2, 4 * SEGMENT)
    one, other, count = narrowed_and_whole(narrowings, make(family, kind), lambda model: step(model, ids))
    assert_same_step(one, other)
    assert count == 3


@pytest.mark.parametrize("kind", ["armt", "rmt"])
@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_read_is_that_of_whole_layers(in_double, narrowings, family, kind):  # noqa: F811
    ids = tokens(2, 3 * SEGMENT + 2)
    one, other, count = narrowed_and_whole(narrowings, make(family, kind), lambda model: model.read(ids))
    for mine, others in zip(one.unbind(), other.unbind(), strict=True):
        close(mine, others)
    assert count == 4


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_option_is_kept(in_double, narrowings, family, name):  # noqa: F811
    ids = tokens(2, 4 * SEGMENT - 1)
    one, other, _ = narrowed_and_whole(narrowings, make(family, **OPTIONS[name]), lambda model: step(model, ids))
    assert_same_step(one, other)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "falcon"])
def test_rows_of_different_lengths(in_double, narrowings, family, side):  # noqa: F811
    ids, mask, _ = padded([tokens(1, n, seed=n) for n in (4 * SEGMENT + 1, SEGMENT - 1, 3 * SEGMENT)], side)
    one, other, count = narrowed_and_whole(narrowings, make(family), lambda model: step(model, ids, mask))
    assert_same_step(one, other)
    assert count > 0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_attention_that_is_not_fused_in_float32(narrowings, family, side):
    ids, mask, _ = padded([tokens(1, n, seed=n) for n in (4 * SEGMENT + 1, SEGMENT - 1, 3 * SEGMENT)], side)
    model = make(family, attention="eager")
    one, other, count = narrowed_and_whole(narrowings, model, lambda model: step(model, ids, mask))
    assert_same_step(one, other, 1e-5)
    assert count > 0


def test_compiled_layers_but_for_the_last(graphs, narrowings):  # noqa: F811
    ids = tokens(2, 4 * SEGMENT)
    one, other = step(make(), ids), step(compiling(make()), ids)
    assert_same_step(one, other, 1e-4)
    assert narrowings.count == 6


def test_layers_that_are_run_again_are_run_whole(narrowings):
    model = make()
    model.gradient_checkpointing_enable()
    assert_same_step(step(model, tokens(2, 3 * SEGMENT)), step(make(), tokens(2, 3 * SEGMENT)), 1e-5)
    assert narrowings.count == 2  # of the other model


def test_hidden_states_that_are_asked_for_are_computed(narrowings):
    model, ids = make(), tokens(2, 3 * SEGMENT)
    whole = model(ids)
    assert narrowings.count == 0
    labels = ids.masked_fill(torch.arange(3 * SEGMENT) % SEGMENT > 1, -100)  # some in each segment
    close(model(ids, labels=labels, output_logits=True).logits, whole.logits, 1e-6)
    assert narrowings.count == 0
    close(model(ids, logits_to_keep=2).logits, whole.logits[:, -2:], 1e-5)
    assert narrowings.count == 2
    model.generate(ids, max_new_tokens=2 * SEGMENT, do_sample=False, pad_token_id=0)
    assert narrowings.count == 4  # the closed segments of the prompt


def test_no_hook_stays_and_other_passes_are_whole(narrowings):
    model, ids = make(), tokens(2, 3 * SEGMENT)
    before = model(ids).logits
    model.read(ids)
    hooks = [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert not hooks and narrowings.count == 3
    assert torch.equal(model(ids).logits, before)
