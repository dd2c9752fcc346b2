"""Properties of `ArmtForCausalLM`: the backbone inside, cutting, padding, labels, saving, generation."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from modeling_armt import ArmtConfig, ArmtForCausalLM, MemoryState

VOCAB, SEGMENT, MEMORY = 31, 6, 3


def backbone_config(family, positions=32):
    sizes = dict(vocab_size=VOCAB, max_position_embeddings=positions, bos_token_id=0, eos_token_id=0)
    if family == "gpt2":
        sizes["n_positions"] = sizes.pop("max_position_embeddings")
        return GPT2Config(**sizes, n_embd=16, n_layer=3, n_head=2, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    return LlamaConfig(
        **sizes, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip


@pytest.fixture(params=["gpt2", "llama"])
def family(request):
    return request.param


def make(family, shake=True, **options):
    torch.manual_seed(1)
    options = dict(segment_size=SEGMENT, num_mem_tokens=MEMORY, d_mem=4) | options
    model = ArmtForCausalLM.from_backbone(backbone_config(family), **options).eval()
    if shake:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
            for layer in model.memory_layers.values():
                layer.W_v.normal_(std=0.3)
    return model


def tokens(*shape, seed=0):
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_memory_off_equals_the_backbone_on_each_segment(family, attention):
    config = backbone_config(family)
    config._attn_implementation = attention
    model = ArmtForCausalLM.from_backbone(config, segment_size=SEGMENT, num_mem_tokens=0).eval()
    ids = tokens(2, 2 * SEGMENT + 1)
    parts = [model.backbone(part).logits for part in ids.split(SEGMENT, dim=1)]
    close(model(ids).logits, torch.cat(parts, dim=1))


def test_a_fresh_wrap_equals_the_backbone_on_each_segment(family):
    model = make(family, shake=False)
    ids = tokens(2, 2 * SEGMENT + 1)
    parts = [model.backbone(part).logits for part in ids.split(SEGMENT, dim=1)]
    close(model(ids).logits, torch.cat(parts, dim=1))


def test_whole_equals_chained(family):
    model = make(family)
    ids = tokens(2, 5 * SEGMENT + 2)
    whole = model(ids)
    state, logits = None, []
    for part in ids.split(2 * SEGMENT, dim=1):
        output = model(part, memory_state=state)
        state = output.memory_state
        logits.append(output.logits)
    close(torch.cat(logits, dim=1), whole.logits)
    close(state.A, whole.memory_state.A)
    close(state.z, whole.memory_state.z)
    assert state.segments_seen.tolist() == [6, 6]


def test_memory_changes_later_segments_only(family):
    model = make(family)
    ids = tokens(1, 3 * SEGMENT)
    other = ids.clone()
    other[0, 1] = (ids[0, 1] + 1) % VOCAB
    difference = (model(ids).logits - model(other).logits).abs().amax(-1)[0]
    assert difference[0] == 0 and difference[SEGMENT:].min() > 1e-4


@pytest.mark.parametrize("alignment", ["left", "right", "center"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_batch_gives_each_row_what_the_row_gives_alone(family, alignment, padding):
    model = make(family, segment_alignment=alignment)
    lengths = [2 * SEGMENT + 3, SEGMENT - 2, 3 * SEGMENT, SEGMENT]
    rows = [tokens(1, length, seed=length) for length in lengths]
    width = max(lengths)
    ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.long)
    slices = [slice(0, n) if padding == "right" else slice(width - n, width) for n in lengths]
    for i, row in enumerate(rows):
        ids[i, slices[i]], mask[i, slices[i]] = row, 1
    labels = ids.masked_fill((ids % 2 == 0) | (mask == 0), -100)
    for i in range(4):
        labels[i, slices[i].start] = -100
    batch = model(ids, attention_mask=mask, labels=labels, output_logits=True)
    batch.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    total = (labels[:, 1:] != -100).sum()
    for i, row in enumerate(rows):
        row_labels = labels[i : i + 1, slices[i]]
        alone = model(row, labels=row_labels, output_logits=True)
        close(batch.logits[i : i + 1, slices[i]], alone.logits)
        close(batch.memory_state.select([i]).A, alone.memory_state.A)
        close(batch.memory_state.select([i]).z, alone.memory_state.z)
        assert batch.memory_state.segments_seen[i] == alone.memory_state.segments_seen[0]
        (alone.loss * (row_labels[:, 1:] != -100).sum() / total).backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        close(gradient, parameter.grad)


def test_loss_at_labels_only_equals_loss_from_full_logits(family):
    model = make(family)
    ids = tokens(3, 2 * SEGMENT + 4)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.7, -100)
    labels[0, SEGMENT] = ids[0, SEGMENT]  # predicted by the segment before
    lean = model(ids, labels=labels)
    full = model(ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(full.transpose(1, 2), labels[:, 1:])
    close(lean.loss, expected)
    assert lean.logits is None
    close(lean.labelled_logits, full[labels[:, 1:] != -100])


def test_without_the_last_write_the_loss_is_the_same(family):
    model = make(family)
    ids = tokens(2, 2 * SEGMENT)
    output = model(ids, labels=ids, output_memory_state=False)
    close(output.loss, model(ids, labels=ids).loss)
    assert output.memory_state is None


def test_embeddings_as_input_equal_ids(family):
    model = make(family)
    ids = tokens(2, SEGMENT + 1)
    close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_bptt_depth_cuts_gradients_exactly(family, depth):
    cut, full = make(family, bptt_depth=depth), make(family)
    ids = tokens(1, 4 * SEGMENT)
    labels = ids.clone()
    labels[:, : 3 * SEGMENT + 1] = -100  # the last segment only
    grads = []
    for model in (cut, full):
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=embeddings, labels=labels).loss.backward()
        grads.append(embeddings.grad[0].split(SEGMENT))
    for segment in range(4):
        if segment >= 4 - depth:
            assert grads[0][segment].abs().max() > 0
        else:
            assert grads[0][segment].abs().max() == 0
    close(grads[0][3], grads[1][3])


@pytest.mark.parametrize("length", [SEGMENT - 1, SEGMENT, 2 * SEGMENT])
def test_every_parameter_gets_a_gradient_whatever_the_number_of_segments(family, length):
    model = make(family).train()
    ids = tokens(1, length)
    model(ids, labels=ids, output_memory_state=False).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_freezing_the_backbone_leaves_exactly_the_memory(family):
    model = make(family)
    model.freeze_backbone()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "memory" in name} and len(trained) == 1 + 3 * 5


def test_a_saved_folder_loads_by_auto_classes_with_the_same_output(family, tmp_path):
    model = make(family, nu=2, use_correction=False, segment_alignment="right")
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.glob("*model*")] == [".safetensors"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, ArmtForCausalLM)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), ArmtConfig)
    ids = tokens(2, 3 * SEGMENT + 1)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert (
        loaded.backbone.get_output_embeddings().weight.data_ptr() == (loaded.get_input_embeddings().weight.data_ptr())
        or not loaded.config.tie_word_embeddings
    )


def test_wrapping_keeps_the_weights_of_a_model_or_a_local_folder(family, tmp_path):
    backbone = AutoModelForCausalLM.from_config(backbone_config(family))
    backbone.save_pretrained(tmp_path)
    ids = tokens(1, SEGMENT)
    expected = backbone.eval()(ids).logits
    for source in (backbone, str(tmp_path)):
        wrapped = ArmtForCausalLM.from_backbone(source, segment_size=SEGMENT, num_mem_tokens=MEMORY, d_mem=4).eval()
        close(wrapped(ids).logits, expected)


def test_under_bf16_autocast_the_state_stays_float32(family):
    model = make(family)
    ids = tokens(2, 3 * SEGMENT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids)
    assert output.memory_state.A.dtype == output.memory_state.z.dtype == torch.float32
    assert (output.logits.float() - model(ids).logits).abs().max() < 0.5


@pytest.mark.parametrize("prompt", [SEGMENT - 2, SEGMENT, 2 * SEGMENT + 1])
def test_greedy_generation_equals_rereading_everything_for_each_token(family, prompt):
    model = make(family)
    ids = tokens(2, prompt)
    generated = model.generate(ids, max_new_tokens=2 * SEGMENT + 1)
    for _ in range(2 * SEGMENT + 1):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(generated, ids)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_padded_batch_generates_what_each_row_generates_alone(family, padding):
    model = make(family)
    lengths = [2 * SEGMENT + 3, SEGMENT - 2, SEGMENT]
    rows = [tokens(1, length, seed=length) for length in lengths]
    width = max(lengths)
    ids, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        place = slice(0, n) if padding == "right" else slice(width - n, width)
        ids[i, place], mask[i, place] = row, 1
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=SEGMENT + 2)
    for i, row in enumerate(rows):
        alone = model.generate(row, max_new_tokens=SEGMENT + 2)
        assert torch.equal(generated[i, width:], alone[0, row.shape[1] :])


def test_generation_stops_at_the_end_token(family):
    model = make(family)
    ids = tokens(2, SEGMENT)
    free = model.generate(ids, max_new_tokens=8)[:, SEGMENT:]
    end = int(free[0, 2])
    stopped = model.generate(ids, max_new_tokens=8, eos_token_id=end)[:, SEGMENT:]
    first = free[0].tolist().index(end)
    assert stopped[0, : first + 1].tolist() == free[0, : first + 1].tolist()
    assert (stopped[0, first:] == end).all()


BAD_CALLS = {
    "no input": (dict(), "either input_ids or inputs_embeds"),
    "mask of another shape": (dict(input_ids=tokens(2, 4), attention_mask=torch.ones(2, 5)), r"\(2, 5\).*\(2, 4\)"),
    "labels of another shape": (dict(input_ids=tokens(2, 4), labels=tokens(2, 3)), r"\(2, 3\).*\(2, 4\)"),
    "row without a token": (dict(input_ids=tokens(2, 2), attention_mask=torch.tensor([[1, 1], [0, 0]])), "row 1"),
    "label behind padding": (
        dict(input_ids=tokens(1, 3), labels=tokens(1, 3), attention_mask=torch.tensor([[0, 1, 1]])),
        r"labels\[0, 1\]",
    ),
    "state of another batch": (
        dict(input_ids=tokens(2, 4), memory_state=MemoryState.zeros(3, 1, 24, 16)),
        r"\(3, 1, 24, 16\).*\(3, 2, 24, 16\)",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_refused_with_the_numbers(case):
    arguments, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        make("gpt2")(**arguments)


def test_a_bad_configuration_is_refused(family):
    with pytest.raises(ValueError, match="30 .* 3 = 33 .* 32 positions"):
        make(family, segment_size=30)
    for option, value in [("segment_size", 0), ("nu", 8), ("segment_alignment", "up"), ("bptt_depth", 0),
                          ("memory_layers", [3]), ("memory_layers", [])]:  # fmt: skip
        with pytest.raises(ValueError, match=option):
            make(family, **{option: value})
    config = MistralConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    with pytest.raises(ValueError, match="'mistral'; supported: gpt2, llama"):
        ArmtForCausalLM.from_backbone(config)


def test_only_chosen_layers_carry_a_memory(family):
    model = make(family, memory_layers=[1, 2])
    assert {name.split(".")[1] for name, _ in model.memory_layers.named_parameters(prefix="m")} == {"1", "2"}
    ids = tokens(2, 3 * SEGMENT)
    whole = model(ids)
    assert whole.memory_state.A.shape[0] == 2
    full = make(family)
    full.load_state_dict(model.state_dict(), strict=False)
    torch.nn.init.zeros_(full.memory_layers["0"].W_v)  # a memory of zeros
    close(whole.logits, full(ids).logits)
    close(model(ids[:, SEGMENT:], memory_state=model(ids[:, :SEGMENT]).memory_state).logits, whole.logits[:, SEGMENT:])
    assert model.generate(ids, max_new_tokens=SEGMENT + 1).shape[1] == 4 * SEGMENT + 1


def test_gradient_checkpointing_of_the_backbone_keeps_gradients(family):
    gradients = []
    for checkpointing in (False, True):
        model = make(family).train()
        if checkpointing:
            model.backbone.gradient_checkpointing_enable()
        ids = tokens(2, 2 * SEGMENT)
        model(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        close(plain, checkpointed)
