"""Asked to stop: signals and the time limit, on which all ranks act at the same update.

SIGTERM (SLURM, torchrun), SIGUSR1 (SLURM's warning) and SIGINT (Ctrl-C) ask; the update or validation in progress is
ended, the run saved. A second signal, at least a second later, ends the process at once; sooner ones are echoes of the
first: SLURM and a terminal send to every process what torchrun hands on to its ranks as well, and Linux tells of a dead
parent once for each of its threads.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ECHO = 1.0  # seconds in which a signal counts as the one before
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again


class Preempted(Exception):
    """The run was saved before its end, to be continued; the message says why."""


def leave_signals_to_the_run(_: int) -> None:
    """In a process that prepares data (its number): SLURM and a terminal signal every process of the job, and a worker
    that ends by itself would take the run with it, unsaved. The run ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """Whether this rank was asked to stop. Used as a context, in which the signals are caught.

    Args:
        max_hours: of this process, from which on it asks itself.
    """

    def __init__(self, max_hours: float | None):
        self.deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self.max_hours = max_hours
        self.signal: int | None = None
        self.signalled = 0.0  # time of the monotonic clock
        self.before: dict[int, object] = {}
        self.depth = 0  # of contexts inside each other

    def __enter__(self) -> StopRequest:
        self.depth += 1
        if (
            self.depth == 1 and threading.current_thread() is threading.main_thread()
        ):  # Python allows handlers nowhere else
            self.before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        self.depth -= 1
        if self.depth:
            return
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self.signalled = number, time.monotonic()
        elif time.monotonic() - self.signalled > ECHO:
            os._exit(128 + number)

    @property
    def reason(self) -> str | None:
        """Why this rank wants to stop, or None."""
        if self.signal is not None:
            return signal.Signals(self.signal).name
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return f"max_hours {self.max_hours:g}"
        return None
