"""Optimizers and schedules by name."""

import inspect
from collections.abc import Iterable

import torch

from .args import OptimizerArgs, TrainerArgs
from .errors import UserError

# schedules of transformers that want options of their own or a metric at each step (use_lr_drop is the plateau)
WITH_OTHER_NEEDS = {
    "reduce_lr_on_plateau", "greedy", "warmup_stable_decay", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
}  # fmt: skip


def make_optimizer(parameters: Iterable[torch.nn.Parameter] | list[dict], args: OptimizerArgs, lr: float | None):
    """The optimizer named by `args.optimizer`, fused where torch offers it.

    Args:
        parameters: to be trained, or groups of them with options of their own.

    Raises:
        UserError: no such optimizer, or nothing to train.
    """
    parameters = [entry for entry in parameters if isinstance(entry, dict) or entry.requires_grad]
    if not parameters:
        raise UserError("no parameter is trained: the backbone is frozen and there is no memory")
    if args.optimizer == "Adafactor":
        from transformers.optimization import Adafactor  # 2 s, with what it imports

        if args.relative_step:
            lr = None
        return Adafactor(
            parameters, lr=lr, weight_decay=args.weight_decay, scale_parameter=args.scale_parameter,
            relative_step=args.relative_step, warmup_init=args.warmup_init,
        )  # fmt: skip
    kind = getattr(torch.optim, args.optimizer, None)
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
        raise UserError(f"no optimizer {args.optimizer!r} in torch.optim (AdamW, SGD, ...), and not Adafactor")
    accepted = inspect.signature(kind).parameters
    options = {"lr": lr, "weight_decay": args.weight_decay, "fused": True}
    return kind(
        parameters, **{name: value for name, value in options.items() if name in accepted and value is not None}
    )


def make_schedule(optimizer: torch.optim.Optimizer, args: TrainerArgs):
    """The schedule named by `args.lr_scheduler`, or None.

    Raises:
        UserError: no such schedule.
    """
    if args.lr_scheduler is None:
        return None
    from transformers import SchedulerType, get_scheduler

    names = [kind.value for kind in SchedulerType if kind.value not in WITH_OTHER_NEEDS]
    if args.lr_scheduler not in names:
        raise UserError(f"no lr_scheduler {args.lr_scheduler!r}; choose one of {', '.join(names)}")
    return get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.num_warmup_steps or 0,
        num_training_steps=args.num_training_steps or args.iters,
    )


class PlateauDrop:
    """ReduceLROnPlateau that also works beside a schedule: the drop multiplies the schedule's base rates."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule, args: TrainerArgs):
        self.schedule = schedule
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode=args.optimize_mode, factor=args.lr_drop_factor, patience=args.lr_drop_patience,
            threshold=args.lr_drop_threshold, threshold_mode=args.lr_drop_threshold_mode,
            cooldown=args.lr_drop_cooldown, min_lr=args.lr_drop_min_lr, eps=args.lr_drop_eps,
        )  # fmt: skip

    def step(self, metric: float) -> None:
        groups = self.plateau.optimizer.param_groups
        before = [group["lr"] for group in groups]
        self.plateau.step(metric)
        if self.schedule is not None:
            for index, (group, rate) in enumerate(zip(groups, before)):
                if group["lr"] != rate:
                    self.schedule.base_lrs[index] *= group["lr"] / rate

    def state_dict(self) -> dict:
        return self.plateau.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.plateau.load_state_dict(state)
