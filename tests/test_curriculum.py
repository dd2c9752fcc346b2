"""Curricula: what follows from a stage's metrics, the ledger, kills, torchrun."""

import json
import os
import signal
import subprocess
import sys

import pytest
from test_runner import ROOT, options, program, shared, wait_for  # noqa: F401

from lm_experiments_tools import cli, curriculum, status
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.preemption import Preempted

TIMES = ("seconds", "started", "resumed", "ended")
SCRIPTED_RUNNER = '''
"""A run whose validation metric is in METRICS, by its folder; an exception there is raised."""
import json
from dataclasses import dataclass
from pathlib import Path

from lm_experiments_tools import cli
from lm_experiments_tools.args import TrainerArgs
from lm_experiments_tools.run_options import RunArgs
from lm_experiments_tools.status import reported

METRICS, CALLS = {}, []


@dataclass
class TaskArgs:
    task_dataset: str = "toy"
    max_n_segments: int = 1
    model_cpt: str | None = None


def main(argv):
    run_args, task, args = cli.parse(argv, RunArgs, TaskArgs, TrainerArgs)
    run = Path(args.model_path)
    CALLS.append(run.name)
    value = METRICS.get(run.name, 1.0)
    with reported(run, 0, lambda: args.iters):
        if isinstance(value, Exception):
            raise value
        metrics = {"task": task.task_dataset, "trained_n_segments": task.max_n_segments, "update": args.iters,
                   "tokens": 10 * args.iters, "stop_reason": "scripted", "valid": {args.optimize_metric: value},
                   "test": {}, "config": cli.resolved(run_args, task, args)}
        row = {"split": "valid", "update": args.iters, args.optimize_metric: value}
        (run / "log.jsonl").write_text(json.dumps(row))
        (run / "metrics.json").write_text(json.dumps(metrics))
    return metrics
'''
SHARED = {
    "runner": "scripted.py", "iters": 5, "valid_interval": 5, "save_best": "true", "optimize_metric": "exact_match",
    "optimize_mode": "max",
}  # fmt: skip


@pytest.fixture
def scripted(tmp_path):
    """Runs stages of the scripted runner; returns its folder, its module, and the ledger's attempts by folder."""
    (tmp_path / "scripted.py").write_text(SCRIPTED_RUNNER)

    def run(metrics, *stages, overrides=(), **shared_options):
        config = tmp_path / "curriculum.yaml"
        config.write_text(cli.to_yaml(SHARED | shared_options | {"stages": list(stages)}))
        runner = curriculum.load_runner(config, "scripted.py")
        runner.METRICS |= metrics
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(curriculum, "load_runner", lambda *_: runner)
            try:
                curriculum.run_curriculum(str(config), str(tmp_path / "runs"), list(overrides))
            finally:
                run.calls = [name for name in runner.CALLS if (tmp_path / "runs" / name / "status.json").exists()]
        return ledger(tmp_path / "runs")

    return run


def ledger(runs):
    return {row["folder"]: row for row in json.loads((runs / "curriculum.json").read_text())["attempts"]}


def statuses(rows):
    return {name: row["status"] for name, row in rows.items()}


def test_a_dry_run_estimates_every_stage_and_writes_nothing(shared, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(ROOT)
    config, runs = tmp_path / "c.yaml", tmp_path / "runs"
    stages = [{}, {"max_n_segments": 3, "sharpen_gates": 3}]  # which needs weights to start from, in a run
    config.write_text(cli.to_yaml({"runner": "run_finetuning_babilong.py", "stages": stages}))
    curriculum.main([str(config), "--runs", str(runs), *options(shared, runs)[2:], "--dry_run"])
    printed = capsys.readouterr().out
    assert printed.count("--- stage") == 2 and printed.count("one update") == 2 and not runs.exists()


def test_a_stage_that_falls_back_is_retried_from_the_stage_before_with_another_seed(scripted, tmp_path):
    rows = scripted(
        {"stage-2": 0.3, "stage-2-retry-1": 0.4, "stage-2-retry-2": 0.8}, {}, {"max_n_segments": 2},
        {"max_n_segments": 4}, min_metric=0.5, max_retries=3,
    )  # fmt: skip
    assert statuses(rows) == {
        "stage-1": "done", "stage-2": "fell back", "stage-2-retry-1": "fell back", "stage-2-retry-2": "done",
        "stage-3": "done",
    }  # fmt: skip
    assert [row["started_from"] for row in rows.values()] == [None, *3 * ["stage-1"], "stage-2-retry-2"]
    assert [row["taken"] for row in rows.values()] == [True, False, False, True, True]
    config = json.loads((tmp_path / "runs" / "stage-2-retry-2" / "metrics.json").read_text())["config"]
    assert config["seed"] == 42 + 2000 and config["model_cpt"] == str(tmp_path / "runs" / "stage-1")
    assert (tmp_path / "runs" / "curriculum.png").stat().st_size > 5000


def test_after_the_last_retry_the_best_attempt_is_taken_and_the_ledger_says_so(scripted, tmp_path):
    metrics = {"stage-1": 0.3, "stage-1-retry-1": 0.4, "stage-1-retry-2": 0.2}
    rows = scripted(metrics, {"max_n_segments": 1}, {"max_n_segments": 2}, min_metric=0.5, max_retries=2)
    assert rows["stage-2"]["started_from"] == "stage-1-retry-1" and rows["stage-2"]["note"] is None
    assert rows["stage-1-retry-1"]["taken"] and rows["stage-1-retry-1"]["status"] == "fell back"
    assert rows["stage-1-retry-1"]["note"] == "no attempt of 3 reached min_metric 0.5"


def test_a_lower_metric_is_better_where_the_options_say_so_and_nan_is_the_worst(scripted):
    metrics = {"stage-1": float("nan"), "stage-1-retry-1": 3.0, "stage-1-retry-2": 2.5}
    rows = scripted(metrics, {}, min_metric=2.0, max_retries=2, optimize_metric="loss", optimize_mode="min")
    assert [row["taken"] for row in rows.values()] == [False, False, True]
    assert rows["stage-1"]["best_metric"] == "nan"
    again = scripted({}, {}, min_metric=2.0, max_retries=2, optimize_metric="loss", optimize_mode="min")
    assert again == rows


def test_stop_on_failure_ends_the_curriculum_with_an_error(scripted, tmp_path, capsys):
    failing = dict(min_metric=0.5, max_retries=1, stop_on_failure="true")
    for _ in range(2):  # a scheduler that starts it again changes nothing
        with pytest.raises(curriculum.FellBack, match="stage 1: no attempt of 2 reached min_metric 0.5; .* 0.4"):
            scripted({"stage-1": 0.3, "stage-1-retry-1": 0.4}, {}, {"max_n_segments": 2}, **failing)
    assert not (tmp_path / "runs" / "stage-2").exists()
    status.main([str(tmp_path / "runs")])
    assert capsys.readouterr().out.splitlines()[-1] == "failed"
    with pytest.raises(SystemExit, match="error: stage 1: no attempt of 2"):
        curriculum.main([str(tmp_path / "curriculum.yaml"), "--runs", str(tmp_path / "runs")])
    rows = scripted({}, {}, {"max_n_segments": 2}, **failing | {"max_retries": 2})
    assert rows["stage-2"]["started_from"] == "stage-1-retry-2"


def test_the_ledger_tells_of_every_attempt(scripted, tmp_path):
    (row, other) = scripted({"stage-1": 0.75}, {"lr": 0.1, "iters": 7}, {"lr": 0.2, "max_n_segments": 3}).values()
    seconds = row["seconds"]
    assert row == {
        "stage": 1, "attempt": 0, "name": "1 segment", "options": {"max_n_segments": 1, "iters": 7, "lr": 0.1},
        "folder": "stage-1", "started_from": None, "status": "done", "stop_reason": "scripted",
        "metric": "exact_match", "best_metric": 0.75, "best_update": 7, "update": 7, "tokens": 70, "test": {},
        "seconds": seconds, "started": row["started"], "resumed": row["started"], "ended": row["ended"],
        "taken": True, "note": None,
    }  # fmt: skip
    assert 0 < seconds < 60 and row["started"] < row["ended"] < other["ended"] and other["name"] == "3 segments"


def test_a_finished_curriculum_that_is_started_again_changes_nothing(scripted):
    stages = {}, {"max_n_segments": 2}
    rows = scripted({"stage-2": 0.1}, *stages, min_metric=0.5, max_retries=1)
    assert scripted({}, *stages, min_metric=0.5, max_retries=1) == rows and scripted.calls == []


@pytest.mark.parametrize(
    "error, ended",
    [(Preempted("SIGTERM at update 3"), "preempted"), (RuntimeError("no memory"), "failed")],
)
def test_the_seconds_of_all_starts_add_up(scripted, tmp_path, error, ended):
    with pytest.raises(type(error)):
        scripted({"stage-2": error}, {}, {"max_n_segments": 2})
    row = ledger(tmp_path / "runs")["stage-2"]
    assert row["status"] == ended and str(error) in row["stop_reason"] and row["best_metric"] is None
    path = tmp_path / "runs" / "curriculum.json"
    path.write_text(path.read_text().replace(f'"seconds": {row["seconds"]}', '"seconds": 1000.0'))
    after = scripted({}, {}, {"max_n_segments": 2})["stage-2"]
    assert 1000 < after["seconds"] < 1060 and after["started"] == row["started"] < after["resumed"]
    assert after["status"] == "done" and after["stop_reason"] == "scripted"


def test_the_time_of_a_killed_process_counts_to_its_last_sign_of_life(scripted, tmp_path):
    scripted({}, {})
    path, run = tmp_path / "runs" / "curriculum.json", tmp_path / "runs" / "stage-1"
    content = json.loads(path.read_text())
    content["attempts"][0] |= {"status": "running", "seconds": 5.0, "resumed": "2026-01-01T00:00:00.000+00:00"}
    path.write_text(json.dumps(content))
    for sign in (run, *run.rglob("*")):
        os.utime(sign, (0, 0))
    os.utime(run / "log.jsonl", (1767225720, 1767225720))  # two minutes later
    row = scripted({}, {})["stage-1"]
    assert row["seconds"] == 125 and row["ended"].startswith("2026-01-01T00:02:00") and row["status"] == "done"


def test_target_metric_is_the_runners_desired_metric(scripted, tmp_path):
    scripted({}, {"target_metric": 0.8}, {"max_n_segments": 2}, target_metric=0.9)
    configs = [json.loads((tmp_path / "runs" / f"stage-{n}" / "metrics.json").read_text())["config"] for n in (1, 2)]
    assert [config["desired_metric"] for config in configs] == [0.8, 0.9]


def test_the_curriculums_own_options_may_come_from_the_command_line(scripted):
    overrides = ["--iters", "6", "--max_retries", "1", "--min_metric", "0.5", "--optimize_mode", "max"]
    rows = scripted({"stage-1": 0.1}, {}, {"iters": 7}, overrides=overrides)
    assert list(rows) == ["stage-1", "stage-1-retry-1", "stage-2"] and rows["stage-2"]["update"] == 6


def test_samples_per_update_sets_the_accumulation_by_the_ranks(scripted, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    scripted({}, {"batch_size": 2}, {"batch_size": 4}, samples_per_update=48)
    configs = [json.loads((tmp_path / "runs" / f"stage-{n}" / "metrics.json").read_text())["config"] for n in (1, 2)]
    assert [config["gradient_accumulation_steps"] for config in configs] == [6, 3]


@pytest.mark.parametrize(
    "stage, message",
    [
        ({"itres": 3}, r"stage 2: unrecognized arguments: --itres 3 \(did you mean --iters\?\)"),
        ({"max_retries": "many"}, "stage 2: argument --max_retries.*: invalid int value: 'many'"),
        ({"max_retries": -1}, "stage 2: max_retries is -1; it must be at least 0"),
        ({"samples_per_update": 0}, "stage 2: samples_per_update is 0"),
        ({"samples_per_update": 3, "batch_size": 2}, "stage 2: batch_size 2 on 1 ranks does not divide"),
        ({"samples_per_update": 4, "gradient_accumulation_steps": 2}, "samples_per_update sets gradient_acc"),
        ({"target_metric": 0.5, "desired_metric": 0.5}, "stage 2: target_metric sets desired_metric: give one"),
        ({"min_metric": 0.5, "save_best": "false"}, "stage 2: min_metric judges the best checkpoint: set save_best"),
        ({"max_retries": 2}, "max_retries needs min_metric"),
        ({"validate_only": "true"}, "stage 2: validate_only: a curriculum trains; to score a model, run scripted.py"),
        ({"iters": 0}, "stage 2: iters is 0"),
        ({"lr": "fast"}, "stage 2: argument --lr.*: invalid float value: 'fast'"),
        ("faster", "stage 2: expected options, as in {iters: 1000}, not 'faster'"),
    ],
)
def test_a_wrong_option_of_any_stage_is_named_before_anything_runs(scripted, tmp_path, stage, message):
    with pytest.raises(UserError, match=message):
        scripted({}, {}, stage)
    assert not (tmp_path / "runs").exists()


def test_a_curriculum_has_stages_and_a_runner_that_exists(scripted, tmp_path):
    with pytest.raises(UserError, match="expected `runner: PROGRAM.py` and a list `stages`"):
        scripted({})
    (tmp_path / "none.yaml").write_text("runner: absent.py\nstages: [{iters: 1}]")
    with pytest.raises(UserError, match="no runner absent.py"):
        curriculum.run_curriculum(str(tmp_path / "none.yaml"), str(tmp_path / "runs"), [])


def test_a_folder_of_another_task_is_refused(scripted):
    scripted({}, {}, task_dataset="qa1")
    with pytest.raises(UserError, match="holds a curriculum of qa1, not qa2: give another --runs"):
        scripted({}, {}, task_dataset="qa2")


def test_the_status_is_that_of_the_last_stage_or_retry(tmp_path, capsys):
    for folder, name in (("stage-2", "done"), ("stage-2-retry-1", "preempted"), ("stage-1-retry-3", "done")):
        status.write_status(tmp_path / folder, name, 5)
    status.main([str(tmp_path)])
    status.write_status(tmp_path / "stage-10", "running", 5)
    status.main([str(tmp_path)])
    assert capsys.readouterr().out.split() == ["preempted", "running"]


CURRICULUM = """
runner: run_finetuning_babilong.py
max_retries: 1
stages:
  - {facts_only: true, iters: 40, target_metric: 0.0}
  - {max_n_segments: 1, iters: 30, save_interval: 3, min_metric: 2}
  - {max_n_segments: 2, vary_n_segments: true, iters: 3, test_n_segments: [1, 2, 4]}
"""


@pytest.fixture
def words(shared, tmp_path):  # noqa: F811
    """Of a curriculum that promotes stage 1 at once, and retries stage 2, which cannot reach its metric, in RUNS."""
    (tmp_path / "curriculum.yaml").write_text(CURRICULUM)
    unset = dict.fromkeys(("iters", "max_n_segments", "test_n_segments"))
    common = options(shared, None, **unset | {"max_n_facts": 2})
    return lambda runs: ["-m", "lm_experiments_tools.curriculum", tmp_path / "curriculum.yaml", "--runs", runs, *common]


def without_times(runs):
    rows = [{name: v for name, v in row.items() if name not in TIMES} for row in ledger(runs).values()]
    return rows, [(runs / row["folder"] / "metrics.json").read_text().replace(str(runs), "") for row in rows]


def completed(*command, env=None):
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_curriculum_killed_in_a_stage_and_in_a_retry_ends_as_the_uninterrupted_one(words, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    completed(sys.executable, *words(whole))
    for folder in ("stage-2", "stage-2-retry-1"):
        process = program(*words(killed))
        wait_for(killed / folder / "log.jsonl", '"update": 8')
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert ledger(killed)[folder]["status"] == "running"
    output = completed(sys.executable, *words(killed))
    assert f"{killed / 'stage-2'} is done" in output and f"resumed from {killed / 'stage-2-retry-1'}" in output
    rows, _ = without_times(whole)
    assert without_times(killed) == without_times(whole)
    assert [row["status"] for row in rows] == ["done", "fell back", "fell back", "done"]
    assert rows[0]["update"] == 2 and rows[0]["stop_reason"] == "exact_match 0.0000 reached desired_metric 0.0"
    assert rows[2]["options"]["seed"] == 1042 and rows[3]["test"].keys() == {"1", "2", "4"}
    log = (killed / "stage-2-retry-1" / "log.jsonl").read_text().splitlines()
    assert [row["update"] for row in map(json.loads, log) if row["split"] == "train"] == list(range(1, 31))
    assert ledger(killed)["stage-2"]["seconds"] > 1 and (killed / "curriculum.png").exists()
    assert (killed / "metrics.json").exists() and (killed / "accuracy.png").exists()
    second = program(*words(killed))
    assert second.communicate(timeout=120)[0].count("is done") == 4


def test_all_ranks_of_torchrun_take_the_same_decisions(words, tmp_path):
    runs = tmp_path / "runs"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = launcher + words(runs)
    outputs = [completed(*command, "--data_n_workers", 0, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert statuses(ledger(runs)) == {
        "stage-1": "done", "stage-2": "fell back", "stage-2-retry-1": "fell back", "stage-3": "done"
    }  # fmt: skip
    assert outputs[0].count("is done") == 0 and outputs[1].count("is done") == 4
    assert not list(runs.glob("*.tmp")) and (runs / "metrics.json").exists()


def test_a_second_curriculum_in_a_folder_ends_at_once_and_leaves_the_ledger(words, tmp_path):
    runs = tmp_path / "runs"
    command = [*words(runs), "--iters", "100000"]  # the first must not finish before the second has started
    first = program(*command)
    try:
        wait_for(runs / "curriculum.json", "running")
        second = program(*command)
        _, error = second.communicate(timeout=120)
        assert second.returncode == 2 and f"{runs} is in use by" in error and "Traceback" not in error
        assert "failed" not in (runs / "curriculum.json").read_text()
    finally:
        first.kill()
        first.communicate()
