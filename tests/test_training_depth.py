"""Backpropagation through time: cut, replayed, and under what wraps a model in training."""

import pytest
import torch
from tiny_models import KINDS, LORA, MEMORY, SEGMENT, backbone_config, close, make, padded, shake, tokens
from torch.nn.parallel import DistributedDataParallel


def last_segment_labels(ids):
    labels = ids.clone()
    labels[:, : -SEGMENT + 1] = -100
    return labels


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_bptt_depth_cuts_gradients_and_leaves_the_rest_exact(family, kind, depth):
    model = make(family, kind, k2=depth)
    assert model.config.bptt_depth == model.config.k2 == depth
    ids = tokens(1, 4 * SEGMENT)
    labels = last_segment_labels(ids)
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embeddings, labels=labels).loss.backward()
    border = (4 - depth) * SEGMENT
    assert embeddings.grad[:, :border].abs().max() == 0
    assert embeddings.grad[0, border:].abs().amax(-1).view(depth, SEGMENT).amax(-1).min() > 0
    state = make(family, kind)(ids[:, :border]).memory_state.detach()
    tail = embeddings[:, border:].detach().requires_grad_()
    make(family, kind)(inputs_embeds=tail, labels=labels[:, border:], memory_state=state).loss.backward()
    close(embeddings.grad[:, border:], tail.grad)


def gradients(model, depth_of_layers=False, **inputs):
    if depth_of_layers:
        model.gradient_checkpointing_enable()
    model.train()
    torch.manual_seed(5)  # of dropout
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same_gradients(one, other):
    assert one.keys() == other.keys() and any(value.abs().max() > 0 for value in one.values())
    for name, value in one.items():
        close(value, other[name], 1e-6)


def ragged():
    ids, mask, _ = padded([tokens(1, n, seed=n) for n in (4 * SEGMENT + 1, SEGMENT - 1, 3 * SEGMENT)], "left")
    labels = ids.masked_fill(mask == 0, -100)
    for row, start in enumerate(mask.argmax(1)):
        labels[row, start] = -100
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


@pytest.mark.parametrize("options", [{}, {"bptt_depth": 2}, {"lora": LORA}], ids=["plain", "cut", "lora"])
@pytest.mark.parametrize("layers", [False, True], ids=["segments", "segments-and-layers"])
def test_replaying_segments_gives_the_same_gradients(family, kind, options, layers):
    plain = gradients(make(family, kind, **options), **ragged())
    replayed = gradients(make(family, kind, segment_checkpointing=True, **options), layers, **ragged())
    assert_same_gradients(plain, replayed)


def test_checkpointing_of_layers_alone_gives_the_same_gradients(family, kind):
    assert_same_gradients(gradients(make(family, kind), **ragged()), gradients(make(family, kind), True, **ragged()))


def test_replayed_segments_drop_out_the_same(kind):
    def with_dropout(**options):
        config = backbone_config("gpt2")
        config.resid_pdrop = config.embd_pdrop = 0.3
        model_class, defaults = KINDS[kind]
        return shake(
            model_class.from_backbone(config, segment_size=SEGMENT, num_mem_tokens=MEMORY, **defaults, **options)
        )

    plain, replayed = (gradients(with_dropout(**options), **ragged()) for options in ({}, {"segment_checkpointing": 1}))
    assert_same_gradients(plain, replayed)


def saved_elements(model, segments):
    """What autograd keeps outside of replayed parts, parameters left out."""
    parameters = {p.data_ptr() for p in model.parameters()}
    ids, saved = tokens(1, segments * SEGMENT), []

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(ids, labels=last_segment_labels(ids), output_memory_state=False)
    return sum(saved)


def test_with_segment_checkpointing_activations_inside_segments_are_not_kept(kind):
    growth = {}
    for replay in (False, True):
        model = make(kind=kind, segment_checkpointing=replay)
        growth[replay] = (saved_elements(model, 9) - saved_elements(model, 5)) / 4  # of one more segment
    assert growth[True] < 50 and growth[False] > 100 * growth[True]


@pytest.mark.parametrize("length", [SEGMENT - 1, SEGMENT, 2 * SEGMENT])
@pytest.mark.parametrize("options", [{}, {"bptt_depth": 1}, {"num_mem_tokens": 0}], ids=["plain", "cut", "no-memory"])
def test_every_parameter_gets_a_gradient_whatever_the_number_of_segments(family, kind, length, options):
    model = make(family, kind, **options).train()
    ids = tokens(1, length)
    model(ids, labels=ids, output_memory_state=False).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("replay", [False, True], ids=["kept", "replayed"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_ddp_finds_no_unused_parameter_and_the_same_gradients(process_group, kind, replay, lora):
    options = dict(segment_checkpointing=replay, lora=lora)
    wrapped = DistributedDataParallel(make(kind=kind, **options).train())
    for length in (SEGMENT, 3 * SEGMENT, 1 + SEGMENT):  # DDP raises in the forward after one with unused parameters
        ids = tokens(2, length)
        alone = gradients(make(kind=kind, **options), input_ids=ids, labels=ids)
        wrapped.zero_grad()
        wrapped(ids, labels=ids).loss.backward()
        assert_same_gradients(alone, {n: p.grad for n, p in wrapped.module.named_parameters() if p.requires_grad})
