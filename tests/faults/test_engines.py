"""Engines that really run: the same update on each, and what a launcher does when a rank dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import RUN, TESTS, assert_same, finish, result, start, wait_for_update
from safetensors.torch import load_file

from lm_experiments_tools import checkpoint
from lm_experiments_tools.distributed import make_engine
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.status import read_status

HOROVODRUN = Path(sys.executable).with_name("horovodrun")
needs_horovod = pytest.mark.skipif(
    not HOROVODRUN.exists(), reason="Horovod is not installed: scripts/install_horovod.sh"
)


def start_horovod(run, ranks=2, **options):
    words = [f"--{name}={value}" for name, value in (RUN | options).items() if value is not None]
    command = [
        str(HOROVODRUN),
        "-np",
        str(ranks),
        "-H",
        f"localhost:{ranks}",
        sys.executable,
        str(TESTS / "tiny_task.py"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    environment["PATH"] = f"{HOROVODRUN.parent}:{environment['PATH']}"
    return subprocess.Popen(
        [*command, f"--model_path={run}", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


@needs_horovod
@pytest.mark.parametrize("ranks, accumulation", [(2, 2), (2, 1), (4, 1)])
def test_horovod_makes_the_updates_of_one_process(tmp_path, ranks, accumulation):
    options = dict(iters=3, clip_grad_norm=None)  # without dropout
    batch = 8 // (ranks * accumulation)
    code, output = finish(
        start(tmp_path / "one", batch_size=8, gradient_accumulation_steps=1, **options | {"iters": 3})
    )
    assert code == 0, output
    process = start_horovod(
        tmp_path / "many", ranks, batch_size=batch, gradient_accumulation_steps=accumulation, **options
    )
    code, output = finish(process)
    assert code == 0, output
    one, many = (
        load_file(checkpoint.step_folder(tmp_path / name, 3) / "model.safetensors") for name in ("one", "many")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(many[name], tensor, atol=1e-6, rtol=1e-5)


def ranks_of(run):
    """Process ids of the ranks: python with the program as its first word."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_text().split("\0")
        except OSError:  # it has just ended
            continue
        if words[1:3] == [str(TESTS / "tiny_task.py"), f"--model_path={run}"]:
            found.append(int(entry.parent.name))
    return found


@needs_horovod
def test_under_horovod_a_dead_rank_ends_the_job_and_the_restarted_job_ends_the_same(tmp_path, ranks=4):
    code, output = finish(start_horovod(tmp_path / "whole", ranks))
    assert code == 0 and read_status(tmp_path / "whole")["status"] == "done", output
    process = start_horovod(tmp_path / "killed", ranks)
    wait_for_update(tmp_path / "killed", 12)
    listed = subprocess.run(
        ["pgrep", "-f", f"tiny_task.py --model_path={tmp_path / 'killed'}"], capture_output=True, text=True
    )
    workers = [int(pid) for pid in listed.stdout.split() if "python" in os.readlink(f"/proc/{pid}/exe")]
    own = [pid for pid in workers if "horovodrun" not in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(own[-1], signal.SIGKILL)
    began = time.monotonic()
    code, output = finish(process, seconds=60)
    assert code != 0 and time.monotonic() - began < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in own)
    code, output = finish(start_horovod(tmp_path / "killed", ranks))
    assert code == 0 and "resumed from" in output, output
    assert_same(tmp_path / "killed", result(tmp_path / "whole"))


def test_an_engine_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    for name, message in (
        ("horovod", "scripts/install_horovod.sh"),
        ("mpi", "choose one of auto, single, ddp, horovod"),
    ):
        with pytest.raises(UserError, match=message):
            make_engine(name)
