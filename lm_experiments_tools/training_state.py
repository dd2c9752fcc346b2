"""Everything that a resumed run needs to end as the uninterrupted one: saved, restored, taken from another run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import checkpoint
from .errors import UserError
from .loggers import say

if TYPE_CHECKING:
    from .trainer import Trainer

PARTS = ("optimizer", "schedule", "plateau")  # attributes of the Trainer with a state_dict


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint as `trainer_state.json`.

    Attributes:
        update: optimizer steps made, skipped ones included. samples: position in the stream of samples.
        tokens: inputs read. skipped: updates left out because a gradient was not finite. skipped_in_a_row: the last
            ones of them. validated: update of the last validation. patience: validations since the best.
        stop_reason: why the run ended, if it did.
    """

    update: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    validated: int = 0
    best_metric: float | None = None
    best_update: int | None = None
    patience: int = 0
    stop_reason: str | None = None


def folder_of(trainer: Trainer) -> Path:
    """Where a checkpoint of the present state belongs."""
    return checkpoint.step_folder(trainer.run, trainer.progress.update, trainer.is_validation_due())


def save(trainer: Trainer) -> Path | None:
    """Write a checkpoint of the whole training state.

    Returns:
        Its folder; None where the disk refused it, which is said on the console and kept in `trainer.save_problem`.
    """
    engine, run = trainer.engine, trainer.run
    ranks = engine.gather({"rng": checkpoint.rng_state(), "sums": trainer.sums.state()})
    folder, problem = folder_of(trainer), None
    if engine.rank == 0:
        try:
            checkpoint.write_folder(folder, lambda path: _fill(trainer, path, ranks))
            best = trainer.progress.best_update if trainer.args.save_best else None
            best = checkpoint.step_folder(run, best) if best is not None else None
            checkpoint.link_best(run, best if best is not None and best.exists() else None)
            checkpoint.prune(run, trainer.args.keep_checkpoints, best)
        except OSError as error:
            free = shutil.disk_usage(run).free
            problem = f"{' '.join(str(error).split())} ({free:,} bytes free)"
            say(f"warning: {problem}; training goes on")
    trainer.save_problem = engine.gather(problem)[0]
    if trainer.save_problem:
        return None
    trainer.saved = folder
    return folder


def _fill(trainer: Trainer, folder: Path, ranks: list[dict]) -> None:
    checkpoint.save_weights(trainer.model, folder)
    if trainer.tokenizer is not None:
        trainer.tokenizer.save_pretrained(folder)
    parts = {name: getattr(trainer, name) for name in PARTS}
    torch.save({name: part.state_dict() for name, part in parts.items() if part}, folder / "optimizer.pt")
    torch.save(ranks, folder / "ranks.pt")
    state = asdict(trainer.progress) | {"global_batch_size": trainer.global_batch_size}
    (folder / "trainer_state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


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
        trainer.saved = own
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
    _load_parts(trainer, folder, PARTS)
    if trainer.run and trainer.engine.rank == 0 and trainer.args.save_best and state["best_update"] is not None:
        checkpoint.link_best(trainer.run, checkpoint.step_folder(trainer.run, state["best_update"]))
    ranks = torch.load(folder / "ranks.pt", weights_only=True)
    engine = trainer.engine
    if len(ranks) == engine.world_size:
        own = ranks[engine.rank]
        trainer.sums.load([own["sums"]])
        return own["rng"]
    trainer.sums.load([rank["sums"] for rank in ranks] if engine.rank == 0 else [])
    return None


def _load_parts(trainer: Trainer, folder: Path, names: tuple[str, ...]) -> None:
    states = torch.load(folder / "optimizer.pt", weights_only=True, map_location=trainer.engine.device)
    for name in names:
        part = getattr(trainer, name)
        if part is not None and name in states:
            part.load_state_dict(states[name])


def load_from(trainer: Trainer, folder: Path) -> None:
    """Start from another run's checkpoint: its weights, and of the rest what is not reset."""
    args = trainer.args
    folder = checkpoint.weights_folder(folder)
    if not (folder / "trainer_state.json").exists():
        raise UserError(f"init_checkpoint {args.init_checkpoint} is not a checkpoint, nor a run with a best one")
    checkpoint.load_weights(trainer.model, folder)
    rates = [(group["lr"], group.get("initial_lr")) for group in trainer.optimizer.param_groups]
    if not args.reset_optimizer:
        _load_parts(trainer, folder, ("optimizer",) if args.reset_lr else PARTS)
    if args.reset_lr:
        for group, (rate, initial) in zip(trainer.optimizer.param_groups, rates):
            group["lr"] = rate
            if initial is not None:
                group["initial_lr"] = initial
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
