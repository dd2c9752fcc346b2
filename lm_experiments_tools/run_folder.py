"""One run, one folder, one process group at a time."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from .distributed import Engine
from .errors import UserError


def lock_run_folder(folder: Path, engine: Engine) -> IO | None:
    """Lock a run folder for as long as the returned file (on rank 0) is open; a dead process holds no lock.

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
    return file


def _lock(folder: Path) -> IO:
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "run.lock", "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{folder} is in use by {holder}; wait for it, or give another --model_path") from error
    file.truncate(0)
    file.write(f"{socket.gethostname()} pid {os.getpid()}\n")
    file.flush()
    return file
