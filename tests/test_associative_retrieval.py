"""Associative retrieval: the samples, and the runner as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import run_finetuning_associative_retrieval as runner
from lm_experiments_tools import curriculum
from lm_experiments_tools.data.associative_retrieval import (
    EOS_ID,
    GEN_ID,
    IS_ID,
    SYMBOLS,
    AssociativeRetrievalArgs,
    AssociativeRetrievalTask,
)
from lm_experiments_tools.distributed import make_engine
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.sampling import KeyedDataset, TrainSampler
from modeling_armt import ArmtForCausalLM

ROOT = Path(__file__).parents[1]
TASKS = ("remember", "rewrite")


def task(seed=0, **options):
    return AssociativeRetrievalTask(AssociativeRetrievalArgs(**options), seed, make_engine("single"))


def parts(sample, key_size, value_size):
    """Pairs as (key, value), the asked key and its answer, with every sign where it belongs."""
    rows = sample["input_ids"].reshape(-1, key_size + value_size + 2)
    assert (rows[:-1, key_size] == IS_ID).all() and rows[-1, key_size] == GEN_ID and (rows[:, -1] == EOS_ID).all()
    pairs = [(tuple(row[:key_size]), tuple(row[key_size + 1 : -1])) for row in rows.tolist()]
    symbols = [symbol for pair in pairs for part in pair for symbol in part]
    assert all(0 <= symbol < len(SYMBOLS) for symbol in symbols)
    *told, (asked, answer) = pairs
    return told, asked, answer


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("key_size, value_size", [(1, 1), (2, 1), (3, 2)])
def test_a_dictionary_that_is_written_in_order_answers_every_sample(name, key_size, value_size):
    made = task(task_dataset=name, key_size=key_size, value_size=value_size, num_pairs=12, valid_size=200)
    for sample in map(made.valid.__getitem__, range(200)):
        told, asked, answer = parts(sample, key_size, value_size)
        assert len(told) == 12 and dict(told)[asked] == answer
        labelled = sample["labels"] != -100
        assert labelled.sum() == value_size + 1 and labelled[-value_size - 1 :].all()
        assert (sample["labels"][labelled] == sample["input_ids"][labelled]).all()


def test_keys_to_remember_all_differ_even_where_every_key_is_used():
    for sample in map(task(key_size=1, num_pairs=16).valid.__getitem__, range(50)):
        assert len({key for key, _ in parts(sample, 1, 1)[0]}) == 16


def test_keys_to_rewrite_come_again_and_old_ones_are_asked_for_as_often_as_new_ones():
    made = task(task_dataset="rewrite", key_size=1, num_pairs=40)
    places, overwritten = [], 0
    for sample in map(made.valid.__getitem__, range(1000)):
        told, asked, answer = parts(sample, 1, 1)
        keys = [key for key, _ in told]
        overwritten += keys.count(asked) > 1 and dict(reversed(told))[asked] != answer
        last_places = sorted(max(n for n, key in enumerate(keys) if key == one) for one in set(keys))
        places.append(last_places.index(max(n for n, key in enumerate(keys) if key == asked)) / (len(last_places) - 1))
    assert overwritten > 500 and np.mean(places) == pytest.approx(0.5, abs=0.05)


def test_all_numbers_of_pairs_and_all_answers_are_drawn():
    made = task(num_pairs=4, vary_n_pairs=True)
    told = [parts(made.train.sample(0, index), 2, 1) for index in range(400)]
    assert {len(pairs) for pairs, _, _ in told} == {1, 2, 3, 4} and len({answer for _, _, answer in told}) == 16
    assert {len(parts(made.valid[index], 2, 1)[0]) for index in range(50)} == {4}


@pytest.mark.parametrize("name", TASKS)
def test_splits_epochs_and_seeds_have_streams_of_their_own(name):
    options = dict(task_dataset=name, key_size=3, num_pairs=10)
    made, other = task(seed=7, **options), task(seed=8, **options)
    read = ((made.train, 0), (made.train, 1), (made.valid, 0), (made.tests["10"], 0), (other.train, 0))
    streams = [[split.sample(epoch, n)["input_ids"].tobytes() for n in range(100)] for split, epoch in read]
    assert len({sample for stream in streams for sample in stream}) == 500
    again = task(seed=7, **options)
    assert [again.train.sample(1, n)["input_ids"].tobytes() for n in range(100)] == streams[1]


def test_the_order_of_samples_does_not_depend_on_workers():
    made = task(num_pairs=3, vary_n_pairs=True, train_size=10)
    batches = {}
    for workers in (0, 2):
        sampler = TrainSampler(len(made.train), 4, seed=0, rank=0, world_size=1, start=0)
        loader = torch.utils.data.DataLoader(
            KeyedDataset(made.train), batch_sampler=sampler, num_workers=workers,
            collate_fn=made.trainer_options()["collate_fn"],
        )  # fmt: skip
        batches[workers] = [batch["input_ids"].tolist() for _, batch in zip(range(5), loader)]
    assert batches[0] == batches[2] and len({str(batch) for batch in batches[0]}) == 5


def test_the_tokenizer_reads_what_it_writes():
    made = task(key_size=2, value_size=2, num_pairs=2)
    ids = made.valid[0]["input_ids"].tolist()
    text = made.tokenizer.decode(ids)
    assert text.count(":") == 2 and text.count("GEN") == 1 and made.tokenizer(text)["input_ids"] == ids


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_pairs=17, key_size=1), "17 pairs need as many different keys, and key_size 1 gives 16: raise"),
        (dict(num_test_pairs=[5, 300]), "300 pairs need as many different keys, and key_size 2 gives 256"),
        (dict(num_valid_pairs=0), "0 pairs: num_pairs, num_valid_pairs and num_test_pairs must be at least 1"),
        (dict(key_size=0), "key_size is 0; it must be at least 1"),
        (dict(value_size=-1), "value_size is -1"),
        (dict(test_size=0), "test_size is 0"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_met_are_named(options, message):
    with pytest.raises(UserError, match=message):
        AssociativeRetrievalArgs(**options)


def test_keys_to_rewrite_may_be_fewer_than_the_pairs():
    assert len(parts(task(task_dataset="rewrite", key_size=1, num_pairs=300).valid[0], 1, 1)[0]) == 300


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    LlamaConfig(
        vocab_size=20, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.17,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def options(tiny, run, **changes):
    values = dict(
        model_path=run, model_cfg=tiny, num_mem_tokens=1, d_mem=8, num_pairs=2, iters=4, batch_size=8, lr=3e-3,
        valid_interval=2, log_interval=1, save_best=True, optimize_metric="exact_match", optimize_mode="max",
        valid_size=20, test_size=10,
    )  # fmt: skip
    words = []
    for name, value in (values | changes).items():
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}", str(value)]
    return words


def test_a_run_leaves_metrics_picture_and_a_loadable_model_with_its_tokenizer(tiny, tmp_path, capsys):
    metrics = runner.main(options(tiny, tmp_path, num_test_pairs=[1, 2, 8], use_generate_on_valid=True))
    assert metrics["task"] == "remember" and metrics["trained_n_pairs"] == 2
    assert {name: row["tokens"] for name, row in metrics["test"].items()} == {"1": 10, "2": 15, "8": 45}
    assert metrics["valid"]["exact_match"] == metrics["valid"]["exact_match_generated"]
    assert (tmp_path / "accuracy.png").stat().st_size > 5000
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "best")
    assert model.config.segment_size == 5 and model.config.d_mem == 8
    assert AutoTokenizer.from_pretrained(tmp_path / "best")("1 2 : f <eos>")["input_ids"] == [1, 2, IS_ID, 15, EOS_ID]
    assert json.loads((tmp_path / "metrics.json").read_text())["test"] == metrics["test"]
    again = runner.main(options(tiny, tmp_path, num_test_pairs=[1, 2, 8], use_generate_on_valid=True))
    assert again["test"] == metrics["test"] and "is done" in capsys.readouterr().out


def test_a_tiny_memory_learns_to_carry_a_pair_and_without_one_it_is_a_guess(tiny, tmp_path):
    words = dict(key_size=1, num_pairs=1, iters=60, batch_size=64, lr=1e-2, valid_interval=20, valid_size=300,
                 test_size=300)  # fmt: skip
    shares = {
        kind: runner.main(options(tiny, tmp_path / kind, model_type=kind, **words))["test"]["1"]["exact_match"]
        for kind in ("armt", "none")
    }
    assert shares["armt"] > 0.9 and shares["none"] < 0.2


def test_a_stage_of_longer_keys_starts_from_one_of_shorter_ones(tiny, tmp_path):
    runner.main(options(tiny, tmp_path / "a", key_size=1))
    metrics = runner.main(options(tiny, tmp_path / "b", key_size=3, num_pairs=5, model_cpt=tmp_path / "a"))
    assert metrics["test"]["5"]["tokens"] == 6 * 6
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "b" / "best")
    assert model.config.segment_size == 6


def test_more_pairs_than_keys_end_the_program_with_one_line(tiny, tmp_path):
    done = subprocess.run(
        [sys.executable, "run_finetuning_associative_retrieval.py", *options(tiny, tmp_path / "run", num_pairs=999)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.splitlines()[-1].startswith("error: 999 pairs need as many different keys")


CONFIGS = sorted((ROOT / "configs" / "associative_retrieval").glob("*.yaml"))
TINY = "--batch_size 1 --iters 1 --samples_per_update 1 --valid_size 1 --test_size 1 --data_n_workers 0".split()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_stage_of_every_shipped_configuration_makes_one_update(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, whole = curriculum.plan(str(path), str(tmp_path), [])
    pairs = [stage.options["num_pairs"] for stage in whole]
    assert len(pairs) >= 4 and pairs == sorted(pairs) and all(stage.options["desired_metric"] for stage in whole)
    assert max(whole[-1].options["num_test_pairs"]) >= 5 * max(pairs)
    program, stages = curriculum.plan(str(path), str(tmp_path), [*TINY, "--num_test_pairs", "3"])
    for stage in stages:
        metrics = program.main([*stage.words, "--model_path", str(tmp_path / stage.folder())])
        assert metrics["update"] == 1 and metrics["test"].keys() == {"3"}


def test_the_papers_recipe_has_its_pairs_keys_and_updates(monkeypatch):
    monkeypatch.chdir(ROOT)
    _, stages = curriculum.plan("configs/associative_retrieval/paper_remember.yaml", "runs", [])
    found = [tuple(stage.options[name] for name in ("num_pairs", "key_size", "iters")) for stage in stages]
    middle = [(2, 1), (3, 1), (5, 1), (10, 1), (20, 2), (40, 2), (50, 2), (50, 3)]
    assert found == [(1, 1, 2000), *((*one, 10_000) for one in middle), (200, 3, 15_000)]
    for stage in stages:
        options = stage.options
        assert options["batch_size"] * options["gradient_accumulation_steps"] == 512 and options["d_mem"] == 32
        assert options["num_warmup_steps"] == options["iters"] // 10
        assert options["num_training_steps"] == 2 * options["iters"]


@pytest.mark.parametrize("layers", [2, 4])
def test_the_baselines_have_a_state_of_the_size_of_armts(layers):
    """Of two layers the script gives the upper one alone a memory. In its place the tails of convolutions are small."""
    folder = ROOT / "configs" / "models"
    backbone = LlamaConfig.from_pretrained(folder / f"llama-{layers}x128.json")
    memory = [1] if layers == 2 else None
    model = ArmtForCausalLM.from_backbone(backbone, segment_size=5, num_mem_tokens=1, d_mem=32, memory_layers=memory)
    numbers = model(torch.zeros(1, 5, dtype=torch.long)).memory_state.nbytes / 4
    mamba, delta = (
        json.loads((folder / f"{name}-{layers}x128.json").read_text()) for name in ("mamba2", "gated-deltanet")
    )
    assert layers * mamba["num_heads"] * mamba["head_dim"] * mamba["state_size"] == pytest.approx(numbers, rel=0.01)
    of_head = delta["linear_key_head_dim"] * delta["linear_value_head_dim"]
    assert layers * delta["linear_num_value_heads"] * of_head == pytest.approx(numbers, rel=0.01)


SHORT = """
runner: run_finetuning_associative_retrieval.py
model_cfg: configs/models/llama-2x128.json
num_mem_tokens: 1
d_mem: 8
batch_size: 2
valid_size: 5
test_size: 5
valid_interval: 1
save_best: true
stages:
  - {num_pairs: 2, iters: 1, num_test_pairs: [2, 4]}
"""


def test_the_comparison_script_runs_the_chosen_models_and_the_report(tmp_path):
    environment = os.environ | {
        "MODELS": "armt gated-deltanet", "NP": "1", "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    (tmp_path / "short.yaml").write_text(SHORT)
    command = ["bash", "scripts/associative_retrieval/compare.sh", tmp_path / "short.yaml", tmp_path / "runs"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "runs" / "report" / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 and (tmp_path / "runs" / "armt" / "accuracy.png").exists()
    ledger = json.loads((tmp_path / "runs" / "armt" / "curriculum.json").read_text())
    assert [row["name"] for row in ledger["attempts"]] == ["2 pairs"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "armt" / "stage-1" / "best")
    assert model.config.memory_layers == [1] and model.config.d_mem == 8
