"""`tiny_task` with a fault, named by the environment variable FAULT.

validations-wait       validations wait until the run is asked to stop
updates-take-30s       so that a second signal finds an update in progress
nan RANK UPDATE...     the loss of that rank is not a number in these updates
no-space FROM TO       files of more than 100 bytes cannot be written by saves at updates FROM to TO
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import tiny_task

from lm_experiments_tools import checkpoint, cli
from lm_experiments_tools.trainer import Trainer

NAME, *VALUES = os.environ["FAULT"].split()
validate, forward, write_folder = Trainer.validate, tiny_task.TinyModel.forward, checkpoint.write_folder
run = Path(next(word.partition("=")[2] for word in sys.argv if word.startswith("--model_path=")))
accumulation = 2
calls = 0


def waiting_validate(self, *arguments):
    (run / "validating").touch()
    deadline = time.monotonic() + 30
    while self.stop_request.reason is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return validate(self, *arguments)


def slow_forward(self, **batch):
    (run / "updating").touch()
    time.sleep(30)
    return forward(self, **batch)


def nan_forward(self, **batch):
    global calls
    output = forward(self, **batch)
    if self.training:
        calls += 1
        rank, *updates = map(int, VALUES)
        if int(os.environ.get("RANK", "0")) == rank and -(-calls // accumulation) in updates:
            output["loss"] = output["loss"] * float("nan")
    return output


def stopping_forward(self, **batch):
    global calls
    if self.training:
        calls += 1
        if calls == accumulation * int(VALUES[0]):
            os.kill(os.getpid(), signal.SIGTERM)
    return forward(self, **batch)


def full_write_folder(folder, fill):
    first, last = map(int, VALUES)
    if not first <= int(folder.name[5:13]) <= last:
        return write_folder(folder, fill)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        write_folder(folder, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


if __name__ == "__main__":
    if NAME == "validations-wait":
        Trainer.validate = waiting_validate
    elif NAME == "updates-take-30s":
        tiny_task.TinyModel.forward = slow_forward
    elif NAME == "nan":
        tiny_task.TinyModel.forward = nan_forward
    elif NAME == "stop-after":
        tiny_task.TinyModel.forward = stopping_forward
    elif NAME == "no-space":
        checkpoint.write_folder = full_write_folder
    else:
        sys.exit(f"no fault {NAME!r}")
    cli.run(tiny_task.main)
