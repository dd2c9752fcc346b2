"""One run, one folder, one process group at a time."""

import fcntl
import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .distributed import Engine
from .errors import UserError
from .loggers import say
from .status import exit_code, read_status


@contextmanager
def locked(folder: Path, engine: Engine) -> Iterator[None]:
    """Inside, no other process group can use the run folder; a dead process holds no lock.

    Raises:
        UserError: on every rank: the folder cannot be written, or another process holds it (names host and process).
    """
    problem, file = None, None
    if engine.rank == 0:
        try:
            file = _lock(folder)
        except (OSError, UserError) as error:
            problem = str(error)
    problem = engine.gather(problem)[0]
    if problem:
        raise UserError(problem)
    try:
        yield
    finally:
        if file is not None:
            file.close()


def finished(run: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The metrics of a run that these options have already completed."""
    path = run / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if metrics is None or metrics["config"] != config:
        return None
    say(f"{run} is done")
    return metrics


@contextmanager
def rank_log(folder: Path, rank: int) -> Iterator[None]:
    """Inside, what ranks other than 0 print goes to FOLDER/logs/rank-N.log.

    An error ends such a rank with its traceback there. The console gets one line, from the rank that failed first (by
    `status.json`): what other ranks say follows from it.
    """
    if rank == 0:
        yield
        return
    path = folder / "logs" / f"rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        console = _redirect([file.fileno(), file.fileno()])
        try:
            yield
        except BaseException as error:
            traceback.print_exc()
            status = read_status(folder) or {}
            is_first = status.get("status") == "failed" and status.get("rank") == rank
            _redirect(console)
            if is_first:
                print(f"rank {rank} failed: {type(error).__name__}: {error} (see {path})", file=sys.stderr)
            sys.exit(exit_code(error))
        _redirect(console)


def _redirect(files: list[int]) -> list[int]:
    """Point stdout and stderr of the process to open files; returns copies of what they were."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
    return before


def _lock(folder: Path) -> IO:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # a run.lock of an earlier run could be opened nevertheless
        raise UserError(f"{folder} cannot be written: make it writable, or give another --model_path")
    file = open(folder / "run.lock", "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{folder} is in use by {holder}; wait for it, or give another folder") from error
    file.truncate(0)
    file.write(f"{socket.gethostname()} pid {os.getpid()}\n")
    file.flush()
    return file
