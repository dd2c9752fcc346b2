"""Callbacks, and the status that scripts read."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tiny_task import make_trainer

from lm_experiments_tools import status
from lm_experiments_tools.args import TrainerArgs
from lm_experiments_tools.callbacks import Callback
from lm_experiments_tools.preemption import Preempted

ROOT = Path(__file__).parents[1]


class Recorder(Callback):
    def __init__(self):
        self.seen = []

    def on_train_begin(self, trainer):
        self.seen.append("begin")

    def on_update_end(self, trainer, values):
        self.seen.append(f"update {trainer.progress.update}" + (" logged" if values else ""))

    def on_validate_end(self, trainer, metrics):
        assert metrics["loss"] > 0
        self.seen.append("validate")

    def on_save(self, trainer, folder):
        self.seen.append(folder.name)

    def on_train_end(self, trainer):
        self.seen.append("end")


def test_callbacks_see_every_moment_in_order(tmp_path):
    recorder = Recorder()
    args = TrainerArgs(
        model_path=str(tmp_path), iters=4, batch_size=2, valid_interval=3, save_interval=2, log_interval=2
    )
    make_trainer(args, callbacks=[recorder]).train()
    assert recorder.seen == [
        "begin", "update 1", "update 2 logged", "step-00000002", "update 3", "validate", "update 4 logged", "validate",
        "step-00000004", "end",
    ]  # fmt: skip


class StopAfterTwo(Callback):
    def on_update_end(self, trainer, values):
        if trainer.progress.update == 2:
            trainer.progress.stop_reason = "a callback said so"


def test_a_callback_can_end_the_run():
    progress = make_trainer(TrainerArgs(iters=9, batch_size=2), callbacks=[StopAfterTwo()]).train()
    assert progress.update == 2 and progress.stop_reason == "a callback said so"


def run_reported(run, rank, action):
    with status.reported(run, rank, lambda: 7):
        assert status.read_status(run) is None or rank == 0
        action()


def raise_(error):
    raise error


def test_the_status_tells_how_a_run_ended(tmp_path):
    run_reported(tmp_path, 0, lambda: None)
    assert status.read_status(tmp_path)["status"] == "done"
    with pytest.raises(Preempted):
        run_reported(tmp_path, 0, lambda: raise_(Preempted("SIGTERM")))
    assert status.read_status(tmp_path) == status.read_status(tmp_path) | {"status": "preempted", "reason": "SIGTERM"}
    with pytest.raises(RuntimeError), status.reported(tmp_path, 0, lambda: 7):
        with pytest.raises(RuntimeError), status.reported(tmp_path, 1, lambda: 8):  # the first to fail stays
            raise RuntimeError("no memory")
        raise RuntimeError("connection closed by peer")
    found = status.read_status(tmp_path)
    assert found == found | {"status": "failed", "rank": 1, "update": 8, "reason": "RuntimeError: no memory"}


def test_the_status_of_a_curriculum_is_that_of_its_last_stage(tmp_path, capsys):
    for stage, name in ((1, "done"), (2, "done"), (10, "preempted")):
        status.write_status(tmp_path / f"stage-{stage}", name, 5)
    status.main([str(tmp_path)])
    status.main([str(tmp_path / "stage-2")])
    status.main([str(tmp_path / "nothing")])
    assert capsys.readouterr().out.split() == ["preempted", "done", "unknown"]


@pytest.mark.parametrize(
    "code, written, requeued, expected",
    [
        (0, "done", False, 0),
        (1, "preempted", True, 0),
        (137, "running", True, 0),
        (1, "failed", False, 1),
        (2, None, False, 2),
    ],
)
def test_the_slurm_script_requeues_itself_by_the_status(tmp_path, code, written, requeued, expected):
    """With stand-ins for SLURM's commands."""
    tools, run = tmp_path / "bin", tmp_path / "run"
    tools.mkdir()
    (tools / "srun").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/srun\nexit {code}\n')
    (tools / "scontrol").write_text(f'#!/bin/sh\n[ "$1" = show ] && echo node1 || echo "$@" > {tmp_path}/requeue\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    if written:
        status.write_status(run, written, 3)
    repository = tmp_path / "repository"
    (repository / "scripts").mkdir(parents=True)
    (repository / "scripts" / "setup_venv.sh").write_text("")  # the tests' own environment is there already
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2", "SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(repository), "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    script = ROOT / "scripts" / "slurm" / "babilong.sbatch"
    done = subprocess.run(
        ["bash", str(script), "c.yaml", str(run), "--lr", "1"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == expected, done.stderr
    assert (tmp_path / "requeue").exists() == requeued
    words = (tmp_path / "srun").read_text().split()
    assert words[words.index("--nnodes") + 1] == "2" and words[words.index("--nproc_per_node") + 1] == "4"
    assert words[-5:] == ["c.yaml", "--runs", str(run), "--lr", "1"]
    assert json.dumps(words).count("node1:29500") == 1
