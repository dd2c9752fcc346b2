"""A standalone Trainer: gradient accumulation with a token-exact loss, validation with custom metrics, best
checkpoint, exact resume, on one process or under torchrun.

    trainer = Trainer(args, model, optimizer, train_dataset, valid_dataset, collate_fn=collate)
    trainer.train()

The model is any module whose output has `output["loss"]`, the mean over the labels that are not -100, shifted inside.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from . import checkpoint, training_state
from .args import TrainerArgs
from .callbacks import Callback, RunLogger, StopConditions
from .determinism import repeat_exactly
from .distributed import Engine, make_engine
from .errors import UserError
from .loggers import progress_bar, say
from .metrics import Batch, MetricSums
from .optim import PlateauDrop, make_schedule
from .peak_memory import peak_memory
from .preemption import Preempted, StopRequest, leave_signals_to_the_run
from .sampling import KeyedDataset, TrainSampler
from .saving import Saver
from .training_state import Progress
from .update import make_update, settle
from .utilisation import Utilisation
from .validation import Interrupted, validate


class Trainer:
    """See the module. All callables may be left out.

    Args:
        optimizer: over the parameters of `model`, which the Trainer moves to its device first.
        batch_transform_fn: batch -> keyword arguments of the model; default: the batch itself.
        batch_metrics_fn: (batch, output) -> means over the batch's samples, logged in training and validation.
        keep_for_metrics_fn: (batch, output) -> lists with one entry a sample, kept over a validation;
            metrics_fn: those lists, whole and in the dataset's order -> metrics.
        forward_kwargs: of every call of the model. generate_kwargs: of `model.generate`.
        generate_inputs_fn: batch -> keyword arguments of `model.generate`; with `use_generate_on_valid`, the
            generated ids are in `output["generation_outputs"]`.
        stop_metric_condition: validation metrics -> whether to stop.
        examples_fn: (batch, output) -> a text for each sample, with what was predicted, shown after validations.
        callbacks: see `callbacks.py`; called behind the Trainer's own logs and stop conditions.
        tokenizer: saved with every checkpoint.
        config: all options of the run, for TensorBoard's table of hyper-parameters; default: `args`.
        engine: default: by the launcher's environment.

    Attributes:
        examples: texts of the last validation, on rank 0.
    """

    def __init__(
        self,
        args: TrainerArgs,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        train_dataset: Dataset | None = None,
        valid_dataset: Dataset | None = None,
        *,
        collate_fn: Callable | None = None,
        batch_transform_fn: Callable[[Batch], Batch] = lambda batch: batch,
        batch_metrics_fn: Callable[[Batch, Any], dict] | None = None,
        keep_for_metrics_fn: Callable[[Batch, Any], dict[str, list]] | None = None,
        metrics_fn: Callable[[dict[str, list]], dict] | None = None,
        forward_kwargs: dict | None = None,
        generate_kwargs: dict | None = None,
        generate_inputs_fn: Callable[[Batch], Batch] | None = None,
        stop_metric_condition: Callable[[dict[str, float]], bool] | None = None,
        examples_fn: Callable[[Batch, Any], list[str]] | None = None,
        callbacks: Sequence[Callback] = (),
        tokenizer: Any = None,
        config: dict[str, Any] | None = None,
        engine: Engine | None = None,
    ):
        if args.deterministic:
            repeat_exactly()
        self.args, self.model, self.optimizer = args, model, optimizer
        self.train_dataset, self.valid_dataset = train_dataset, valid_dataset
        self.collate_fn, self.batch_transform_fn = collate_fn, batch_transform_fn
        self.batch_metrics_fn = batch_metrics_fn
        self.keep_for_metrics_fn, self.metrics_fn = keep_for_metrics_fn, metrics_fn
        self.forward_kwargs, self.generate_kwargs = forward_kwargs or {}, generate_kwargs or {}
        self.generate_inputs_fn, self.tokenizer = generate_inputs_fn, tokenizer
        self.examples_fn, self.examples = examples_fn, []
        self.callbacks = [RunLogger(config or asdict(args)), StopConditions(stop_metric_condition), *callbacks]
        self.engine = engine or make_engine(args.engine, args.collective_timeout)
        self.run = Path(args.model_path) if args.model_path else None
        self.progress = Progress()
        self.sums = MetricSums(self.engine)  # of training, since the last log
        self.stop_request = StopRequest(args.max_hours)
        self.saver = Saver(self)
        model.to(self.engine.device)
        dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
        self.utilisation = Utilisation(self.engine.device, dtype, args.peak_tflops, model)
        self.module: nn.Module | None = None  # the model as the engine wraps it
        self.schedule = make_schedule(optimizer, args) if optimizer is not None else None
        self.plateau = PlateauDrop(optimizer, self.schedule, args) if args.use_lr_drop else None
        if args.valid_interval and not (valid_dataset is not None and len(valid_dataset)):
            raise UserError("valid_interval is set, but there is no validation sample")

    def train(self) -> Progress:
        """Train until `iters`, a stop condition, or the end that an earlier process reached.

        Raises:
            Preempted: asked to stop by a signal or `max_hours`; the run is saved and can be continued.
            OSError: the last checkpoint could not be written.
        """
        if self.module is None:
            self.module = self.engine.wrap(self.model, self.optimizer)
        restored_rng = training_state.restore(self)
        if self.progress.stop_reason is not None:
            return self.progress
        batches = self.train_batches()
        settle(self, self.module)
        if restored_rng is not None:
            checkpoint.set_rng_state(restored_rng)
        with self.stop_request:
            self.call("on_train_begin")
            try:
                preempted = self._loop(self.module, batches)
                self.saver.finish()
            finally:
                self.call("on_train_end")
        if self.saver.problem:
            raise OSError(self.saver.problem)
        if preempted:
            raise Preempted(f"{preempted} at update {self.progress.update}")
        return self.progress

    def _loop(self, module: nn.Module, batches: Iterator[Batch]) -> str | None:
        """Updates, validations and saves; returns why the ranks agreed to stop before the end, if they did."""
        progress, watch, sums = self.progress, Stopwatch(self.progress), self.sums
        bar = progress_bar(
            self._is_main, total=self.args.iters, initial=progress.update, unit=" updates", desc="training"
        )
        preempted = None
        while progress.stop_reason is None and preempted is None:
            # else an earlier process was stopped before the validation, or init_checkpoint has made them
            if not self.is_validation_due() and progress.update < self.args.iters:
                with watch.waiting():
                    micro_batches = [next(batches) for _ in range(self.args.gradient_accumulation_steps)]
                preempted = self.step(module, micro_batches, sums)
                if preempted is None:
                    bar.update()
                    self.call("on_update_end", self._values(sums, watch) if self._is_log_due() else None)
            if preempted is None and self.is_validation_due():
                preempted = self._validate_and_judge()
            if preempted is None and progress.update >= self.args.iters and progress.stop_reason is None:
                progress.stop_reason = training_state.all_updates_made(progress.update)
            if self.run and (preempted or self._is_save_due()) and self.saver.newest != training_state.folder_of(self):
                self.save()
        bar.close()
        if self._is_main:
            say(f"stopped at update {progress.update}: {preempted or progress.stop_reason}")
        return preempted

    def call(self, moment: str, *values: Any) -> None:
        """Call that method of all callbacks."""
        for callback in self.callbacks:
            getattr(callback, moment)(self, *values)

    def step(self, module: nn.Module, batches: list[Batch], sums: MetricSums) -> str | None:
        """One update; see `update.make_update`."""
        return make_update(self, module, batches, sums)

    def add_batch_metrics(self, sums: MetricSums, batch: Batch, output: Any) -> None:
        """Count what `batch_metrics_fn` says of a batch."""
        if self.batch_metrics_fn:
            samples = len(next(iter(batch.values())))
            for name, mean in self.batch_metrics_fn(batch, output).items():
                sums.add(name, mean, samples)

    def train_batches(self) -> Iterator[Batch]:
        """Micro-batches of this rank, from where the run stands, without end."""
        sampler = TrainSampler(
            len(self.train_dataset), self.args.batch_size, self.args.seed,
            self.engine.rank, self.engine.world_size, self.progress.samples,
        )  # fmt: skip
        loader = DataLoader(
            KeyedDataset(self.train_dataset),
            batch_sampler=sampler,
            collate_fn=self.collate_fn,
            num_workers=self.args.data_n_workers,
            worker_init_fn=leave_signals_to_the_run,
            pin_memory=self.engine.device.type == "cuda",
            generator=torch.Generator(),  # else every iterator draws a seed from the global generator
        )
        return iter(loader)

    def validate(self, dataset: Dataset | None = None, split: str = "valid") -> dict[str, float]:
        """Metrics over a dataset, every sample once; default: the validation dataset."""
        return validate(self, self.valid_dataset if dataset is None else dataset, split)

    def _validate_and_judge(self) -> str | None:
        """The validation that is due, and what follows from it; returns why it was given up, if it was."""
        args, progress = self.args, self.progress
        try:
            metrics = self.validate()
        except Interrupted as interrupted:
            return str(interrupted)
        if args.optimize_metric not in metrics:
            raise UserError(f"optimize_metric {args.optimize_metric!r} is not among {', '.join(sorted(metrics))}")
        value, sign = metrics[args.optimize_metric], 1 if args.optimize_mode == "max" else -1
        progress.validated = progress.update
        if value == value and (progress.best_metric is None or sign * value > sign * progress.best_metric):  # not NaN
            progress.best_metric, progress.best_update, progress.patience = value, progress.update, 0
        else:
            progress.patience += 1
        if self.plateau is not None:
            self.plateau.step(value)
        self.call("on_validate_end", metrics)
        return None

    def is_validation_due(self) -> bool:
        args, progress = self.args, self.progress
        if not args.valid_interval or progress.validated == progress.update:
            return False
        if not progress.update:
            return args.eval_on_start
        return progress.update % args.valid_interval == 0 or progress.update >= args.iters

    def _is_log_due(self) -> bool:
        args, update = self.args, self.progress.update
        return bool(args.log_interval) and (update % args.log_interval == 0 or update >= args.iters)

    def _values(self, sums: MetricSums, watch: "Stopwatch") -> dict[str, float]:
        """What is logged since the last time."""
        values = sums.means() | watch.read()
        share = self.utilisation.share(values["tokens_per_second"] / self.engine.world_size)
        if share is not None:
            values["model_flops_utilisation"] = share
        if self.progress.skipped:
            values["skipped_updates"] = float(self.progress.skipped)
        return values | {"peak_memory_gib": peak_memory(self.engine.device) / 2**30}

    def _is_save_due(self) -> bool:
        args, progress = self.args, self.progress
        if self.run is None:
            return False
        on_interval = bool(args.save_interval) and progress.update % args.save_interval == 0
        is_best = args.save_best and progress.best_update == progress.update
        return on_interval or is_best or progress.stop_reason is not None

    def save(self) -> None:
        """Write a checkpoint of the whole training state; with `async_save`, in the background."""
        self.saver.save()

    def load_best(self) -> Path | None:
        """Load the weights of the best checkpoint, or of the last if none is called best; returns its folder."""
        return training_state.load_best(self)

    @property
    def global_batch_size(self) -> int:
        """Samples of one update, over all ranks."""
        return self.args.batch_size * self.args.gradient_accumulation_steps * self.engine.world_size

    @property
    def _is_main(self) -> bool:
        return self.engine.rank == 0

    def autocast(self):
        """The compute type of `mixed_precision`."""
        return torch.autocast(self.engine.device.type, torch.bfloat16, enabled=self.args.mixed_precision == "bf16")

    def to_device(self, batch: Batch) -> Batch:
        device = self.engine.device
        return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}


class Stopwatch:
    """Rates since they were last read."""

    def __init__(self, progress: Progress):
        self.progress, self.waited = progress, 0.0
        self._start()

    def _start(self) -> None:
        self.clock, self.tokens, self.samples = time.perf_counter(), self.progress.tokens, self.progress.samples

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the time is counted as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.clock
        values = {
            "tokens_per_second": (self.progress.tokens - self.tokens) / seconds,
            "samples_per_second": (self.progress.samples - self.samples) / seconds,
            "data_wait_share": self.waited / seconds,
        }
        self.waited = 0.0
        self._start()
        return values
