"""One run, one folder, one process group at a time."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .distributed import Engine
from .errors import UserError


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
