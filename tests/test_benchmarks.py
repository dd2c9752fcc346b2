"""Benchmarks of speed, at their smallest: what they promise is in their JSON, and broken code is not reported."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SEGMENT = ["--segment_size=16", "--num_mem_tokens=4"]
sys.path.insert(0, str(ROOT / "benchmarks"))

import flops  # noqa: E402
import generate  # noqa: E402
import long_context  # noqa: E402
import machine  # noqa: E402
import sizes  # noqa: E402
import stream  # noqa: E402
import train_step  # noqa: E402

from lm_experiments_tools.errors import UserError  # noqa: E402


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """A ceiling that takes no time."""
    monkeypatch.setitem(machine.SIDE, "cpu", 64)
    monkeypatch.setitem(machine.COPIED, "cpu", 1 << 16)


@pytest.fixture
def run(tmp_path, capsys):
    """A benchmark's JSON and what it printed."""

    def run(benchmark, *words):
        benchmark.main([*words, f"--output={tmp_path}/result.json"])
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["ceiling"]["matrix_product_tflops"] > 0 and result["ceiling"]["copy_gb_per_second"] > 0
        assert {"cpu", "threads", "load", "torch"} <= set(result["environment"])
        return result, capsys.readouterr().out

    return run


def test_flops_of_a_token(run):
    result, printed = run(flops, "--size=gpt2-small")
    forward = result["flops_per_token"]["forward"]
    assert round((sum(forward.values()) - forward["head"]) / 1e6, 1) == 194.7
    assert result["flops_per_token"]["backward"]["dense"] == 2 * forward["dense"]
    assert "194.681" in printed and "tokens/s at the ceiling, with head" in printed


@pytest.mark.parametrize("words", [["--model_type=rmt"], ["--model_type=none"], ["--memory_layers", "1"]])
def test_flops_of_other_models(run, words):
    forward = run(flops, "--size=tiny", *words, *SEGMENT)[0]["flops_per_token"]["forward"]
    assert (forward["read"] > 0) == (words[0] == "--memory_layers")
    assert forward["dense"] > 0


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no size 'huge'"):
        flops.main(["--size=huge"])


def test_a_way_to_run_is_named_by_its_executor():
    model = sizes.make_model(sizes.model_config("tiny", 16, 4), "cpu", torch.float32)
    for name, expected in {
        "diagonal": ("diagonal", False, False),
        "sequential+compile": ("sequential", True, False),
        "auto+compile+replay": ("auto", True, True),
    }.items():
        sizes.choose(model, sizes.check_way(name))
        assert (model.config.executor, model.compiles, model.config.segment_checkpointing) == expected
    with pytest.raises(UserError, match="no 'wavefront'"):
        train_step.main(["--executors", "wavefront"])


def peak_here(args, size, segments, step):
    """Without a process of its own."""
    return train_step.own_peak(replace(args, sizes=[size], segments=[segments], only=step))


def test_a_training_step_is_compared_with_the_plain_one(run, monkeypatch):
    monkeypatch.setattr(train_step, "peak_bytes", peak_here)
    result, printed = run(train_step, "--sizes=tiny", "--segments", "2", "--pairs=1", "--replay", *SEGMENT)
    rows = {row["step"]: row for row in result["rows"]}
    assert list(rows) == ["plain", "sequential", "sequential+replay", "diagonal", "diagonal+replay"]
    assert set(result["gradients_differ_by"]["tiny"]) == set(rows) - {"plain"}
    assert all(apart < 1e-4 for apart in result["gradients_differ_by"]["tiny"].values())
    for name, row in rows.items():
        assert row["tokens_per_second"] == pytest.approx(32 / row["seconds"])
        assert row["utilisation"] > 0 and 0 < row["peak_bytes"] < 1e9
        assert row["times_faster"] > 0 and f" {name} " in printed
    assert rows["plain"]["times_faster"] == rows["plain"]["share_of_memory"] == 1


def test_a_step_with_other_gradients_is_not_reported(monkeypatch, capsys):
    plain = train_step.plain_loss
    monkeypatch.setattr(train_step, "plain_loss", lambda *args: 1.001 * plain(*args))
    monkeypatch.setattr(train_step, "fitting", lambda *args: {})
    with pytest.raises(SystemExit) as stopped:
        train_step.main(["--sizes=tiny", "--segments", "2", *SEGMENT])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert "nothing is reported: step sequential and step plain differ" in printed.err and not printed.out


def test_a_step_that_does_not_fit_is_left_out(run, monkeypatch):
    peaks = {"plain": 100, "sequential": 10, "diagonal": 10}
    monkeypatch.setattr(train_step, "peak_bytes", lambda args, size, segments, step: peaks[step] * segments)
    monkeypatch.setattr(train_step, "free_memory", lambda device: 300)
    words = ("--sizes=tiny", "--segments", "2", "4", "--pairs=1", "--executors=sequential")
    rows = run(train_step, *words, *SEGMENT)[0]["rows"]
    found = [(row["segments"], row["step"], "times_faster" in row) for row in rows]
    assert found == [(2, "plain", True), (2, "sequential", True), (4, "sequential", False)]


def test_long_contexts_are_compared_with_full_attention_and_drawn(run, tmp_path):
    words = ("--sizes=tiny", "--lengths", "32", "70", f"--picture={tmp_path}/long.png")
    result, printed = run(long_context, *words, *SEGMENT)
    rows = result["rows"]
    assert [(row["tokens"], row["way"]) for row in rows] == [
        (length, way) for length in (32, 70) for way in ("sequential", "diagonal", "full attention")
    ]
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["share_of_ceiling"] > 0 and 0 <= row["peak_bytes"] < 1e9
    full = rows[-1]["seconds"] / rows[-2]["seconds"]
    assert rows[-2]["times_faster_than_full attention"] == pytest.approx(full)
    assert result["logits_differ_by"]["tiny"]["diagonal"] < 1e-4
    assert (tmp_path / "long.png").stat().st_size > 10_000 and "full attention" in printed


def test_a_long_context_whose_memory_would_not_fit_is_left_out(run, monkeypatch):
    free = iter((1 << 40, 1 << 40, 1 << 40, 0))
    monkeypatch.setattr(long_context, "free_memory", lambda device: next(free))
    words = ("--sizes=tiny", "--lengths", "32", "64", "--executors=sequential")
    rows = run(long_context, *words, *SEGMENT)[0]["rows"]
    found = [(row["tokens"], row["way"]) for row in rows]
    assert found == [(32, "sequential"), (32, "full attention"), (64, "sequential")]


def test_a_stream_is_read_in_tenths(run):
    result, printed = run(stream, "--size=tiny", "--tokens=330", *SEGMENT)
    assert [row["tokens_read"] for row in result["rows"]] == [32 * tenth for tenth in range(1, 11)]
    assert all(row["peak_bytes"] > 1e7 and row["tokens_per_second"] > 0 for row in result["rows"])
    largest = max(row["peak_bytes"] for row in result["rows"])
    assert result["total"]["memory_growth"] == largest / result["rows"][0]["peak_bytes"]
    assert result["total"]["is_flat"] == ("NOT flat" not in printed) and result["total"]["tokens"] == 320


def test_a_stream_ends_in_time(run):
    result, _ = run(stream, "--size=tiny", "--tokens=330", "--max_seconds=1e-9", *SEGMENT)
    assert len(result["rows"]) == 1 and result["total"]["tokens"] == 32


def test_decoding_holds_a_segment_where_full_attention_holds_all(run):
    result, _ = run(generate, "--sizes=tiny", "--prompts", "40", "200", "--new_tokens=4", *SEGMENT)
    held = {(row["prompt"], row["way"]): row["held_bytes"] for row in result["rows"]}
    assert held[40, "ours"] == held[200, "ours"]  # both are 8 tokens into a segment
    assert held[200, "full attention"] / held[40, "full attention"] == pytest.approx(203 / 43)
    for row in result["rows"]:
        assert row["tokens_per_second"] > 0 and row["seconds_to_first_token"] > 0 and row["share_of_ceiling"] > 0


def run_tests(folder, monkeypatch):
    """As outside of pytest, where tests are run; what passed is remembered in a folder."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(folder))


def test_nothing_is_reported_while_tests_fail(tmp_path, monkeypatch, capsys):
    run_tests(tmp_path, monkeypatch)
    broken = tmp_path / "test_broken.py"
    broken.write_text("def test_it():\n    assert 1 == 2\n")
    with pytest.raises(SystemExit) as stopped:
        machine.require_tests(str(broken))
    assert stopped.value.code == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("nothing is reported while tests fail: FAILED") and "test_broken.py::test_it" in line


def test_tests_that_passed_are_not_run_again_on_the_same_sources(tmp_path, monkeypatch):
    run_tests(tmp_path, monkeypatch)
    fine = tmp_path / "test_fine.py"
    fine.write_text("def test_it():\n    open(__file__ + '.runs', 'a').write('x')\n")
    for _ in range(2):
        machine.require_tests(str(fine))
    assert Path(f"{fine}.runs").read_text() == "x"
    monkeypatch.setattr(machine.transformers, "__version__", "another")
    machine.require_tests(str(fine))
    assert Path(f"{fine}.runs").read_text() == "xx"


def test_one_command_runs_all_of_them(tmp_path):
    output = tmp_path / "all.json"
    environment = os.environ | {"DEVICE": "cpu", "SMALL": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    assert result.pop("failed") == {} and result.pop("seconds") < 480
    assert set(result) == {"flops", "train_step", "long_context", "stream", "generate"}
    assert all("ceiling" in part and part["options"]["device"] == "cpu" for part in result.values())


FAILS = """#!/bin/bash
[ "$1" = - ] && exec {python} "$@"
case "$1" in *stream.py) exit 3 ;; esac
echo '{{"ceiling": 1}}' >"$5"
"""


def test_one_command_names_what_failed(tmp_path):
    fails = tmp_path / "python"
    fails.write_text(FAILS.format(python=sys.executable))
    fails.chmod(0o755)
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), str(tmp_path / "all.json")]
    done = subprocess.run(command, env=os.environ | {"PYTHON": str(fails)}, capture_output=True, text=True)
    result = json.loads((tmp_path / "all.json").read_text())
    assert done.returncode == 1 and result["failed"] == {"stream": 3}
    assert result["long_context"] == {"ceiling": 1} and "stream" not in result
