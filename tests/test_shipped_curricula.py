"""The shipped BABILong configurations and scripts run as they are, on tiny models and local data."""

import os
import sys
from pathlib import Path

import pytest
from test_curriculum import completed, ledger
from test_runner import ROOT, shared, tiny_gpt2  # noqa: F401

from lm_experiments_tools import curriculum
from lm_experiments_tools.data import babi_simulator, embedded_text

CONFIGS = sorted((ROOT / "configs" / "babilong").glob("*.yaml"))


def stages_of(path, *overrides):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("DATA_DIR", os.environ.get("DATA_DIR", "set-by-the-test"))
        return curriculum.plan(str(path), "runs", list(overrides))


SHIPPED = [(path, number) for path in CONFIGS for number in range(len(stages_of(path)[1]))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_a_curriculum_whose_stages_all_parse(path):
    program, stages = stages_of(path)
    assert len(stages) >= 4 and len({tuple(stage.words) for stage in stages}) == len(stages)
    lengths = [stage.options["max_n_segments"] * stage.options["segment_size"] for stage in stages]
    assert lengths == sorted(lengths) and all(stage.options["desired_metric"] for stage in stages)


@pytest.mark.parametrize("path, number", SHIPPED, ids=lambda value: getattr(value, "stem", str(value)))
def test_every_stage_of_every_shipped_configuration_makes_one_update(shared, tmp_path, monkeypatch, path, number):  # noqa: F811
    task = stages_of(path)[1][number].options["task_dataset"]
    monkeypatch.setenv("DATA_DIR", str(local_data(tmp_path, task)))
    words = ["--batch_size", "1", "--iters", "1", "--samples_per_update", "1", *tiny(shared, tmp_path, path)]
    program, stages = stages_of(path, *words)
    words = [*stages[number].words, "--model_path", str(tmp_path / "run")]
    if stages[number].options["sharpen_gates"] != 1:
        program.main([*stages[number - 1].words, "--model_path", str(tmp_path / "before")])
        words += ["--model_cpt", str(tmp_path / "before")]
    metrics = program.main(words)
    assert metrics["update"] == 1 and metrics["test"]


def tiny(shared, folder, path):  # noqa: F811
    """Options that make any shipped stage small and local: weights and tokenizers of the hub are replaced."""
    words = ["--data_cache", shared / "cache", "--simulated_questions", 200, "--valid_size", 1, "--test_size", 1,
             "--data_n_workers", 0]  # fmt: skip
    if "from_pretrained" in path.read_text():
        words += ["--from_pretrained", tiny_gpt2(folder, vocab=5000), "--tokenizer", local_tokenizer(shared)]
    return [str(word) for word in words]


@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3", "qa4", "qa5"])
def test_the_papers_recipe_takes_every_task(shared, tmp_path, monkeypatch, task):  # noqa: F811
    monkeypatch.setenv("DATA_DIR", str(local_data(tmp_path, task)))
    path = ROOT / "configs" / "babilong" / "paper_gpt2.yaml"
    words = ["--task_dataset", task, "--iters", "1", *tiny(shared, tmp_path, path)]
    program, stages = stages_of(path, *words, "--valid_size", "20", "--test_size", "20")
    sizes = [(stage.options["max_n_segments"], stage.options["batch_size"]) for stage in stages]
    assert sizes == [(2, 16), (3, 8), (5, 4), (8, 4), (16, 2), (32, 1)]
    assert all(s.options["batch_size"] * s.options["gradient_accumulation_steps"] == 64 for s in stages)
    small = ["--batch_size", "1", "--gradient_accumulation_steps", "1", "--model_path", str(tmp_path / "run")]
    samples = program.main([*stages[0].words, *small])["test"]["2"]["samples"]
    assert samples == 20 or (task == "qa3" and 0 < samples < 20)  # qa3's longest stories do not fit two segments


def test_the_papers_recipe_has_its_updates_and_rates():
    _, stages = stages_of(ROOT / "configs" / "babilong" / "paper_gpt2.yaml")
    assert [stage.options["iters"] for stage in stages] == [*5 * [10_000], 30_000]
    for stage in stages:
        found = [stage.options[name] for name in ("num_warmup_steps", "num_training_steps", "lr", "lr_scheduler")]
        assert found == [stage.options["iters"] // 10, 2 * stage.options["iters"], 1e-4, "linear"]


def local_data(folder, task="qa1"):
    """A folder laid out as the shipped configurations and scripts expect it."""
    for split in ("train", "test"):
        babi_simulator.write_task(folder / "data" / "babi" / "en-10k", task, split, 200, seed=0)
    (folder / "data" / "books").mkdir()
    stream = embedded_text.sentences(seed=3)
    for name in ("moby", "pride", "sherlock", "frankenstein"):
        (folder / "data" / "books" / f"{name}.txt").write_text("\n".join(next(stream) for _ in range(1500)))
    return folder / "data"


def local_tokenizer(shared):  # noqa: F811
    from lm_experiments_tools.data import tokenizer

    trained = tokenizer.train_tokenizer(["Mary moved to the kitchen."], "local", 300, shared)
    trained.save_pretrained(shared / "tokenizer")
    return str(shared / "tokenizer")


def test_the_curriculum_script_runs_all_stages_and_is_safe_to_run_again(shared, tmp_path):  # noqa: F811
    path = ROOT / "configs" / "babilong" / "paper_gpt2.yaml"
    words = ["--segment_size", "60", "--max_n_facts", "2", "--iters", "1", "--samples_per_update", "16",
             *tiny(shared, tmp_path, path)]  # fmt: skip
    environment = os.environ | {
        "DATA_DIR": str(local_data(tmp_path)), "RUNS_DIR": str(tmp_path / "runs"), "NP": "1", "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = ["bash", "scripts/babilong/curriculum.sh", path, *words]
    outputs = [completed(*command, env=environment) for _ in range(2)]
    rows = ledger(tmp_path / "runs" / "paper_gpt2")
    assert [row["options"]["max_n_segments"] for row in rows.values()] == [2, 3, 5, 8, 16, 32]
    assert [row["options"]["gradient_accumulation_steps"] for row in rows.values()] == [1, 2, 4, 4, 8, 16]
    assert rows["stage-2"]["started_from"] == "stage-1"
    assert outputs[0].count("is done") == 0 and outputs[1].count("is done") == 6
