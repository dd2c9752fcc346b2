"""Writes the checkpoints of a run: at once, or in the background from a copy."""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from . import checkpoint, training_state
from .distributed import shards
from .loggers import say
from .training_state import Content

if TYPE_CHECKING:
    from .trainer import Trainer


class Saver:
    """Of one Trainer; every rank has one and calls it at the same updates.

    Attributes:
        newest: checkpoint that this process wrote, is writing, or went on from.
        problem: why the last one could not be written, if so.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.newest: Path | None = None
        self.problem: str | None = None
        self.thread = ThreadPoolExecutor(1, "checkpoint") if trainer.args.async_save else None
        self.writing: tuple[Path, Future] | None = None

    def save(self) -> None:
        """Write the present state, behind the one that is still being written."""
        self.finish()
        folder = training_state.folder_of(self.trainer)
        content = training_state.collect(self.trainer, copy=self.thread is not None)
        self.newest = folder
        if self.thread is None:
            self._settle(folder, self._write(folder, content))
        else:
            self.writing = folder, self.thread.submit(self._write, folder, content)

    def finish(self) -> None:
        """Wait for what is being written in the background."""
        if self.writing is not None:
            (folder, future), self.writing = self.writing, None
            self._settle(folder, future.result())

    def _settle(self, folder: Path, problem: str | None) -> None:
        """What came of a checkpoint, agreed on by all ranks."""
        self.problem = next(filter(None, self.trainer.engine.gather(problem)), None)
        if self.problem is None:
            self.trainer.call("on_save", folder)
        else:
            self.newest = None
            say(f"warning: {self.problem}; training goes on")

    def _write(self, folder: Path, content: Content) -> str | None:
        """The rank's share of a checkpoint; returns why it could not be written, if so."""
        trainer, parts = self.trainer, None
        try:
            if content.parts:
                parts = folder.with_name(f"{folder.name}.parts{checkpoint.UNFINISHED}")
                shards.save(content.parts, parts, trainer.engine.save_group)
            if trainer.engine.rank == 0:
                checkpoint.write_folder(folder, lambda path: training_state.fill(trainer, content, path, parts))
                self._keep(content)
        except OSError as error:
            if parts is not None and trainer.engine.rank == 0:
                shutil.rmtree(parts, ignore_errors=True)
            return f"{' '.join(str(error).split())} ({shutil.disk_usage(trainer.run).free:,} bytes free)"
        return None

    def _keep(self, content: Content) -> None:
        """Point to the best checkpoint, and remove what is no longer wanted."""
        run, args = self.trainer.run, self.trainer.args
        best = content.progress.best_update if args.save_best else None
        best = checkpoint.step_folder(run, best) if best is not None else None
        checkpoint.link_best(run, best if best is not None and best.exists() else None)
        checkpoint.prune(run, args.keep_checkpoints, best)
