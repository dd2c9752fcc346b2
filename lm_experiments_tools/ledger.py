"""RUNS/curriculum.json: what a curriculum did. Written by rank 0, whole at each change, and decided on by nobody.

{"config": "configs/babilong/quickstart.yaml", "task": "qa1", "attempts": [{"stage": 1, "attempt": 0, ...}, ...]}

An attempt: stage, attempt (0; retries from 1), name, options (that differ between stages), folder (in RUNS),
started_from (folder or checkpoint), status (running, done, fell back, preempted, failed), stop_reason, metric (name),
best_metric and best_update, update (last one), tokens, test (metrics by length), seconds (of all its starts), started,
resumed (last start), ended, taken (the next stage starts from it), note.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .errors import UserError
from .evaluation.report import write_json
from .loggers import finite, say
from .preemption import Preempted

Row = dict[str, Any]
Metrics = dict[str, Any]  # of a run, as in its metrics.json
NAME = "curriculum.json"
BLANK: Row = dict.fromkeys(
    "stage attempt name options folder started_from status stop_reason metric best_metric best_update update tokens"
    " test seconds started resumed ended taken note".split()
) | {"seconds": 0.0, "taken": False}


def is_main() -> bool:
    """Whether this is rank 0, by what the launcher sets: between stages there is no engine to ask."""
    return os.environ.get("RANK", os.environ.get("HOROVOD_RANK", "0")) == "0"


def read_ledger(runs: Path) -> dict[str, Any] | None:
    """The content of the file, or None if there is none."""
    path = runs / NAME
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not a ledger ({error}): move it away") from error


class Ledger:
    """The file of one curriculum, on rank 0; on other ranks nothing is read or written.

    Attributes:
        rows: attempts by stage and attempt; those of an earlier process stay until they are made again.
    """

    def __init__(self, runs: Path, head: dict[str, Any]):
        self.runs, self.head, self.is_main = runs, head, is_main()
        self.rows: dict[tuple[int, int], Row] = {}
        for row in (read_ledger(runs) or {"attempts": []})["attempts"] if self.is_main else []:
            self.rows[row["stage"], row["attempt"]] = row
            if row["status"] == "running":
                _close_killed(row, runs / row["folder"])

    @contextmanager
    def recorded(self, row: Row, is_finished: bool) -> Iterator[Row]:
        """The block is an attempt that completes its row; how it goes and ends is in the file.

        Args:
            is_finished: an earlier process has made it: its times stay.
        """
        key = row["stage"], row["attempt"]
        times = {name: self.rows.get(key, BLANK)[name] for name in ("seconds", "started", "resumed", "ended")}
        self.rows[key] = row = BLANK | row | times
        if is_finished:
            yield row
            self.write()
            return
        clock, row["resumed"], row["ended"] = time.perf_counter(), _now(), None
        row["started"] = row["started"] or row["resumed"]
        row["status"] = "running"
        self.write()
        try:
            yield row
        except BaseException as error:
            row["status"] = "preempted" if isinstance(error, Preempted) else "failed"
            row["stop_reason"] = " ".join(f"{type(error).__name__}: {error}".split())
            raise
        finally:
            row["seconds"] = round(row["seconds"] + time.perf_counter() - clock, 3)
            row["ended"] = _now()
            self.write()

    def take(self, stage: int, attempt: int | None, note: str | None) -> None:
        """Of the attempts at a stage, the next one starts from this; None: the curriculum ends there."""
        for row in self.attempts():
            if row["stage"] == stage:
                row["taken"] = row["attempt"] == attempt
                row["note"] = note if row["taken"] or attempt is None else None
        self.write()

    def attempts(self) -> list[Row]:
        """All rows, in order."""
        return [self.rows[key] for key in sorted(self.rows)]

    def write(self) -> None:
        """Replace the file in one step; where the disk refuses it, a warning."""
        if not self.is_main:
            return
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            write_json(self.runs / NAME, self.head | {"attempts": [finite(row) for row in self.attempts()]})
        except OSError as error:
            say(f"warning: {self.runs / NAME} cannot be written ({error}); the curriculum goes on")


def results(metrics: Metrics, folder: Path) -> Row:
    """What the ledger tells of a completed run."""
    best = folder / "best"  # link to checkpoints/step-N
    return {
        "stop_reason": metrics["stop_reason"], "metric": metrics["config"]["optimize_metric"],
        "best_metric": valid_metric(metrics), "update": metrics["update"], "tokens": metrics["tokens"],
        "best_update": int(best.resolve().name.split("-")[1]) if best.is_dir() else metrics["update"],
        "test": metrics["test"],
    }  # fmt: skip


def valid_metric(metrics: Metrics) -> float:
    """`optimize_metric` of the checkpoint that the run hands on."""
    return float(metrics["valid"][metrics["config"]["optimize_metric"]])  # NaN is text in a file


def merit(metrics: Metrics) -> float:
    """The same, but higher is better, and NaN the worst: what attempts are compared by."""
    value = sign(metrics) * valid_metric(metrics)
    return -math.inf if math.isnan(value) else value


def sign(metrics: Metrics) -> int:
    """Of `optimize_metric` in its merit."""
    return 1 if metrics["config"]["optimize_mode"] == "max" else -1


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _close_killed(row: Row, folder: Path) -> None:
    """End the attempt of a killed process with the last sign of life in its folder."""
    signs = [path.lstat().st_mtime for path in (folder, *folder.rglob("*"))] if folder.is_dir() else []
    begun = datetime.fromisoformat(row["resumed"]).timestamp()
    last = max([begun, *signs])
    row["seconds"] = round(row["seconds"] + last - begun, 3)
    row["ended"] = datetime.fromtimestamp(last, timezone.utc).isoformat(timespec="milliseconds")
    row["status"], row["stop_reason"] = "preempted", "killed"
