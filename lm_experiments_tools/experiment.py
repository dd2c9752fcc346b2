"""The course of every run: parse -> task -> model -> Trainer -> test; what the `run_*.py` programs share.

A run that is finished is not repeated, an interrupted one continues; `metrics.json` is written last.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from . import checkpoint, cli
from .args import OptimizerArgs, TrainerArgs
from .determinism import seed_everything
from .distributed import Engine, make_engine
from .dry_run import estimate
from .errors import UserError
from .evaluation.report import write_json
from .loggers import say
from .optim import make_optimizer
from .provenance import record_start
from .run_folder import finished, locked, rank_log
from .run_options import WITHOUT_EFFECT, RunArgs
from .status import reported
from .trainer import Trainer

Metrics = dict[str, Any]


class Task(Protocol):
    """What a run is about: made of (task options, seed, engine, needs_train).

    Attributes:
        args: its options, with `segment_size`, and `tokenizer` where there is a choice. tests: datasets, by the name of
            their length.
    """

    args: Any
    tokenizer: PreTrainedTokenizerBase
    train: Dataset | None
    valid: Dataset
    tests: dict[str, Dataset]

    def trainer_options(self) -> dict[str, Any]:
        """Keyword arguments of the Trainer."""

    def about(self) -> Metrics:
        """What `metrics.json` says of it."""

    def about_test(self, dataset: Dataset) -> Metrics:
        """What `metrics.json` says of a test set beside its scores."""

    def draw(self, metrics: Metrics, run: Path) -> None:
        """Pictures of the finished run."""


class Models(Protocol):
    """What builds and keeps models, such as `modeling_armt.options`; models have `parameter_groups`."""

    ModelArgs: type

    def build_model(self, args: Any, segment_size: int, tokenizer: PreTrainedTokenizerBase) -> nn.Module: ...

    def adapt_weights(self, model: nn.Module, args: Any) -> None:
        """What the options change in the weights that a run starts from."""

    def describe(self, model: nn.Module) -> str: ...

    def save_parts(self, model: nn.Module, run: Path, weights: dict) -> None:
        """What a run leaves of its best model beside the checkpoint."""


def main(
    argv: list[str] | None, description: str, task_args: type, make_task: Callable[..., Task], models: Models
) -> Metrics | None:
    """Run one experiment; returns its metrics, also those of a finished one.

    Raises:
        UserError: options, data or model do not fit, before anything is written.
    """
    transformers_logging.disable_progress_bar()  # a bar for each saved checkpoint
    kinds = (RunArgs, task_args, models.ModelArgs, OptimizerArgs, TrainerArgs)
    parsed = cli.parse(argv, *kinds, description=description, without_effect=WITHOUT_EFFECT)
    run_args, trainer_args = parsed[0], parsed[-1]
    if trainer_args.model_path is None:
        raise UserError("give --model_path, the folder of the run")
    run, config = Path(trainer_args.model_path), cli.resolved(*parsed)
    done = finished(run, config)
    if done is None:
        engine = make_engine(trainer_args.engine, trainer_args.collective_timeout)
        try:
            if run_args.dry_run:
                trainer, _ = build(config, engine, make_task, models, parsed)
                say(f"{cli.to_yaml(config)}\n{models.describe(trainer.model)}\n{estimate(trainer)}")
            else:
                with locked(run, engine), rank_log(run, engine.rank):
                    done = train_and_test(run, config, engine, make_task, models, parsed)
        finally:
            engine.close()
    return done


def build(config: dict, engine: Engine, make_task, models: Models, parsed: list) -> tuple[Trainer, Task]:
    """The Trainer and its task, from all parsed options."""
    run_args, task_args, model_args, optimizer_args, trainer_args = parsed
    if model_args.model_cpt:
        weights = checkpoint.weights_folder(model_args.model_cpt)
        if getattr(task_args, "tokenizer", "") is None and (weights / "tokenizer_config.json").exists():
            task_args.tokenizer = str(weights)  # the weights' own
    task = make_task(task_args, trainer_args.seed, engine, needs_train=not run_args.validate_only)
    seed_everything(trainer_args.seed)
    with cli.mendable(ValueError, OSError, ImportError):
        model = models.build_model(model_args, task_args.segment_size, task.tokenizer)
    if model_args.model_cpt:
        checkpoint.load_weights(model, weights)
    if not run_args.dry_run:  # a curriculum's later stages have no weights yet
        with cli.mendable(ValueError):
            models.adapt_weights(model, model_args)
    groups = model.parameter_groups(optimizer_args.memory_lr, optimizer_args.memory_weight_decay)
    optimizer = make_optimizer(groups, optimizer_args, trainer_args.lr)
    trainer = Trainer(
        trainer_args, model, optimizer, task.train, task.valid,
        tokenizer=task.tokenizer, config=config, engine=engine, **task.trainer_options(),
    )  # fmt: skip
    return trainer, task


def train_and_test(run: Path, config: dict, engine: Engine, make_task, models: Models, parsed: list) -> Metrics:
    run_args, model_args = parsed[0], parsed[2]
    trainer, task = build(config, engine, make_task, models, parsed)
    model = trainer.model
    if engine.rank == 0:
        cli.write_config(run, config)
        record_start(run, engine.world_size)
        say(f"{type(model).__name__} on {engine.world_size} x {engine.device}\n{models.describe(model)}")
    with trainer.stop_request, reported(run, engine.rank, lambda: trainer.progress.update):
        if not run_args.validate_only:
            trainer.train()
        if not (run_args.validate_only and model_args.model_cpt) and trainer.load_best() is None:
            raise UserError(f"validate_only: no checkpoint in {run}; give --model_cpt")
        metrics = score(trainer, task) | {"config": config}
        weights = checkpoint.whole_weights(model, keep=engine.rank == 0)
        if engine.rank == 0:
            models.save_parts(model, run, weights)
            write_json(run / "metrics.json", metrics)
            task.draw(metrics, run)
    return metrics


def score(trainer: Trainer, task: Task) -> Metrics:
    """Validation and test metrics of the trained model."""
    progress = trainer.progress
    metrics = task.about() | {
        "update": progress.update, "tokens": progress.tokens, "stop_reason": progress.stop_reason,
        "valid": trainer.validate(task.valid), "test": {},
    }  # fmt: skip
    for name, dataset in task.tests.items():
        result = trainer.validate(dataset, f"test {name}")
        metrics["test"][name] = result | {"samples": len(dataset)} | task.about_test(dataset)
    return metrics
