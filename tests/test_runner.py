"""The BABILong runner, as a user starts it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig

import run_finetuning_babilong as runner
from lm_experiments_tools.args import TrainerArgs
from lm_experiments_tools.data import babi_simulator
from lm_experiments_tools.distributed import make_engine
from lm_experiments_tools.errors import UserError
from modeling_armt import ArmtForCausalLM
from modeling_armt.adapters import load_adapter

ROOT = Path(__file__).parents[1]
READ_WHOLE = ("mamba2", "gated-deltanet")  # configurations of models that have no segments


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A tiny backbone and a cache that all runs of this file use."""
    folder = tmp_path_factory.mktemp("shared")
    LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128,
    ).save_pretrained(folder / "tiny")  # fmt: skip
    return folder


def options(shared, run, **changes):
    values = dict(
        model_path=run, model_cfg=shared / "tiny", data_cache=shared / "cache", vocab_size=1000, segment_size=48,
        num_mem_tokens=2, d_mem=4, max_n_facts=4, max_n_segments=2, simulated_questions=200, valid_size=20,
        test_size=10, iters=4, batch_size=4, lr=1e-3, valid_interval=2, log_interval=1, save_best=True,
        optimize_metric="exact_match", optimize_mode="max",
    )  # fmt: skip
    words = []
    for name, value in (values | changes).items():
        if value is not None:
            words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}", str(value)]
    return words


def test_a_run_leaves_metrics_picture_config_logs_and_a_loadable_model(shared, tmp_path, capsys):
    words = options(shared, tmp_path, test_n_segments=[1, 2, 4])
    metrics = runner.main(words)
    on_disk = json.loads((tmp_path / "metrics.json").read_text())
    assert on_disk["test"].keys() == {"1", "2", "4"} and on_disk["test"] == metrics["test"]
    assert all(row["samples"] == 10 and 0 <= row["exact_match"] <= 1 for row in on_disk["test"].values())
    assert on_disk["test"]["4"]["tokens"] <= 4 * 48
    assert (tmp_path / "accuracy.png").stat().st_size > 5000
    assert (tmp_path / "config.yaml").exists() and list((tmp_path / "tensorboard").iterdir())
    model = ArmtForCausalLM.from_pretrained(tmp_path / "best")
    assert model.config.segment_size == 48
    log = (tmp_path / "log.jsonl").read_text()
    capsys.readouterr()
    assert runner.main(words)["test"] == metrics["test"]
    assert "is done" in capsys.readouterr().out and (tmp_path / "log.jsonl").read_text() == log


def test_validate_only_scores_a_checkpoint_without_training(shared, tmp_path):
    trained = runner.main(options(shared, tmp_path / "a"))
    scored = runner.main(options(shared, tmp_path / "b", model_cpt=tmp_path / "a", validate_only=True))
    assert scored["valid"] == trained["valid"] and scored["test"] == trained["test"] and scored["update"] == 0


def test_a_run_without_a_best_checkpoint_is_its_newest_whole_one(shared, tmp_path):
    run, scored = tmp_path / "a", {}
    trained = runner.main(options(shared, run, save_best=False, save_interval=2, keep_checkpoints=2))
    steps = sorted((run / "checkpoints").iterdir())
    for number in (1, 2):
        scored[number] = runner.main(options(shared, tmp_path / f"b{number}", model_cpt=run, validate_only=True))
        (steps[-1] / "model.safetensors").write_bytes(b"cut")
    assert not (run / "best").exists() and len(steps) > 1
    assert scored[1]["test"] == trained["test"] and scored[2]["valid"] != scored[1]["valid"]


def test_validate_only_without_anything_to_validate_is_refused(shared, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .* give --model_cpt"):
        runner.main(options(shared, tmp_path, validate_only=True))


def test_a_run_without_background_or_memory(shared, tmp_path):
    metrics = runner.main(options(shared, tmp_path, facts_only=True, num_mem_tokens=0))
    assert list(metrics["test"]) == ["facts only"]


@pytest.mark.parametrize("model_type", ["rmt", "none"])
def test_the_baselines_run_by_the_same_command(shared, tmp_path, model_type):
    metrics = runner.main(options(shared, tmp_path, model_type=model_type, use_generate_on_valid=True))
    assert metrics["test"]["2"]["samples"] == 10
    assert metrics["valid"]["exact_match"] == metrics["valid"]["exact_match_generated"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "best")
    own = [name for name, _ in model.named_parameters() if not name.startswith("backbone.")]
    assert own == (["memory_tokens"] if model_type == "rmt" else [])


def test_lora_and_memory_train_with_their_own_rates_and_leave_a_small_folder(shared, tmp_path, capsys):
    backbone = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shared / "tiny"))
    backbone.resize_token_embeddings(1000)
    backbone.save_pretrained(tmp_path / "backbone")
    words = options(shared, tmp_path / "run", model_cfg=None, from_pretrained=tmp_path / "backbone", lora_r=2,
                    memory_lr=1e-2, segment_checkpointing=True)  # fmt: skip
    metrics = runner.main(words)
    assert "LoRA" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rates = [events.Scalars(f"lr/iterations/param_group_{group}")[0].value for group in (0, 1)]
    assert rates == pytest.approx([1e-3, 1e-2])
    model = load_adapter(tmp_path / "run" / "adapter")
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "best")
    for (name, mine), other in zip(model.state_dict().items(), best.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name
    assert metrics["test"]["2"]["samples"] == 10


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model_type="rwkv"), "model_type is 'rwkv'; choose one of armt, rmt, none"),
        (dict(model_type="rmt", memory_layers=[1]), "memory_layers: not for model_type rmt, but for armt"),
        (dict(lora_r=2, freeze_model_weights=True), "give one"),
        (dict(memory_positions="reserved"), "'reserved' is for learned positions"),
        (dict(model_type="none", freeze_model_weights=True), "no parameter is trained"),
    ],
)
def test_options_that_do_not_go_together_are_refused(shared, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        runner.main(options(shared, tmp_path, **changes))
    assert not (tmp_path / "checkpoints").exists()


def test_validation_may_be_longer_than_training(shared, tmp_path):
    words = options(shared, tmp_path, valid_n_segments=4, vary_n_facts=True)
    parsed = runner.cli.parse(words, runner.BabilongArgs, TrainerArgs, without_effect=dict.fromkeys(
        ("model_cfg", "num_mem_tokens", "d_mem"), ""))  # fmt: skip
    task = runner.BabilongTask(parsed[0], 0, make_engine())
    assert 3 * 48 < len(task.valid.sample(0, 0)["input_ids"]) <= 4 * 48
    assert len(task.train.sample(0, 0)["input_ids"]) <= 2 * 48


def test_the_generated_answer_is_right_exactly_where_the_predicted_one_is(shared, tmp_path):
    """A model that knows half of the answers, scored by one forward pass and by generation."""
    metrics = runner.main(
        options(
            shared,
            tmp_path,
            use_generate_on_valid=True,
            facts_only=True,
            max_n_facts=2,
            iters=150,
            lr=1e-2,
            batch_size=16,
            valid_interval=50,
            simulated_questions=600,
        )  # fmt: skip
    )
    assert 0.1 < metrics["valid"]["exact_match"] < 1
    assert metrics["valid"]["exact_match"] == metrics["valid"]["exact_match_generated"]
    assert metrics["valid"]["loss"] > 0


def test_a_cached_simulation_is_not_taken_for_a_larger_one(tmp_path):
    for test_size in (5, 1200):
        args = runner.BabilongArgs(
            simulated_questions=60, test_size=test_size, valid_size=5, facts_only=True, data_cache=str(tmp_path)
        )
        assert len(runner.BabilongTask(args, 0, make_engine()).tests["facts only"]) == test_size


def test_lengths_can_be_given_in_tokens(shared, tmp_path):
    metrics = runner.main(options(shared, tmp_path, sample_size=60, test_sample_size=150))
    assert list(metrics["test"]) == ["150 tokens"] and 150 < metrics["test"]["150 tokens"]["tokens"] < 170


def test_real_files_and_named_books(shared, tmp_path):
    for split in ("train", "test"):
        babi_simulator.write_task(tmp_path / "en", "qa2", split, 60, seed=9)
    (tmp_path / "train.txt").write_text("It was the best of times, it was the worst of times, said he to her. " * 200)
    (tmp_path / "test.txt").write_text("Call me whatever you like, but do not call me late for the dinner bell. " * 200)
    metrics = runner.main(
        options(
            shared,
            tmp_path / "run",
            task_dataset="qa2",
            babi_path=tmp_path / "en",
            max_n_facts=16,
            max_n_segments=5,
            noise_dataset=[tmp_path / "train.txt"],
            test_noise_dataset=[tmp_path / "test.txt"],
        )  # fmt: skip
    )
    assert metrics["test"]["5"]["samples"] == 10


def test_a_model_trained_on_simulated_stories_is_tested_on_a_file_of_its_own(shared, tmp_path):
    babi_simulator.write_task(tmp_path / "en", "qa1", "test", 7, seed=9)
    metrics = runner.main(options(shared, tmp_path / "run", test_babi_path=tmp_path / "en", test_size=50))
    assert metrics["test"]["2"]["samples"] <= 7


def bad(shared, run, **changes):
    with pytest.raises(UserError) as error:
        runner.main(options(shared, run, **changes))
    assert not (run / "checkpoints").exists() and not (run / "metrics.json").exists()
    return str(error.value)


def test_bad_input_is_named_before_anything_is_written(shared, tmp_path):
    babi_simulator.write_task(tmp_path / "en", "qa4", "train", 10, seed=0)
    (tmp_path / "short.txt").write_text("A sentence that is long enough to be used as a background text here. " * 4)
    run = tmp_path / "run"
    assert "tasks found in the folder: qa4" in bad(shared, run, babi_path=tmp_path / "en")
    assert "smaller than the facts" in bad(shared, run, sample_size=20)
    assert "too short" in bad(shared, run, noise_dataset=[tmp_path / "short.txt"], max_n_segments=20)
    assert "too short" in bad(shared, run, test_noise_dataset=[tmp_path / "short.txt"], test_n_segments=[1, 20])
    assert "smaller than the facts" in bad(shared, run, max_n_facts=10, max_n_segments=3, test_n_segments=[3, 1])
    assert "longer than the 128 positions" in bad(shared, run, segment_size=127)
    assert "give either from_pretrained or model_cfg" in bad(shared, run, from_pretrained=shared / "tiny")
    assert "tokens, the backbone 200 embeddings" in bad(
        shared, run, from_pretrained=tiny_gpt2(tmp_path), model_cfg=None
    )
    assert "exclude each other" in bad(shared, run, vary_n_segments=True, mixed_length_ratio=0.5)
    assert "model_cfg: no file absent.json in" in bad(shared, run, model_cfg="absent.json")
    assert "no checkpoint folder" in bad(shared, run, model_cpt=tmp_path / "absent")
    assert "give --model_cpt" in bad(shared, run, sharpen_gates=3.0)
    assert "a number above 0" in bad(shared, run, sharpen_gates=0.0, model_cpt=tmp_path)
    assert "not for model_type rmt" in bad(shared, run, model_type="rmt", sharpen_gates=2.0, model_cpt=tmp_path)


def tiny_gpt2(folder, vocab=200):
    config = GPT2Config(vocab_size=vocab, n_positions=1024, n_embd=8, n_layer=1, n_head=1, bos_token_id=0,
                        eos_token_id=0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / f"gpt2-{vocab}")
    return folder / f"gpt2-{vocab}"


def test_a_checkpoint_of_another_architecture_is_refused(shared, tmp_path):
    runner.main(options(shared, tmp_path / "a"))
    message = bad(shared, tmp_path / "b", model_cpt=tmp_path / "a", d_mem=8)
    assert "another architecture" in message and "memory_layers.0.W_k (4, 16) instead of (8, 16)" in message


def program(*words):
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_second_run_in_a_folder_ends_at_once_and_names_the_first(shared, tmp_path):
    first = program("run_finetuning_babilong.py", *options(shared, tmp_path, iters=100_000))
    try:
        wait_for(tmp_path / "log.jsonl")
        second = program("run_finetuning_babilong.py", *options(shared, tmp_path))
        _, error = second.communicate(timeout=60)
        assert second.returncode == 2
        assert error.splitlines()[-1].startswith("error: ") and f"pid {first.pid}" in error
        assert "Traceback" not in error and first.poll() is None
    finally:
        first.kill()
        first.communicate()


def wait_for(path, text=""):
    deadline = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"no {text!r} in {path}"
        time.sleep(0.02)


def test_a_stage_starts_from_the_best_of_the_one_before(shared, tmp_path):
    first = runner.main(options(shared, tmp_path / "a", facts_only=True))
    assert first["update"] == 4
    runner.main(options(shared, tmp_path / "b", model_cpt=tmp_path / "a", iters=1, lr=0.0))
    one, two = (ArmtForCausalLM.from_pretrained(tmp_path / name / "best") for name in ("a", "b"))
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_gates_are_sharpened_once_where_a_stage_starts_and_not_where_it_goes_on(shared, tmp_path):
    runner.main(options(shared, tmp_path / "a", facts_only=True))
    run = tmp_path / "b"
    words = options(
        shared, run, facts_only=True, model_cpt=tmp_path / "a", sharpen_gates=3.0, lr=0.0, save_best=False,
        save_interval=2, keep_checkpoints=2,
    )  # fmt: skip
    runner.main(words)
    shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])
    (run / "metrics.json").unlink()
    assert runner.main(words)["update"] == 4
    one = ArmtForCausalLM.from_pretrained(tmp_path / "a" / "best")
    two = ArmtForCausalLM.from_pretrained(sorted((run / "checkpoints").iterdir())[-1])
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        is_gate = name.endswith(("W_b", "bias_b"))
        torch.testing.assert_close(3 * a if is_gate else a, b, msg=name)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "models").glob("*.json")), ids=lambda path: path.stem)
def test_every_model_configuration_makes_one_update(shared, tmp_path, path):
    metrics = runner.main(
        options(
            shared,
            tmp_path,
            model_cfg=path,
            model_type="hf" if path.stem.startswith(READ_WHOLE) else "armt",
            iters=1,
            batch_size=1,
            valid_interval=None,
            save_best=None,
            valid_size=1,
            test_size=1,
        )  # fmt: skip
    )
    assert metrics["update"] == 1
