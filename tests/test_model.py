"""Properties of the recurrent models: the backbone inside, padding, labels, saving, refusals."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MEMORY, SEGMENT, VOCAB, WIDTH, assert_same_model, backbone_config, close, make, padded, tokens
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from modeling_armt import ArmtConfig, ArmtForCausalLM, MemoryState, TokenState


def test_a_fresh_wrap_equals_the_backbone_on_each_segment(family):
    model = make(family, shaken=False)
    ids = tokens(2, 2 * SEGMENT + 1)
    parts = [model.backbone(part).logits for part in ids.split(SEGMENT, dim=1)]
    close(model(ids).logits, torch.cat(parts, dim=1))


def test_memory_changes_later_segments_only(family, kind):
    model = make(family, kind)
    ids = tokens(1, 3 * SEGMENT)
    other = ids.clone()
    other[0, 1] = (ids[0, 1] + 1) % VOCAB
    difference = (model(ids).logits - model(other).logits).abs().amax(-1)[0]
    assert difference[0] == 0 and difference[SEGMENT:].min() > 1e-5


@pytest.mark.parametrize("alignment", ["left", "right", "center"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_each_row_what_the_row_gives_alone(family, kind, alignment, side):
    model = make(family, kind, segment_alignment=alignment)
    rows = [tokens(1, n, seed=n) for n in (2 * SEGMENT + 3, SEGMENT - 2, 3 * SEGMENT, SEGMENT)]
    ids, mask, places = padded(rows, side)
    labels = ids.masked_fill((ids % 2 == 0) | (mask == 0), -100)
    for i, place in enumerate(places):
        labels[i, place.start] = -100
    batch = model(ids, attention_mask=mask, labels=labels, output_logits=True)
    batch.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    total = (labels[:, 1:] != -100).sum()
    for i, row in enumerate(rows):
        row_labels = labels[i : i + 1, places[i]]
        alone = model(row, labels=row_labels, output_logits=True)
        close(batch.logits[i : i + 1, places[i]], alone.logits)
        for mine, theirs in zip(batch.memory_state.select([i]).unbind(), alone.memory_state.unbind(), strict=True):
            close(mine, theirs)
        assert batch.memory_state.segments_seen[i] == alone.memory_state.segments_seen[0]
        (alone.loss * (row_labels[:, 1:] != -100).sum() / total).backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        close(gradient, parameter.grad)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_to_keep_are_those_of_each_rows_last_tokens(keep, side):
    model = make()
    rows = [tokens(1, n, seed=n) for n in (2 * SEGMENT + 1, SEGMENT)]
    ids, mask, _ = padded(rows, side)
    for cached in (False, True):
        logits = model(ids, attention_mask=mask, logits_to_keep=keep, use_cache=cached).logits
        assert logits.shape == (2, keep, VOCAB)
        for i, row in enumerate(rows):
            close(logits[i], model(row).logits[0, -keep:])


def test_loss_at_labels_only_equals_loss_from_full_logits(family, kind):
    model = make(family, kind)
    ids = tokens(3, 2 * SEGMENT + 4)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.7, -100)
    labels[0, SEGMENT] = ids[0, SEGMENT]  # predicted by the segment before
    lean = model(ids, labels=labels, output_target_logits=True)
    full = model(ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(full.transpose(1, 2), labels[:, 1:])
    close(lean.loss, expected)
    close(model(ids, labels=labels).loss, expected)
    assert lean.logits is None
    close(lean.target_logits, full[labels[:, 1:] != -100])
    wanted = (labels[:, 1:] != -100).sum()
    close(model(ids, labels=labels, num_items_in_batch=2 * wanted).loss, expected / 2)


def test_without_the_last_write_the_loss_is_the_same(family, kind):
    model = make(family, kind)
    ids = tokens(2, 2 * SEGMENT)
    output = model(ids, labels=ids, output_memory_state=False)
    close(output.loss, model(ids, labels=ids).loss)
    assert output.memory_state is None


def test_embeddings_as_input_equal_ids(family, kind):
    model = make(family, kind)
    ids = tokens(2, SEGMENT + 1)
    close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)


def test_without_return_dict_the_output_is_a_tuple():
    loss, state = make()(tokens(1, 4), labels=tokens(1, 4), return_dict=False)
    assert loss.dim() == 0 and isinstance(state, MemoryState)


def test_freezing_the_backbone_leaves_exactly_the_memory(family, kind):
    model = make(family, kind)
    model.freeze_backbone()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "memory" in name}
    assert len(trained) == (1 + 3 * 5 if kind == "armt" else 1)


def test_memory_has_its_own_group_of_parameters(family, kind):
    model = make(family, kind)
    model.backbone.get_input_embeddings().requires_grad_(False)
    backbone, memory = model.parameter_groups(memory_lr=0.5)
    assert memory["lr"] == 0.5 and memory["weight_decay"] == 0 and backbone.keys() == {"params"}
    assert {id(p) for p in memory["params"]} == {id(p) for p in model.memory_parameters()}
    both = {id(p) for p in backbone["params"] + memory["params"]}
    assert both == {id(p) for p in model.parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([backbone, memory], lr=0.1, weight_decay=0.2)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0]


def test_a_saved_folder_loads_by_auto_classes_with_the_same_output(family, kind, tmp_path):
    options = dict(nu=2, use_correction=False) if kind == "armt" else {}
    model = make(family, kind, segment_alignment="right", **options)
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.glob("*model*")] == [".safetensors"]
    assert not list(tmp_path.glob("*.py"))
    ids = tokens(2, 3 * SEGMENT + 1)
    for auto_class in (AutoModelForCausalLM, AutoModel):
        loaded = auto_class.from_pretrained(tmp_path).eval()
        assert type(loaded) is type(model)
        assert_same_model(loaded, model, ids)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    assert (
        loaded.backbone.get_output_embeddings().weight.data_ptr() == (loaded.get_input_embeddings().weight.data_ptr())
        or not loaded.config.tie_word_embeddings
    )


def test_a_folder_with_missing_or_unexpected_weights_is_refused(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    taken = weights.pop("memory_layers.1.W_k")
    for extra, message in (({}, "missing: memory_layers.1.W_k"), ({"W_k": taken}, "missing.*W_k; unexpected: W_k")):
        save_file(weights | extra, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no backbone_config: wrap a decoder by ArmtForCausalLM.from_backbone"):
        ArmtForCausalLM(ArmtConfig())


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


def test_sharpened_gates_close_further_below_a_half_and_open_further_above_it(family):
    model = make(family, memory_layers=[1, 2])
    hidden = torch.randn(4, 5, WIDTH)
    layers = list(model.memory_layers.values())
    before = [torch.nn.functional.linear(hidden, layer.W_b, layer.bias_b) for layer in layers]
    model.sharpen_gates(3.0)
    for layer, logits in zip(layers, before, strict=True):
        sharper = torch.nn.functional.linear(hidden, layer.W_b, layer.bias_b)
        close(sharper, 3 * logits)
        assert layer.W_b.requires_grad and (logits < 0).any() and (logits > 0).any()
        assert ((sharper.sigmoid() - 0.5).abs() > (logits.sigmoid() - 0.5).abs()).all()


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
        dict(input_ids=tokens(2, 4), memory_state=MemoryState.zeros(3, 1, 24, WIDTH)),
        r"\(3, 1, 24, 16\).*\(3, 2, 24, 16\)",
    ),
    "state of another architecture": (
        dict(input_ids=tokens(2, 4), memory_state=MemoryState.zeros(3, 2, 12, WIDTH)),
        r"\(3, 2, 12, 16\).*\(3, 2, 24, 16\)",
    ),
    "state of another kind": (
        dict(input_ids=tokens(2, 4), memory_state=TokenState(torch.zeros(2, 3, WIDTH), torch.zeros(2).long())),
        "a TokenState; this model needs a MemoryState",
    ),
    "state on another device": (
        dict(input_ids=tokens(2, 4), memory_state=MemoryState.zeros(3, 2, 24, WIDTH, device="meta")),
        "on meta; the model is on cpu",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_refused_with_the_numbers(case):
    arguments, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        make()(**arguments)


def test_a_bad_configuration_is_refused(family):
    with pytest.raises(ValueError, match="30 .* 3 memory tokens .* = 33 .* 32 positions"):
        make(family, segment_size=30)
    with pytest.raises(ValueError, match="27 .* 6 memory tokens .* = 33 .* 32 positions"):
        make(family, "rmt", segment_size=27)
    for option, value in [("segment_size", 0), ("nu", 8), ("segment_alignment", "up"), ("bptt_depth", 0),
                          ("memory_layers", [3]), ("memory_layers", []), ("memory_positions", "none")]:  # fmt: skip
        with pytest.raises(ValueError, match=option):
            make(family, **{option: value})
