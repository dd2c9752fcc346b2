"""Starting, stopping and comparing real runs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lm_experiments_tools import checkpoint
from lm_experiments_tools.status import read_status

TESTS = Path(__file__).parents[1]
PROGRAMS = [[str(TESTS / name)] for name in ("tiny_task.py", "faults/faulty_task.py")]
HOROVODRUN = Path(sys.executable).with_name("horovodrun")
needs_horovod = pytest.mark.skipif(
    not HOROVODRUN.exists(), reason="Horovod is not installed: scripts/install_horovod.sh"
)
TIMINGS = {"tokens_per_second", "samples_per_second", "data_wait_share", "model_flops_utilisation", "peak_memory_gib"}
UPDATES = 40
RUN = dict(
    iters=UPDATES, batch_size=2, gradient_accumulation_steps=2, save_interval=7, valid_interval=5, log_interval=1,
    save_best=True, lr_scheduler="linear", num_warmup_steps=10, clip_grad_norm=1.0,
)  # fmt: skip


def launch(run, options, ranks=1, fault=None, restarts=0, program=None):
    """A run of `tiny_task.py` or another program as processes of its own, by the launcher of its engine.

    `fault`: see `faulty_task.py`; `restarts`: by torchrun.
    """
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    program = program or TESTS / ("faults/faulty_task.py" if fault else "tiny_task.py")
    command = [sys.executable, str(program), f"--model_path={run}", *words]
    engine = options.get("engine", "auto")
    if engine == "horovod":
        command = [str(HOROVODRUN), "-np", str(ranks), "-H", f"localhost:{ranks}", *command]
    elif ranks > 1 or engine == "fsdp":
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--max-restarts={restarts}"]
        command = [sys.executable, *torchrun, f"--nproc_per_node={ranks}", *command[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "FAULT": fault or ""}
    environment["PATH"] = f"{HOROVODRUN.parent}:{environment['PATH']}"
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def start(run, ranks=1, fault=None, restarts=0, **options):
    """`launch` with the options of this suite."""
    return launch(run, RUN | options, ranks, fault, restarts)


def completed(run, *arguments, **options):
    """The output of a run that must end well."""
    code, output = finish(start(run, *arguments, **options))
    assert code == 0 and read_status(run)["status"] == "done", output
    return output


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


def ranks_of(run):
    """Process ids of the ranks of a run: python with the program as its first word, whoever started it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = [word for word in entry.read_text().split("\0") if word != "-u"]
        except OSError:  # it has just ended
            continue
        if words[1:2] in PROGRAMS and f"--model_path={run}" in words:
            found.append(int(entry.parent.name))
    return sorted(found)


def wait_until_none_is_left(run, seconds):
    deadline = time.monotonic() + seconds
    while left := ranks_of(run):
        assert time.monotonic() < deadline, f"{left} still run after {seconds} s"
        time.sleep(0.05)


def result(run):
    """What must be equal: the last checkpoint and the rows of the log, without times."""
    folder = checkpoint.step_folder(run, UPDATES)
    assert checkpoint.problem_of(folder) is None
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    parts = sorted((folder / "optimizer").glob("*"))
    return {
        "weights": (folder / "model.safetensors").read_bytes(),
        "optimizer": repr(torch.load(folder / "optimizer.pt", weights_only=True)),
        "optimizer parts": {path.name: repr(sorted(load_file(path).items())) for path in parts},
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
