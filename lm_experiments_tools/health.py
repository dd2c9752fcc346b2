"""Gradients that are clipped, or not finite."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import nn

from .args import TrainerArgs
from .distributed.shards import whole
from .sampling import TrainSampler

if TYPE_CHECKING:
    from .trainer import Trainer


def clip_gradients(parameters: Iterable[nn.Parameter], args: TrainerArgs) -> torch.Tensor:
    """Clip accumulated, reduced gradients as `args` say; returns their norm before that."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm([parameter.grad for parameter in trained]))
    if args.clip_grad_norm:
        nn.utils.clip_grads_with_norm_(trained, args.clip_grad_norm, norm)
    elif args.clip_grad_value:
        nn.utils.clip_grad_value_(trained, args.clip_grad_value)
    return norm


class NotFinite(RuntimeError):
    """Gradients were not finite for too many updates in a row."""


def stop_at_repeated_skips(trainer: Trainer) -> None:
    """Raise `NotFinite` once `max_skipped_updates` updates in a row were left out; their samples are written down."""
    progress, args = trainer.progress, trainer.args
    if progress.skipped_in_a_row < args.max_skipped_updates:
        return
    sampler = TrainSampler(len(trainer.train_dataset), trainer.global_batch_size, args.seed, 0, 1, progress.samples)
    keys = next(islice(sampler, 1))
    where = ""
    if trainer.run:
        path = trainer.run / f"not-finite-{progress.update + 1:08d}.json"
        where = f"; its samples are in {path}"
        if trainer.engine.rank == 0:
            path.write_text(json.dumps([{"epoch": epoch, "index": index} for epoch, index in keys]), encoding="utf-8")
    raise NotFinite(
        f"gradients were not finite in {progress.skipped_in_a_row} updates in a row, up to update "
        f"{progress.update + 1}{where}: lower lr, or look at the samples"
    )
