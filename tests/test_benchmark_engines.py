"""The benchmark of the engines, at its smallest: what it prints and writes are real figures."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINES = ["single", "fsdp", "horovod"]  # ddp has fsdp's launcher
SMALLEST = dict(
    width=16, layers=1, segment_size=8, samples=2, block=2, blocks=2, pairs=2,
    save_layers=1, save_width=16, save_interval=4, saves=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What one run printed, and its JSON."""
    output = tmp_path_factory.mktemp("engines") / "result.json"
    words = [f"--{name}={value}" for name, value in SMALLEST.items()]
    command = [sys.executable, str(ROOT / "benchmarks/engines.py"), f"--output={output}", *words, "--engines", *ENGINES]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text())


def test_every_engine_has_a_rate_and_a_checkpoint(made):
    printed, result = made
    rows = {row["engine"]: row for row in result["engines"]}
    assert list(rows) == ENGINES
    if importlib.util.find_spec("horovod") is None:
        assert re.search(r"horovod +skipped: .*install_horovod", printed)
        assert "install_horovod" in rows.pop("horovod")["skipped"]
    for name, row in rows.items():
        assert row["ranks"] == (1 if name == "single" else 2)
        assert len(row["updates_per_second"]) == SMALLEST["blocks"]
        assert all(0.01 < rate < 10_000 for rate in row["updates_per_second"])
        assert re.search(rf"{name} +{row['ranks']} +[\d.]+ \([\d.]+ to [\d.]+\) +[\d,]+\n", printed)


def test_weights_are_saved_once_and_split_state_by_all_ranks(made):
    printed, result = made
    sizes = {row["engine"]: row["checkpoint_bytes"] for row in result["engines"] if "skipped" not in row}
    weights = {by_file["model.safetensors"] for by_file in sizes.values()}
    assert len(weights) == 1 and f"{weights.pop():,}" in printed
    for engine, by_file in sizes.items():
        state = by_file["optimizer.pt"] + by_file.get("optimizer/, by all ranks", 0)
        assert 2 * by_file["model.safetensors"] * 0.8 < state < 2 * by_file["model.safetensors"] * 2  # two moments
        assert ("optimizer/, by all ranks" in by_file) == (engine == "fsdp")


def test_the_bare_loop_makes_the_same_updates(made):
    printed, result = made
    compared = result["overhead"]
    for name in ("trainer_seconds", "bare_seconds"):
        assert len(compared[name]) == SMALLEST["pairs"]
        assert all(1e-4 < seconds < 60 for block in compared[name] for seconds in block)
    assert compared["weights_differ_by"] < 1e-5
    ratios = re.findall(r"Trainer / bare loop, .*?([\d.]+) \(", printed)
    assert len(ratios) == 2 and all(0.1 < float(ratio) < 10 for ratio in ratios)


def test_both_kinds_of_saving_stop_training_for_a_moment(made):
    printed, result = made
    plain, background = result["saving"]
    assert not plain["async_save"] and background["async_save"]
    for row in result["saving"]:
        assert len(row["seconds_of_stop"]) == len(row["seconds_in_all"]) == SMALLEST["saves"]
        assert all(1e-5 < seconds < 60 for seconds in row["seconds_of_stop"])
        assert row["checkpoint_bytes"] > 2 * row["weights_bytes"] > 0
    assert re.search(r"plain +[\d.]+ \(", printed) and re.search(r"--async_save +[\d.]+ \(", printed)
