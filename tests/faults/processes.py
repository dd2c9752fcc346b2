"""Starting, stopping and comparing real runs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from lm_experiments_tools import checkpoint

TESTS = Path(__file__).parents[1]
TIMINGS = {"tokens_per_second", "samples_per_second", "data_wait_share"}
UPDATES = 40
RUN = dict(
    iters=UPDATES, batch_size=2, gradient_accumulation_steps=2, save_interval=7, valid_interval=5, log_interval=1,
    save_best=True, lr_scheduler="linear", num_warmup_steps=10, clip_grad_norm=1.0,
)  # fmt: skip


def launch(run, options, ranks=1, fault=None, restarts=0):
    """A run of `tiny_task.py` as processes of its own; `fault`: see `faulty_task.py`; `restarts`: by torchrun."""
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--max-restarts={restarts}"]
    launcher = [*torchrun, f"--nproc_per_node={ranks}"] if ranks > 1 else []
    program = TESTS / ("faults/faulty_task.py" if fault else "tiny_task.py")
    command = [sys.executable, *launcher, str(program), f"--model_path={run}", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "FAULT": fault or ""}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start(run, ranks=1, fault=None, restarts=0, **options):
    """`launch` with the options of this suite."""
    return launch(run, RUN | options, ranks, fault, restarts)


def finish(process, seconds=120):
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def wait_for_update(run, update, seconds=120):
    """Until the log has a row of training update `update`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        log = run / "log.jsonl"
        if log.exists() and log.read_text().count('"split": "train"') >= update:
            return
        time.sleep(0.002)
    raise AssertionError(f"no update {update} in {run}")


def workers_of(launcher):
    """Process ids of the ranks that a launcher started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


def result(run):
    """What must be equal: the last checkpoint and the rows of the log, without times."""
    folder = checkpoint.step_folder(run, UPDATES)
    assert checkpoint.problem_of(folder) is None
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        "weights": (folder / "model.safetensors").read_bytes(),
        "optimizer": repr(torch.load(folder / "optimizer.pt", weights_only=True)),
        "progress": (folder / "trainer_state.json").read_text(),
        "rows": [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows],
        "best": os.readlink(run / "best"),
    }


def assert_same(run, expected):
    found = result(run)
    assert found["rows"] == expected["rows"], "every update is logged once, with the same values"
    for name, value in expected.items():
        assert found[name] == value, name


def wait_for_file(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.002)
