"""What happens around training: a protocol of five moments, and the Trainer's own logs and stop conditions built on it.

class Notify(Callback):
    def on_validate_end(self, trainer, metrics): ...

Trainer(..., callbacks=[Notify()])
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .loggers import RunLog, say

if TYPE_CHECKING:
    from .trainer import Trainer


class Callback:
    """Called on every rank, at the same updates; a method that is not overridden does nothing."""

    def on_train_begin(self, trainer: Trainer) -> None: ...

    def on_update_end(self, trainer: Trainer, values: dict[str, float] | None) -> None:
        """After each update; `values`: means since the last log, where one is due."""

    def on_validate_end(self, trainer: Trainer, metrics: dict[str, float]) -> None: ...

    def on_save(self, trainer: Trainer, folder: Path) -> None: ...

    def on_train_end(self, trainer: Trainer) -> None: ...


class RunLogger(Callback):
    """Console, `log.jsonl` and TensorBoard, from rank 0.

    Args:
        config: options that TensorBoard shows beside the final metric.
    """

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.log: RunLog | None = None

    def on_train_begin(self, trainer: Trainer) -> None:
        if trainer.run and trainer.engine.rank == 0:
            self.log = RunLog(trainer.run, trainer.progress.update)

    def on_update_end(self, trainer: Trainer, values: dict[str, float] | None) -> None:
        if values is not None:
            self._write(trainer, "train", values)

    def on_validate_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._write(trainer, "valid", metrics)
        if self.log and trainer.examples:
            self.log.write_examples(trainer.progress.update, trainer.progress.samples, trainer.examples)

    def on_train_end(self, trainer: Trainer) -> None:
        if self.log:
            progress = trainer.progress
            if progress.stop_reason is not None and progress.best_metric is not None:
                self.log.write_hyper_parameters(self.config, {trainer.args.optimize_metric: progress.best_metric})
            self.log.close()
            self.log = None

    def _write(self, trainer: Trainer, split: str, values: dict[str, float]) -> None:
        if trainer.engine.rank != 0:
            return
        progress = trainer.progress
        if self.log:
            rates = [] if trainer.optimizer is None else [group["lr"] for group in trainer.optimizer.param_groups]
            self.log.write(split, progress.update, progress.samples, values)
            self.log.write_rates(progress.update, [float(rate) for rate in rates if rate is not None])
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        say(f"update {progress.update}/{trainer.args.iters}  {split}  {shown}")


class StopConditions(Callback):
    """Ends a run whose metric is good enough, or no longer improves.

    Args:
        condition: validation metrics -> whether to stop; beside what the Trainer's options say.
    """

    def __init__(self, condition: Callable[[dict[str, float]], bool] | None):
        self.condition = condition

    def on_validate_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        args, progress = trainer.args, trainer.progress
        value, sign = metrics[args.optimize_metric], 1 if args.optimize_mode == "max" else -1
        if args.desired_metric is not None and sign * value >= sign * args.desired_metric:
            progress.stop_reason = f"{args.optimize_metric} {value:.4f} reached desired_metric {args.desired_metric}"
        elif self.condition is not None and self.condition(metrics):
            progress.stop_reason = "stop_metric_condition"
        elif args.early_stopping_patience and progress.patience >= args.early_stopping_patience:
            progress.stop_reason = f"no better {args.optimize_metric} in {progress.patience} validations"
