"""Everything that a resumed run needs to end as the uninterrupted one: saved, restored, taken from another run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

from . import checkpoint
from .distributed.shards import Tensors, is_split, load_optimizer_tensors, on_cpu, split_like
from .errors import UserError
from .loggers import say

if TYPE_CHECKING:
    from .trainer import Trainer

PARTS = ("optimizer", "schedule", "plateau")  # attributes of the Trainer with a state_dict
OPTIMIZER_PARTS = "optimizer"  # folder of a checkpoint: optimizer state that was split over ranks


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint as `trainer_state.json`.

    Attributes:
        update: optimizer steps made, skipped ones included. samples: position in the stream of samples.
        tokens: inputs read. skipped: updates left out because a gradient was not finite. skipped_in_a_row: the last
            ones of them. validated: update of the last validation; -1: none yet. patience: validations since the best.
        splits: micro-batches that one of `batch_size` samples is cut into, after running out of memory.
        stop_reason: why the run ended, if it did.
    """

    update: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    validated: int = -1
    best_metric: float | None = None
    best_update: int | None = None
    patience: int = 0
    splits: int = 1
    stop_reason: str | None = None


def all_updates_made(iters: int) -> str:
    """The reason to stop there."""
    return f"made all {iters} updates"


def folder_of(trainer: Trainer) -> Path:
    """Where a checkpoint of the present state belongs."""
    return checkpoint.step_folder(trainer.run, trainer.progress.update, trainer.is_validation_due())


@dataclass
class Content:
    """What a checkpoint will hold.

    Attributes:
        weights, states (of `PARTS`), ranks: on rank 0. parts: what this rank holds of split optimizer state.
        progress, global_batch_size: when it was collected.
    """

    weights: Tensors
    states: dict[str, dict]
    ranks: list[dict]
    parts: Tensors
    progress: Progress
    global_batch_size: int


def collect(trainer: Trainer, copy: bool) -> Content:
    """The present state; every rank must call. `copy`: on the CPU, so that training may go on."""
    engine = trainer.engine
    ranks = engine.gather({"rng": checkpoint.rng_state(), "sums": trainer.sums.state()})
    states = {name: getattr(trainer, name).state_dict() for name in PARTS if getattr(trainer, name)}
    parts = {}
    for index, values in states["optimizer"]["state"].items():
        parts |= {f"{index}.{name}": value for name, value in values.items() if is_split(value)}
    states["optimizer"]["state"] = {
        index: {name: value for name, value in values.items() if f"{index}.{name}" not in parts}
        for index, values in states["optimizer"]["state"].items()
    }
    is_main = engine.rank == 0
    weights = checkpoint.whole_weights(trainer.model, is_main, copy)
    if copy:
        states = tree_map(_copied, states) if is_main else {}
    parts = on_cpu(parts, engine.save_group) if parts else {}
    return Content(weights, states, ranks, parts, replace(trainer.progress), trainer.global_batch_size)


def _copied(value: Any) -> Any:
    return value.to("cpu", copy=True) if torch.is_tensor(value) else value


def fill(trainer: Trainer, content: Content, folder: Path, parts: Path | None) -> None:
    """Write what rank 0 writes of a checkpoint; `parts`: folder of what all ranks have written."""
    checkpoint.save_weights(trainer.model, content.weights, folder)
    if trainer.tokenizer is not None:
        trainer.tokenizer.save_pretrained(folder)
    torch.save(content.states, folder / "optimizer.pt")
    torch.save(content.ranks, folder / "ranks.pt")
    state = asdict(content.progress) | {"global_batch_size": content.global_batch_size}
    (folder / "trainer_state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    if parts is not None:
        parts.rename(folder / OPTIMIZER_PARTS)


def restore(trainer: Trainer) -> dict[str, Any] | None:
    """Continue this run, or start from another run's checkpoint.

    Returns:
        State of this rank's random generators, to be set when nothing else draws from them any more; None: leave them.

    Raises:
        UserError: the run must not be continued, or no checkpoint fits.
    """
    args = trainer.args
    if trainer.run and trainer.engine.rank == 0:
        checkpoint.remove_leftovers(trainer.run)
    own = _own_checkpoint(trainer)
    if own is not None:
        rng = _load(trainer, own)
        trainer.saver.newest = own
        if trainer.engine.rank == 0:
            say(f"resumed from {own}")
        return rng
    if args.init_checkpoint:
        load_from(trainer, Path(args.init_checkpoint))
    return None


def _own_checkpoint(trainer: Trainer) -> Path | None:
    args, run = trainer.args, trainer.run
    if args.resume not in ("auto", "never"):
        folder = Path(args.resume)
        newer = [path.name for path in checkpoint.step_folders(run or folder) if path.name > folder.name]
        if newer:
            raise UserError(f"{run} has checkpoints behind {folder.name}: move {', '.join(newer)} away first")
        return folder
    found = checkpoint.newest_checkpoint(run) if run and trainer.engine.rank == 0 else None
    found = trainer.engine.gather(found)[0]
    if found is not None and args.resume == "never":
        raise UserError(f"{run} holds a run; give another model_path, or resume=auto to continue it")
    return found


def _load(trainer: Trainer, folder: Path) -> dict[str, Any] | None:
    if not (folder / "trainer_state.json").exists():
        raise UserError(f"no checkpoint of a Trainer in {folder}")
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    before, now = state.pop("global_batch_size"), trainer.global_batch_size
    if before != now and not trainer.args.allow_batch_change:
        raise UserError(
            f"{folder} was made with {before} samples an update, now there would be {now} (batch_size x "
            "gradient_accumulation_steps x ranks): keep their product, or give --allow_batch_change"
        )
    checkpoint.load_weights(trainer.model, folder)
    trainer.progress = Progress(**state)
    if trainer.progress.stop_reason == all_updates_made(state["update"]) and state["update"] < trainer.args.iters:
        trainer.progress.stop_reason = None  # iters was raised
    _load_parts(trainer, folder, PARTS)
    if trainer.run and trainer.engine.rank == 0 and trainer.args.save_best and state["best_update"] is not None:
        checkpoint.link_best(trainer.run, checkpoint.step_folder(trainer.run, state["best_update"]))
    ranks = checkpoint.read(folder / "ranks.pt", partial(torch.load, weights_only=True))
    engine = trainer.engine
    if len(ranks) == engine.world_size:
        own = ranks[engine.rank]
        trainer.sums.load([own["sums"]])
        return own["rng"]
    trainer.sums.load([rank["sums"] for rank in ranks] if engine.rank == 0 else [])
    return None


def _load_parts(trainer: Trainer, folder: Path, names: tuple[str, ...]) -> None:
    load = partial(torch.load, weights_only=True, map_location=trainer.engine.device)
    states = checkpoint.read(folder / "optimizer.pt", load)
    for name in names:
        part = getattr(trainer, name)
        if part is not None and name in states:
            if name == "optimizer":
                _complete(states[name], trainer.optimizer, folder)
            part.load_state_dict(states[name])


def _complete(state: dict, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Add what was saved in parts, and split over ranks what this engine splits: engines may change."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if (folder / OPTIMIZER_PARTS).is_dir():
        for index, tensors in load_optimizer_tensors(folder / OPTIMIZER_PARTS, parameters).items():
            state["state"][index] |= tensors
    for index, values in state["state"].items():
        own = parameters[index]
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == own.shape:
                values[name] = split_like(value, own)


def load_from(trainer: Trainer, folder: Path) -> None:
    """Start from another run's checkpoint: its weights, and of the rest what is not reset."""
    args = trainer.args
    folder = checkpoint.weights_folder(folder)
    if not (folder / "trainer_state.json").exists():
        raise UserError(f"init_checkpoint {args.init_checkpoint} is not a checkpoint, nor a run with a best one")
    checkpoint.load_weights(trainer.model, folder)
    rates = [
        {name: group[name] for name in ("lr", "initial_lr") if name in group}
        for group in trainer.optimizer.param_groups
    ]
    unwanted = ("optimizer",) * args.reset_optimizer + ("schedule", "plateau") * args.reset_lr
    _load_parts(trainer, folder, tuple(name for name in PARTS if name not in unwanted))
    groups = trainer.optimizer.param_groups
    if args.reset_lr:
        for group, own in zip(groups, rates):
            group |= own
    elif trainer.schedule is not None:  # the rate of its place in this run's schedule, not of the other's
        schedule = trainer.schedule
        for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas):
            group["lr"] = base * factor(schedule.last_epoch)
    if not any(group["lr"] for group in groups):
        say(f"warning: the learning rate is 0, as {folder} left it: give --reset_lr")
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    if not args.reset_iteration:
        trainer.progress.update, trainer.progress.tokens = state["update"], state["tokens"]
        trainer.progress.validated = state["update"]
    if args.skip_used_data:
        trainer.progress.samples = state["samples"]


def load_best(trainer: Trainer) -> Path | None:
    """Load the weights of the best checkpoint, or of the last if none is called best; returns its folder."""
    run = trainer.run
    if run is None:
        return None
    folder = run / "best" if (run / "best").exists() else checkpoint.newest_checkpoint(run)
    if folder is not None:
        checkpoint.load_weights(trainer.model, folder)
    return folder
