"""`status.json` of a run folder: what scripts read, because launchers hide exit codes.

{"status": "running" | "done" | "preempted" | "failed", "update": 120, "reason": "...", "rank": 0, "time": "..."}

A process that is killed leaves "running": like "preempted", it is to be started again.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from .errors import UserError
from .preemption import EXIT_CODE, Preempted

Status = Literal["running", "done", "preempted", "failed"]
NAME = "status.json"


def write_status(run: Path, status: Status, update: int, reason: str | None = None, rank: int = 0) -> None:
    """Replace the file in one step."""
    content = {"status": status, "update": update, "reason": reason, "rank": rank}
    content["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    run.mkdir(parents=True, exist_ok=True)
    temporary = run / f"{NAME}.{rank}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(run / NAME)


def read_status(run: Path) -> dict | None:
    """The content of the file, or None if there is none."""
    path = run / NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def exit_code(error: BaseException) -> int:
    """Of a process that this error ends: 75 to be continued, 2 for the user to mend, 1 for all else."""
    return EXIT_CODE if isinstance(error, Preempted) else 2 if isinstance(error, UserError) else 1


@contextmanager
def reported(run: Path, rank: int, update: Callable[[], int]) -> Iterator[None]:
    """The block is a run: how it goes and ends is in its `status.json`.

    Rank 0 writes; a rank that fails writes too, and the first failure stays, which others often follow from.

    Args:
        update: how far the run has come.
    """
    if rank == 0:
        write_status(run, "running", update())
    try:
        yield
    except Preempted as error:
        if rank == 0:
            write_status(run, "preempted", update(), str(error))
        raise
    except BaseException as error:
        if (read_status(run) or {}).get("status") != "failed":
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            write_status(run, "failed", update(), reason, rank)
        raise
    if rank == 0:
        write_status(run, "done", update())


def main(argv: list[str] | None = None) -> None:
    """`python -m lm_experiments_tools.status RUN`: of a run, or of the last stage of a curriculum that began."""
    (run,) = sys.argv[1:] if argv is None else argv
    statuses = [read_status(folder) for folder in (Path(run), *sorted(Path(run).glob("stage-*"), key=_number))]
    begun = [status for status in statuses if status]
    print(begun[-1]["status"] if begun else "unknown")


def _number(folder: Path) -> list[int]:
    """Of stage-2-retry-1: 2, 1."""
    return [int(number) for number in re.findall(r"\d+", folder.name)]


if __name__ == "__main__":
    main()
