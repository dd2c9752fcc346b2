"""Hugging Face models read whole: the same losses and folders as without the interface in front."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lm_experiments_tools.data.associative_retrieval import VOCABULARY, make_tokenizer
from modeling_armt import ArmtForCausalLM
from modeling_armt.options import ModelArgs, build_model
from modeling_armt.whole import read_whole

MODELS = Path(__file__).parents[1] / "configs" / "models"
BASELINES = sorted([*MODELS.glob("mamba2-*.json"), *MODELS.glob("gated-deltanet-*.json")])


def batch(vocabulary=20):
    """Two rows, the second padded on the right, each with some labels."""
    ids = torch.randint(vocabulary, (2, 12), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.ones_like(ids), torch.full_like(ids, -100)
    mask[1, 9:] = 0
    labels[0, 3], labels[0, 11], labels[1, 7:9] = ids[0, 3], ids[0, 11], ids[1, 7:9]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def expected(model, inputs):
    """Logits at the labels and the loss, from all logits of the class behind."""
    logits = type(model).__mro__[2].forward(model, input_ids=inputs["input_ids"], use_cache=False).logits
    targets = inputs["labels"][:, 1:] != -100
    picked = logits[:, :-1][targets]
    return picked, F.cross_entropy(picked, inputs["labels"][:, 1:][targets])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", *(path.stem for path in BASELINES)])
def test_loss_and_logits_at_the_labels_are_those_of_all_logits(name):
    torch.manual_seed(0)
    config = CONFIGS[name](64) if name in CONFIGS else AutoConfig.from_pretrained(MODELS / f"{name}.json")
    model, inputs = read_whole(config).eval(), batch()
    output = model(**inputs, output_target_logits=True, output_memory_state=False)
    logits, loss = expected(model, inputs)
    torch.testing.assert_close(output.target_logits, logits)
    torch.testing.assert_close(output.loss, loss)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert "target_logits" not in model(**inputs)


def test_without_labels_it_is_the_model_of_hugging_face(tmp_path):
    model = read_whole(CONFIGS["llama"](64)).eval()
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = batch()["input_ids"]
    assert type(plain).__name__ == type(model).__name__ == "LlamaForCausalLM"
    assert torch.equal(model(ids).logits, plain(ids).logits)
    written = [one.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0) for one in (model, plain)]
    assert torch.equal(*written)
    again = read_whole(str(tmp_path)).eval()
    assert torch.equal(again(**batch()).loss, model(**batch()).loss)


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_right_padding_changes_nothing(path):
    torch.manual_seed(0)
    model, inputs = read_whole(AutoConfig.from_pretrained(path)).eval(), batch()
    alone = {name: tensor[1:, :9] for name, tensor in inputs.items()}
    both, one = (model(**given, output_target_logits=True).target_logits for given in (inputs, alone))
    torch.testing.assert_close(both[2:], one)


def state_values(config):
    """Numbers that a baseline carries from token to token, without those of its convolutions."""
    if config.model_type == "mamba2":
        return config.num_hidden_layers * config.num_heads * config.head_dim * config.state_size
    of_a_head = config.linear_key_head_dim * config.linear_value_head_dim
    return config.num_hidden_layers * config.linear_num_value_heads * of_a_head


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_a_baseline_carries_as_much_as_the_armt_beside_it(path):
    """Of two layers, the upper one alone has a memory."""
    name, layers = ("llama-2x128", [1]) if "2x128" in path.stem else ("gpt-neox-4x128", None)
    armt = ArmtForCausalLM.from_backbone(
        AutoConfig.from_pretrained(MODELS / f"{name}.json"), segment_size=5, num_mem_tokens=1, d_mem=32,
        memory_layers=layers,
    )  # fmt: skip
    of_armt = sum(tensor.numel() for tensor in armt.empty_state(1).unbind())
    assert state_values(AutoConfig.from_pretrained(path)) == pytest.approx(of_armt, rel=0.01)


def test_the_options_build_it_with_the_tokens_of_the_task(tmp_path):
    tokenizer = make_tokenizer()
    model = build_model(ModelArgs(model_type="hf", model_cfg=str(BASELINES[0])), 5, tokenizer)
    assert model.config.vocab_size == len(VOCABULARY) == len(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id and len(model.parameter_groups()) == 1
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(lora_r=2), "lora_r belong to models of segments, not to model_type hf"),
        (dict(segment_checkpointing=True), "segment_checkpointing, .* not to model_type hf"),
        (dict(memory_layers=[1]), "memory_layers: not for model_type hf, but for armt"),
    ],
)
def test_options_of_segments_do_not_go_with_it(options, message):
    with pytest.raises(ValueError, match=message):
        build_model(ModelArgs(model_type="hf", model_cfg=str(BASELINES[0]), **options), 5, make_tokenizer())


def test_a_family_without_a_causal_language_model_is_refused():
    with pytest.raises(ValueError, match="t5 has no causal language model"):
        read_whole(AutoConfig.for_model("t5"))
