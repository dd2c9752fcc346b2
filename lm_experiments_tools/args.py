"""Options of the Trainer and of the optimizer: each once, typed, with its unit. Names are those of earlier
`lm_experiments_tools`, so that scripts keep working.
"""

from dataclasses import dataclass, field
from typing import Literal

from .errors import UserError


def option(default, help: str):
    """A dataclass field with the text that `--help` shows."""
    return field(default=default, metadata={"help": help})


@dataclass
class TrainerArgs:
    """Options of `Trainer`. An update is one optimizer step; intervals count updates."""

    model_path: str | None = option(None, "run folder: checkpoints, logs and metrics go here")
    iters: int = option(100, "updates to make")
    batch_size: int = option(1, "samples of one micro-batch on one rank")
    auto_micro_batch: bool = option(
        False, "out of memory: halve the micro-batch and double the accumulation; costs some overlap on several ranks"
    )
    gradient_accumulation_steps: int = option(1, "micro-batches of one update on each rank")
    valid_batch_size: int | None = option(None, "samples of one validation batch on one rank; default: batch_size")
    lr: float | None = option(None, "learning rate; default: the optimizer's own")
    lr_scheduler: str | None = option(None, "schedule by its name in transformers: linear, cosine, ...; default: none")
    num_warmup_steps: int | None = option(None, "updates of warm-up")
    num_training_steps: int | None = option(None, "updates that the schedule spans; default: iters")
    use_lr_drop: bool = option(False, "lower the learning rate when optimize_metric stops improving")
    lr_drop_factor: float = option(0.1, "what a drop multiplies the rate with")
    lr_drop_patience: int = option(10, "validations without improvement before a drop")
    lr_drop_threshold: float = option(1e-4, "least change that counts as improvement")
    lr_drop_threshold_mode: Literal["rel", "abs"] = option("rel", "whether lr_drop_threshold is relative or absolute")
    lr_drop_cooldown: int = option(0, "validations to wait after a drop")
    lr_drop_min_lr: float = option(0.0, "the rate does not drop below this")
    lr_drop_eps: float = option(1e-8, "smaller drops are left out")
    clip_grad_norm: float | None = option(None, "largest norm of all gradients; 0 or none: no clipping")
    clip_grad_value: float | None = option(None, "largest absolute value of a gradient; 0 or none: no clipping")
    mixed_precision: Literal["no", "bf16"] = option("no", "compute type; weights and memory state stay float32")
    log_interval: int | None = option(None, "updates between training log lines")
    valid_interval: int | None = option(None, "updates between validations")
    save_interval: int | None = option(None, "updates between checkpoints")
    async_save: bool = option(False, "write checkpoints in the background, from a copy in memory")
    keep_checkpoints: int = option(2, "newest checkpoints to keep beside the best")
    save_best: bool = option(False, "keep the checkpoint with the best optimize_metric, under RUN/best")
    optimize_metric: str = option("loss", "validation metric that decides what is best")
    optimize_mode: Literal["min", "max"] = option("min", "whether a lower or a higher optimize_metric is better")
    eval_on_start: bool = option(False, "also validate before the first update")
    early_stopping_patience: int | None = option(None, "validations without improvement before the run stops")
    desired_metric: float | None = option(None, "the run stops once optimize_metric is this good")
    show_valid_examples: int = option(3, "predictions of a validation that are shown as text in the logs")
    use_generate_on_valid: bool = option(False, "also generate on validation, for metrics of generated text")
    resume: str = option("auto", "auto: continue the run in model_path, if any; never: refuse to; or a checkpoint")
    init_checkpoint: str | None = option(None, "checkpoint of another run to start from, with its optimizer and update")
    reset_iteration: bool = option(False, "with init_checkpoint: count updates from 0; the schedule goes on")
    reset_optimizer: bool = option(False, "with init_checkpoint: a fresh optimizer")
    reset_lr: bool = option(False, "with init_checkpoint: a fresh learning rate and schedule")
    skip_used_data: bool = option(False, "with init_checkpoint: go on behind the samples that it has seen")
    allow_batch_change: bool = option(False, "resume with another number of samples an update")
    max_hours: float | None = option(None, "hours after which this process saves and stops, to be continued")
    max_skipped_updates: int = option(10, "updates in a row with a gradient that is not finite before the run fails")
    data_n_workers: int = option(0, "processes that prepare data on each rank; 0: the training process itself")
    engine: str = option("auto", "auto: by the launcher; single, ddp or fsdp (torchrun), horovod (horovodrun)")
    collective_timeout: float | None = option(None, "seconds that a rank waits for the others; default: the engine's")
    peak_tflops: float | None = option(
        None, "of the device, in TFLOP/s, for the logged utilisation; default: that of a matrix product, measured"
    )
    deterministic: bool = option(
        False, "on a GPU: take algorithms that repeat bit for bit, so that a resumed run ends as the uninterrupted one"
    )
    seed: int = option(42, "seed of initial weights, data order and samples")

    def __post_init__(self):
        if self.clip_grad_norm and self.clip_grad_value:
            raise UserError("clip_grad_norm and clip_grad_value exclude each other: give one")
        for name in ("iters", "batch_size", "gradient_accumulation_steps", "keep_checkpoints", "max_skipped_updates"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("log_interval", "valid_interval", "save_interval", "valid_batch_size", "early_stopping_patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1, or left out")
        if self.num_warmup_steps and not self.lr_scheduler:
            raise UserError("num_warmup_steps needs an lr_scheduler, for example constant_with_warmup")
        if not self.valid_interval:
            for name in ("save_best", "early_stopping_patience", "desired_metric", "use_lr_drop"):
                if getattr(self, name) not in (None, False):
                    raise UserError(f"{name} is decided by validation: set valid_interval")
        if not self.init_checkpoint:
            for name in ("reset_iteration", "reset_optimizer", "reset_lr", "skip_used_data"):
                if getattr(self, name):
                    raise UserError(f"{name} says what to take from init_checkpoint, which is not set")
        if self.model_path is None and (self.save_interval or self.save_best):
            raise UserError("save_interval and save_best need model_path, the folder to save to")


@dataclass
class OptimizerArgs:
    """Options of the optimizer."""

    optimizer: str = option("AdamW", "class name in torch.optim, or Adafactor")
    weight_decay: float = option(0.0, "weight decay")
    memory_lr: float | None = option(None, "learning rate of the memory's parameters; default: lr")
    memory_weight_decay: float = option(0.0, "weight decay of the memory's parameters")
    scale_parameter: bool = option(False, "Adafactor: scale the rate by the size of a parameter")
    relative_step: bool = option(False, "Adafactor: its own time-dependent rate instead of lr")
    warmup_init: bool = option(False, "Adafactor: relative_step with warm-up")
