"""`tiny_task` with a fault, named by the environment variable FAULT.

validations-wait       validations wait until the run is asked to stop
updates-take SECONDS   so that a second signal finds an update in progress
stop-after UPDATE PART    SIGTERM in that part (1 or 2) of the update
nan RANK UPDATE...     the loss of that rank is not a number in these updates
no-space FROM TO       files of more than 100 bytes cannot be written by saves at updates FROM to TO
no-space-for-parts UPDATE    nor those that every rank writes, at that update
die MOMENT UPDATE      SIGKILL on rank 0: in its `update` between two micro-batches, in its `validation`, or in its save
                       behind the `first-file`, before the `manifest`, before the `rename`
saves-take SECONDS     the files are written that much later
out-of-memory SIZE     of every rank, in micro-batches of more than SIZE samples; `SIZE RANK`: of that rank
"""

import os
import resource
import signal
import sys
import time
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path

import tiny_task
import torch

from lm_experiments_tools import checkpoint, cli
from lm_experiments_tools.distributed import shards
from lm_experiments_tools.trainer import Trainer

NAME, *VALUES = os.environ["FAULT"].split()
validate, forward, write_folder = Trainer.validate, tiny_task.TinyModel.forward, checkpoint.write_folder
save, save_weights, step = shards.save, checkpoint.save_weights, Trainer.step
RANK = int(os.environ.get("RANK", os.environ.get("HOROVOD_RANK", "0")))
run = Path(next(word.partition("=")[2] for word in sys.argv if word.startswith("--model_path=")))
accumulation = int(next(word.partition("=")[2] for word in sys.argv if "gradient_accumulation_steps=" in word))
calls, passes = 0, count()


def waiting_validate(self, *arguments):
    (run / "validating").touch()
    deadline = time.monotonic() + 30
    while self.stop_request.reason is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return validate(self, *arguments)


def slow_forward(self, **batch):
    (run / "updating").touch()
    time.sleep(float(VALUES[0]))
    return forward(self, **batch)


def nan_forward(self, **batch):
    global calls
    output = forward(self, **batch)
    if self.training:
        calls += 1
        rank, *updates = map(int, VALUES)
        if rank == RANK and -(-calls // accumulation) in updates:
            output["loss"] = output["loss"] * float("nan")
    return output


def stopping_forward(self, **batch):
    global calls
    if self.training:
        calls += 1
        update, part = map(int, VALUES)
        if calls == accumulation * (update - 1) + part:
            os.kill(os.getpid(), signal.SIGTERM)
    return forward(self, **batch)


def die():
    if RANK == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def dying_step(self, module, batches, sums):
    if self.progress.update + 1 == int(VALUES[1]):
        self.model.register_forward_hook(lambda *_: die() if next(passes) == 1 else None)
    return step(self, module, batches, sums)


def dying_validate(self, *arguments):
    output = validate(self, *arguments)
    if self.progress.update == int(VALUES[1]):
        die()
    return output


def dying_write_folder(folder, fill):
    if int(folder.name[5:13]) == int(VALUES[1]):
        if VALUES[0] == "first-file":
            checkpoint.save_weights = lambda *arguments: (save_weights(*arguments), die())
        elif VALUES[0] == "manifest":
            checkpoint._fingerprint = lambda _: die()
        else:
            Path.rename = lambda *_: die()
    write_folder(folder, fill)


def full_save(tensors, folder, group):
    if int(folder.name[5:13]) != int(VALUES[0]):
        return save(tensors, folder, group)
    with no_space():
        save(tensors, folder, group)


def late_write_folder(folder, fill):
    (run / "saving").touch()
    time.sleep(float(VALUES[0]))
    write_folder(folder, fill)


def large_forward(self, **batch):
    size, *rank = map(int, VALUES)
    if self.training and len(batch["input_ids"]) > size and RANK in (rank or [RANK]):
        raise torch.OutOfMemoryError("out of memory, as asked for")
    return forward(self, **batch)


@contextmanager
def no_space():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_write_folder(folder, fill):
    first, last = map(int, VALUES)
    with no_space() if first <= int(folder.name[5:13]) <= last else nullcontext():
        write_folder(folder, fill)


signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write without space fails, as on a full disk
FAULTS = {
    "validations-wait": (Trainer, "validate", waiting_validate),
    "updates-take": (tiny_task.TinyModel, "forward", slow_forward),
    "stop-after": (tiny_task.TinyModel, "forward", stopping_forward),
    "nan": (tiny_task.TinyModel, "forward", nan_forward),
    "out-of-memory": (tiny_task.TinyModel, "forward", large_forward),
    "no-space": (checkpoint, "write_folder", full_write_folder),
    "no-space-for-parts": (shards, "save", full_save),
    "saves-take": (checkpoint, "write_folder", late_write_folder),
    "die update": (Trainer, "step", dying_step),
    "die validation": (Trainer, "validate", dying_validate),
    "die first-file": (checkpoint, "write_folder", dying_write_folder),
    "die manifest": (checkpoint, "write_folder", dying_write_folder),
    "die rename": (checkpoint, "write_folder", dying_write_folder),
}

if __name__ == "__main__":
    setattr(*FAULTS[f"die {VALUES[0]}" if NAME == "die" else NAME])
    cli.run(tiny_task.main)
