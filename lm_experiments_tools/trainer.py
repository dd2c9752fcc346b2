"""A standalone Trainer: gradient accumulation with a token-exact loss, validation with custom metrics, best
checkpoint, exact resume, on one process or under torchrun.

    trainer = Trainer(args, model, optimizer, train_dataset, valid_dataset, collate_fn=collate)
    trainer.train()

The model is any module whose output has `output["loss"]`, the mean over the labels that are not -100, shifted inside.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from . import checkpoint
from .args import TrainerArgs
from .distributed import Engine, make_engine
from .errors import UserError
from .loggers import RunLog, progress_bar, say
from .metrics import Batch, MetricSums, num_labels
from .optim import PlateauDrop, make_schedule
from .sampling import KeyedDataset, TrainSampler
from .validation import validate


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint as `trainer_state.json`.

    Attributes:
        update: optimizer steps made. samples: position in the stream of samples. tokens: inputs read.
        patience: validations since the best. stop_reason: why the run ended, if it did.
    """

    update: int = 0
    samples: int = 0
    tokens: int = 0
    best_metric: float | None = None
    best_update: int | None = None
    patience: int = 0
    stop_reason: str | None = None


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
        tokenizer: saved with every checkpoint.
        engine: default: by the launcher's environment.
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
        tokenizer: Any = None,
        engine: Engine | None = None,
    ):
        self.args, self.model, self.optimizer = args, model, optimizer
        self.train_dataset, self.valid_dataset = train_dataset, valid_dataset
        self.collate_fn, self.batch_transform_fn = collate_fn, batch_transform_fn
        self.batch_metrics_fn = batch_metrics_fn
        self.keep_for_metrics_fn, self.metrics_fn = keep_for_metrics_fn, metrics_fn
        self.forward_kwargs, self.generate_kwargs = forward_kwargs or {}, generate_kwargs or {}
        self.generate_inputs_fn, self.stop_metric_condition = generate_inputs_fn, stop_metric_condition
        self.tokenizer = tokenizer
        self.engine = engine or make_engine()
        self.run = Path(args.model_path) if args.model_path else None
        self.progress = Progress()
        self.log: RunLog | None = None
        model.to(self.engine.device)
        self.schedule = make_schedule(optimizer, args) if optimizer is not None else None
        self.plateau = PlateauDrop(optimizer, self.schedule, args) if args.use_lr_drop else None
        if args.valid_interval and not (valid_dataset is not None and len(valid_dataset)):
            raise UserError("valid_interval is set, but there is no validation sample")

    def train(self) -> Progress:
        """Train until `iters`, a stop condition, or the end that an earlier process reached."""
        self._restore()
        if self.progress.stop_reason is None:
            module = self.engine.wrap(self.model)
            self.log = RunLog(self.run, self.progress.update) if self.run and self._is_main else None
            batches = self._train_batches()
            if self._restored_rng is not None:
                checkpoint.set_rng_state(self._restored_rng)
            try:
                self._loop(module, batches)
            finally:
                if self.log:
                    self.log.close()
        return self.progress

    def _loop(self, module: nn.Module, batches: Iterator[Batch]) -> None:
        args, progress = self.args, self.progress
        sums, clock, tokens = MetricSums(self.engine), time.perf_counter(), progress.tokens
        bar = progress_bar(self._is_main, total=args.iters, initial=progress.update, unit=" updates", desc="training")
        while progress.stop_reason is None:
            self.step(module, [next(batches) for _ in range(args.gradient_accumulation_steps)], sums)
            bar.update()
            last = progress.update >= args.iters
            if args.log_interval and (progress.update % args.log_interval == 0 or last):
                values = sums.means()
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                values["tokens_per_second"] = (progress.tokens - tokens) / seconds
                values |= self._peak_memory()
                tokens = progress.tokens
                self._write("train", values)
            if args.valid_interval and (progress.update % args.valid_interval == 0 or last):
                self._after_validation(self.validate())
            if last and progress.stop_reason is None:
                progress.stop_reason = f"made all {args.iters} updates"
            if self._is_save_due():
                self.save()
        bar.close()
        if self._is_main:
            say(f"stopped at update {progress.update}: {progress.stop_reason}")

    def step(self, module: nn.Module, micro_batches: list[Batch], sums: MetricSums) -> None:
        """One update: the gradient of the sum of token losses over all micro-batches and ranks / their count."""
        counts = [num_labels(batch) for batch in micro_batches]
        total = torch.tensor(float(sum(counts)), device=self.engine.device)
        self.engine.sum_(total)
        scale = self.engine.gradient_scale / max(total.item(), 1.0)
        module.train()
        for index, (batch, count) in enumerate(zip(micro_batches, counts)):
            batch = self.to_device(batch)
            reduces = index + 1 == len(micro_batches)
            with nullcontext() if reduces else self.engine.no_reduction(module):
                with self.autocast():
                    output = module(**self.batch_transform_fn(batch), **self.forward_kwargs)
                loss = output["loss"] if count else output["loss"].nan_to_num() * 0
                (loss * (count * scale)).backward()
            sums.add("loss", loss, count)
            self._add_batch_metrics(sums, batch, output)
        if self.args.clip_grad_norm:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_grad_norm)
            sums.add("gradient_norm", norm, 1)
        elif self.args.clip_grad_value:
            nn.utils.clip_grad_value_(self.model.parameters(), self.args.clip_grad_value)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.schedule is not None:
            self.schedule.step()
        self._count(micro_batches)

    def _count(self, micro_batches: list[Batch]) -> None:
        progress = self.progress
        progress.update += 1
        progress.samples += self.global_batch_size
        tokens = sum(batch["input_ids"].numel() for batch in micro_batches if "input_ids" in batch)
        progress.tokens += tokens * self.engine.world_size

    def _add_batch_metrics(self, sums: MetricSums, batch: Batch, output: Any) -> None:
        if self.batch_metrics_fn:
            samples = len(next(iter(batch.values())))
            for name, mean in self.batch_metrics_fn(batch, output).items():
                sums.add(name, mean, samples)

    def _train_batches(self) -> Iterator[Batch]:
        sampler = TrainSampler(
            len(self.train_dataset), self.args.batch_size, self.args.seed,
            self.engine.rank, self.engine.world_size, self.progress.samples,
        )  # fmt: skip
        loader = DataLoader(
            KeyedDataset(self.train_dataset),
            batch_sampler=sampler,
            collate_fn=self.collate_fn,
            num_workers=self.args.data_n_workers,
            pin_memory=self.engine.device.type == "cuda",
            generator=torch.Generator(),  # else every iterator draws a seed from the global generator
        )
        return iter(loader)

    def validate(self, dataset: Dataset | None = None, split: str = "valid") -> dict[str, float]:
        """Metrics over a dataset, every sample once; default: the validation dataset, whose metrics are logged."""
        metrics = validate(self, self.valid_dataset if dataset is None else dataset, split)
        if dataset is None:
            self._write(split, metrics)
        return metrics

    def _after_validation(self, metrics: dict[str, float]) -> None:
        args, progress = self.args, self.progress
        if args.optimize_metric not in metrics:
            raise UserError(f"optimize_metric {args.optimize_metric!r} is not among {', '.join(sorted(metrics))}")
        value, sign = metrics[args.optimize_metric], 1 if args.optimize_mode == "max" else -1
        best = -math.inf if progress.best_metric is None else sign * progress.best_metric
        if sign * value > best:  # never true of NaN
            progress.best_metric, progress.best_update, progress.patience = value, progress.update, 0
        else:
            progress.patience += 1
        if self.plateau is not None:
            self.plateau.step(value)
        if args.desired_metric is not None and sign * value >= sign * args.desired_metric:
            progress.stop_reason = f"{args.optimize_metric} {value:.4f} reached desired_metric {args.desired_metric}"
        elif self.stop_metric_condition is not None and self.stop_metric_condition(metrics):
            progress.stop_reason = "stop_metric_condition"
        elif args.early_stopping_patience and progress.patience >= args.early_stopping_patience:
            progress.stop_reason = f"no better {args.optimize_metric} in {progress.patience} validations"

    def _is_save_due(self) -> bool:
        args, progress = self.args, self.progress
        if self.run is None:
            return False
        on_interval = bool(args.save_interval) and progress.update % args.save_interval == 0
        is_best = args.save_best and progress.best_update == progress.update
        return on_interval or is_best or progress.stop_reason is not None

    def save(self) -> Path:
        """Write a checkpoint of the whole training state; returns its folder."""
        rng = self.engine.gather(checkpoint.rng_state())
        folder = checkpoint.step_folder(self.run, self.progress.update)
        if self._is_main:
            checkpoint.write_folder(folder, lambda path: self._fill(path, rng))
            best = self.progress.best_update if self.args.save_best else None
            best = checkpoint.step_folder(self.run, best) if best is not None else None
            checkpoint.link_best(self.run, best)
            checkpoint.prune(self.run, self.args.keep_checkpoints, best)
        self.engine.barrier()
        return folder

    def _fill(self, folder: Path, rng: list[dict]) -> None:
        checkpoint.save_weights(self.model, folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        parts = {"optimizer": self.optimizer, "schedule": self.schedule, "plateau": self.plateau}
        torch.save({name: part.state_dict() for name, part in parts.items() if part}, folder / "optimizer.pt")
        torch.save(rng, folder / "rng.pt")
        state = asdict(self.progress) | {"global_batch_size": self.global_batch_size}
        (folder / "trainer_state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")

    def _restore(self) -> None:
        """Continue this run, or start from another run's checkpoint."""
        self._restored_rng = None
        args = self.args
        if self.run and self._is_main:
            checkpoint.remove_leftovers(self.run)
        own = self._own_checkpoint()
        if own is not None:
            self._load(own)
            if self._is_main:
                say(f"resumed from {own}")
        elif args.init_checkpoint:
            self.load_from(Path(args.init_checkpoint))

    def _own_checkpoint(self) -> Path | None:
        if self.args.resume not in ("auto", "never"):
            folder = Path(self.args.resume)
            newer = [path.name for path in checkpoint.step_folders(self.run or folder) if path.name > folder.name]
            if newer:
                raise UserError(f"{self.run} has checkpoints behind {folder.name}: move {', '.join(newer)} away first")
            return folder
        found = checkpoint.newest_checkpoint(self.run) if self.run and self._is_main else None
        found = self.engine.gather(found)[0]
        if found is not None and self.args.resume == "never":
            raise UserError(f"{self.run} holds a run; give another model_path, or resume=auto to continue it")
        return found

    def _load(self, folder: Path) -> None:
        if not (folder / "trainer_state.json").exists():
            raise UserError(f"no checkpoint of a Trainer in {folder}")
        checkpoint.load_weights(self.model, folder)
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        state.pop("global_batch_size")
        self.progress = Progress(**state)
        self._load_optimizer(folder, ("optimizer", "schedule", "plateau"))
        rng = torch.load(folder / "rng.pt", weights_only=True)
        self._restored_rng = rng[self.engine.rank] if len(rng) == self.engine.world_size else None
        if self.run and self._is_main and self.args.save_best and self.progress.best_update is not None:
            checkpoint.link_best(self.run, checkpoint.step_folder(self.run, self.progress.best_update))

    def _load_optimizer(self, folder: Path, parts: tuple[str, ...]) -> None:
        states = torch.load(folder / "optimizer.pt", weights_only=True, map_location=self.engine.device)
        for name in parts:
            part = getattr(self, name)
            if part is not None and name in states:
                part.load_state_dict(states[name])

    def load_from(self, folder: Path) -> None:
        """Start from another run's checkpoint: its weights, and of the rest what is not reset."""
        args = self.args
        folder = checkpoint.weights_folder(folder)
        if not (folder / "trainer_state.json").exists():
            raise UserError(f"init_checkpoint {args.init_checkpoint} is not a checkpoint, nor a run with a best one")
        checkpoint.load_weights(self.model, folder)
        rates = [(group["lr"], group.get("initial_lr")) for group in self.optimizer.param_groups]
        if not args.reset_optimizer:
            self._load_optimizer(folder, ("optimizer",) if args.reset_lr else ("optimizer", "schedule", "plateau"))
        if args.reset_lr:
            for group, (rate, initial) in zip(self.optimizer.param_groups, rates):
                group["lr"] = rate
                if initial is not None:
                    group["initial_lr"] = initial
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        if not args.reset_iteration:
            self.progress.update, self.progress.tokens = state["update"], state["tokens"]
        if args.skip_used_data:
            self.progress.samples = state["samples"]

    def load_best(self) -> Path | None:
        """Load the weights of the best checkpoint, or of the last if none is called best; returns its folder."""
        if self.run is None:
            return None
        folder = self.run / "best" if (self.run / "best").exists() else checkpoint.newest_checkpoint(self.run)
        if folder is not None:
            checkpoint.load_weights(self.model, folder)
        return folder

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

    def _peak_memory(self) -> dict[str, float]:
        if self.engine.device.type != "cuda":
            return {}
        return {"peak_memory_gib": torch.cuda.max_memory_allocated(self.engine.device) / 2**30}

    def _write(self, split: str, values: dict[str, float]) -> None:
        if not self._is_main:
            return
        progress = self.progress
        rates = [group["lr"] for group in self.optimizer.param_groups] if self.optimizer is not None else []
        if self.log:
            self.log.write(split, progress.update, progress.samples, values)
            self.log.write_rates(progress.update, [float(rate) for rate in rates if rate is not None])
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        say(f"update {progress.update}/{self.args.iters}  {split}  {shown}")
