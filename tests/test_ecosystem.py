"""The models among Hugging Face's tools: code in the folder, types, devices, LoRA, its Trainer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import KINDS, LORA, MEMORY, SEGMENT, assert_same_model, backbone_config, close, make, tokens
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers import Trainer as HuggingFaceTrainer

from lm_experiments_tools.args import TrainerArgs
from lm_experiments_tools.trainer import Trainer
from modeling_armt import adapters, interchange
from modeling_armt.adapters import load_adapter, merge_lora, save_adapter, trainable_table

ROOT = Path(__file__).parents[1]


def test_a_folder_with_code_loads_where_the_package_is_not(kind, tmp_path, monkeypatch):
    model = make(kind=kind)
    monkeypatch.setattr(type(model), "saves_code", False)  # undone at the end
    type(model).register_for_auto_class()
    model.save_pretrained(tmp_path / "model")
    ids = tokens(2, 2 * SEGMENT + 1)
    code = f"""
import json, sys
sys.modules["modeling_armt"] = None  # an import of it fails
sys.modules["peft"] = None
import torch
from transformers import AutoConfig, AutoModelForCausalLM
folder = {str(tmp_path / "model")!r}
AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
ids = torch.tensor({ids.tolist()})
model.save_pretrained("again")
again = AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)
assert type(again).__module__ != type(model).__module__
assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-6)
print(json.dumps([model(ids).logits.tolist(), model.generate(ids, max_new_tokens=9, do_sample=False).tolist()]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    logits, generated = json.loads(run.stdout)
    close(torch.tensor(logits), model(ids).logits)
    assert generated == model.generate(ids, max_new_tokens=9, do_sample=False).tolist()


def test_only_the_auto_class_that_fits_can_be_registered():
    with pytest.raises(ValueError, match="not AutoModelForMaskedLM"):
        KINDS["armt"][0].register_for_auto_class("AutoModelForMaskedLM")


def test_weights_load_in_another_type_and_the_state_stays_float32(family, tmp_path):
    model = make(family)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    ids = tokens(2, 3 * SEGMENT)
    output = loaded(ids)
    assert output.logits.dtype == torch.bfloat16 and output.memory_state.A.dtype == torch.float32
    assert (output.logits.float() - model(ids).logits).abs().max() < 0.3
    assert loaded.generate(ids, max_new_tokens=SEGMENT + 2).shape == (2, 4 * SEGMENT + 2)


def test_a_model_is_made_on_the_meta_device(family, kind):
    config = make(family, kind).config
    with torch.device("meta"):
        model = KINDS[kind][0](config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_weights_that_do_not_fit_the_device_are_offloaded(family, kind, tmp_path):
    model = make(family, kind)
    model.save_pretrained(tmp_path / "model")
    parts = {name.rpartition(".")[0] or name for name in model.state_dict()}
    layers = "backbone.transformer.h" if family == "gpt2" else "backbone.model.layers"
    devices = {name: "cpu" for name in parts if not name.startswith(f"{layers}.1")} | {f"{layers}.1": "disk"}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=devices, offload_folder=tmp_path / "offload"
    )
    assert next(loaded.family.layers[1].parameters()).device.type == "meta"  # on disk until it runs
    ids = tokens(2, 2 * SEGMENT + 1)
    close(loaded.eval()(ids).logits, model(ids).logits)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map="auto")._no_split_modules


def train_a_little(model, updates=2):
    optimizer = torch.optim.AdamW(model.parameter_groups(memory_lr=0.02), lr=0.01)
    for seed in range(updates):
        ids = tokens(2, 3 * SEGMENT, seed=seed)
        model.train()(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def lora_model(family, kind, folder):
    backbone = AutoModelForCausalLM.from_config(backbone_config(family))
    backbone.save_pretrained(folder)
    model_class, options = KINDS[kind]
    return model_class.from_backbone(str(folder), segment_size=SEGMENT, num_mem_tokens=MEMORY, lora=LORA, **options)


def test_lora_trains_beside_the_memory_and_is_saved_with_it(family, kind, tmp_path):
    model = lora_model(family, kind, tmp_path / "backbone")
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    train_a_little(model)
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    expected = {name for name in before if not name.startswith("backbone.") or "lora_" in name}
    assert changed == expected
    save_adapter(model, tmp_path / "adapter")
    names = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert names == ["adapter_model.safetensors", "config.json"]
    ids = tokens(2, 3 * SEGMENT)
    for backbone in (None, str(tmp_path / "backbone"), AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")):
        loaded = load_adapter(tmp_path / "adapter", backbone).eval()
        assert_same_model(loaded, model, ids)
    model.save_pretrained(tmp_path / "whole")
    assert_same_model(AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval(), model, ids)


def test_the_merge_command_makes_a_plain_model(family, kind, tmp_path, capsys):
    model = train_a_little(lora_model(family, kind, tmp_path / "backbone"))
    save_adapter(model, tmp_path / "adapter")
    adapters.main(["merge", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.lora is None and not any("lora" in name for name, _ in merged.named_parameters())
    ids = tokens(2, 3 * SEGMENT)
    close(merged(ids).logits, model(ids).logits)
    merge_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for arguments, message in (
        (["merge", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")], "merged exists"),
        (["merge", str(tmp_path / "backbone"), "--output", str(tmp_path / "new")], "no adapter_model.safetensors"),
    ):
        with pytest.raises(SystemExit) as stop:
            adapters.main(arguments)
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_an_adapter_that_does_not_know_its_backbone_asks_for_it(tmp_path):
    save_adapter(make(lora=LORA), tmp_path)
    with pytest.raises(ValueError, match="give the backbone"):
        load_adapter(tmp_path)


def test_the_table_of_parameters_counts_what_is_trained():
    rows = {line.split()[0]: line.split()[-2:] for line in trainable_table(make(lora=LORA)).splitlines()[1:]}
    model = make(lora=LORA)
    assert rows["backbone"][0] == "0" and rows["LoRA"][0] == rows["LoRA"][1]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert [int(cell.replace(",", "")) for cell in rows["all"]] == [trained, model.num_parameters()]


def test_peft_can_also_wrap_the_whole_model(family, kind):
    from peft import LoraConfig, get_peft_model

    model, ids = make(family, kind), tokens(2, 3 * SEGMENT)
    expected, generated = model(ids).logits, model.generate(ids, max_new_tokens=8, do_sample=False)
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    close(wrapped(input_ids=ids).logits, expected)
    assert torch.equal(wrapped.generate(input_ids=ids, max_new_tokens=8, do_sample=False), generated)
    wrapped.train()(input_ids=ids, labels=ids).loss.backward()
    with pytest.raises(ValueError, match="not kept"):
        wrapped(input_ids=ids, output_hidden_states=True)


class Texts(Dataset):
    """Ragged samples with few labels."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = tokens(1, 3 * SEGMENT, seed=index)[0]
        labels = ids.masked_fill(torch.arange(len(ids)) < 3 * index + 1, -100)
        return {"input_ids": ids, "labels": labels}


def test_one_step_of_hugging_faces_trainer_equals_one_of_ours(family, kind, tmp_path):
    theirs, ours = make(family, kind).train(), make(family, kind).train()
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        learning_rate=0.1, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = HuggingFaceTrainer(theirs, arguments, train_dataset=Texts(), eval_dataset=[Texts()[3]] * 2)
    trainer.train()
    args = TrainerArgs(iters=1, batch_size=2, gradient_accumulation_steps=4, lr=0.1)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    Trainer(args, ours, optimizer, Texts()).train()
    before = dict(make(family, kind).named_parameters())
    sample = {name: tensor.unsqueeze(0) for name, tensor in Texts()[3].items()}
    assert trainer.evaluate()["eval_loss"] == pytest.approx(theirs.eval()(**sample).loss.item(), abs=1e-5)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        close(mine, other, 1e-6)
        assert not torch.equal(mine, before[name]), name


def published_names(model):
    """Our state dict under the names of the published code."""
    ours_to_theirs = {ours: theirs for theirs, ours in interchange.PARTS.items()}
    layers = "transformer.h" if model.config.backbone_config.model_type == "gpt2" else "model.layers"
    renamed = {}
    for name, tensor in model.state_dict().items():
        head, _, part = name.rpartition(".")
        if name == "memory_tokens":
            new = "memory"
        elif head.startswith("memory_layers."):
            new = f"model.{layers}.{head.split('.')[1]}.{ours_to_theirs[part]}"
        else:
            new = name.replace("backbone.", "model.", 1)
            if model.config.model_type == "armt":
                for layer in range(3):
                    new = new.replace(f"{layers}.{layer}.", f"{layers}.{layer}.layer.")
        renamed[f"memory_cell.{new}"] = tensor.clone()
    return renamed


def run_import(tmp_path, weights, *options):
    arguments = ["import", "--weights", weights, "--backbone", tmp_path / "backbone", "--segment_size", SEGMENT]
    interchange.main([str(argument) for argument in (*arguments, "--output", tmp_path / "imported", *options)])


def test_a_published_checkpoint_is_imported_and_its_logits_checked(family, kind, tmp_path, capsys):
    from safetensors.torch import save_file

    model = make(family, kind)
    model.config.backbone_config.save_pretrained(tmp_path / "backbone")
    ids = tokens(2, 3 * SEGMENT)
    save_file({"input_ids": ids, "logits": model(ids).logits.detach()}, tmp_path / "sample.safetensors")
    torch.save(published_names(model) | {"memory_cell.model.extra": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    run_import(tmp_path, tmp_path / "pytorch_model.bin", "--sample", tmp_path / "sample.safetensors")
    printed = capsys.readouterr().out
    assert "not used: memory_cell.model.extra\n" in printed and "largest difference of logits" in printed
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "imported").eval()
    assert_same_model(loaded, model, ids)


def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path, capsys):
    from safetensors.torch import save_file

    model = make()
    model.config.backbone_config.save_pretrained(tmp_path / "backbone")
    good = published_names(model)
    ids = tokens(1, SEGMENT)
    save_file({"input_ids": ids, "logits": model(ids).logits.detach() + 1}, tmp_path / "sample.safetensors")
    without = {name: tensor for name, tensor in good.items() if "ln_f" not in name}
    wider = good | {"memory_cell.model.transformer.ln_f.bias": torch.zeros(17)}
    cases = [
        (without, "missing: backbone.transformer.ln_f"),
        (wider, r"ln_f.bias (17,) instead of (16,)"),
        ({"x": torch.ones(1)}, "no 'memory'"),
        ({"step": 3}, "no state dict"),
        (good, "more than 0.0001"),
    ]
    for weights, message in cases:
        torch.save(weights, tmp_path / "weights.bin")
        with pytest.raises(SystemExit) as stop:
            run_import(tmp_path, tmp_path / "weights.bin", "--sample", tmp_path / "sample.safetensors")
        assert stop.value.code == 2 and message in capsys.readouterr().err
        assert not (tmp_path / "imported").exists()
