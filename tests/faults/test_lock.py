"""A run folder belongs to one process group at a time."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import TESTS, wait_for_file

HOLDER = """
import sys, time
from pathlib import Path
from lm_experiments_tools import cli
from lm_experiments_tools.distributed import make_engine
from lm_experiments_tools.run_folder import locked

run = Path(sys.argv[1])

def main():
    with locked(run, make_engine("single")):
        (run / sys.argv[2]).touch()
        time.sleep(float(sys.argv[3]))

cli.run(main)
"""


def hold(run, name, seconds):
    command = [sys.executable, "-c", HOLDER, str(run), name, str(seconds)]
    return subprocess.Popen(command, cwd=TESTS.parent, stderr=subprocess.PIPE, text=True)


@pytest.mark.case(21, "a second run in the folder is refused at once; a dead process holds no lock")
def test_a_second_run_is_refused_with_host_and_process_until_the_first_is_gone(tmp_path):
    first = hold(tmp_path, "first", 120)
    wait_for_file(tmp_path / "first")
    began = time.monotonic()
    second = hold(tmp_path, "second", 0)
    _, error = second.communicate(timeout=60)
    assert second.returncode == 2 and time.monotonic() - began < 30  # most of it is the import of torch
    assert f"{tmp_path} is in use by {socket.gethostname()} pid {first.pid}" in error
    assert first.poll() is None and not (tmp_path / "second").exists()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    third = hold(tmp_path, "third", 0)
    assert third.wait(timeout=60) == 0 and (tmp_path / "third").exists()
