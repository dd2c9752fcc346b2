"""One update: forward and backward passes over its micro-batches, gradients summed over ranks, an optimizer step."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import default_collate

from . import checkpoint
from .errors import UserError
from .health import clip_gradients, stop_at_repeated_skips
from .loggers import say
from .metrics import Batch, MetricSums, num_labels
from .sampling import KeyedDataset

if TYPE_CHECKING:
    from .trainer import Trainer


def make_update(trainer: Trainer, module: nn.Module, batches: list[Batch], sums: MetricSums) -> str | None:
    """The gradient of the sum of token losses over all micro-batches and ranks / their count, and a step along it.

    An update whose gradient is not finite leaves the weights as they are, on all ranks alike.

    Returns:
        None; or why the ranks agreed to stop instead of making this update.

    Raises:
        UserError: out of memory.
    """
    engine, wants_to_stop = trainer.engine, trainer.stop_request.reason
    labels = float(sum(num_labels(batch) for batch in batches))
    totals = torch.tensor([labels, float(wants_to_stop is not None)], device=engine.device)
    engine.sum_(totals)
    labels, stops = totals.tolist()
    if stops:
        return next(reason for reason in engine.gather(wants_to_stop) if reason)
    module.train()
    accumulate = _accumulate_or_split if trainer.args.auto_micro_batch else _accumulate
    accumulate(trainer, module, batches, engine.gradient_scale / max(labels, 1.0), sums)
    norm = clip_gradients(trainer.model.parameters(), trainer.args)
    sums.add("gradient_norm", norm, 1)
    is_finite = bool(norm.isfinite())
    if is_finite:
        trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.schedule is not None:
        trainer.schedule.step()
    _count(trainer, batches, is_finite)
    return None


def _accumulate(
    trainer: Trainer, module: nn.Module, batches: list[Batch], scale: float, sums: MetricSums, in_backward: bool = True
) -> None:
    """Gradients of all micro-batches, summed over ranks.

    Args:
        in_backward: the last backward pass may sum over ranks; False: nothing is a collective before all have ended.
    """
    engine = trainer.engine
    engine.gather_parameters(module)
    micro_batches = [part for batch in batches for part in _split(batch, trainer.progress.splits)]
    try:
        for index, batch in enumerate(micro_batches):
            reduces = in_backward and index + 1 == len(micro_batches)
            with nullcontext() if reduces else engine.no_reduction(module):
                count, on_cpu, batch = num_labels(batch), batch, trainer.to_device(batch)
                with trainer.autocast(), trainer.utilisation.counting(on_cpu):
                    output = module(**trainer.batch_transform_fn(batch), **trainer.forward_kwargs)
                loss = output["loss"] if count else output["loss"].nan_to_num() * 0
                (loss * (count * scale)).backward()
            sums.add("loss", loss, count)
            trainer.add_batch_metrics(sums, batch, output)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(trainer, batch) from error
    if in_backward:
        engine.reduce_gradients(module, in_backward)


def _accumulate_or_split(
    trainer: Trainer, module: nn.Module, batches: list[Batch], scale: float, sums: MetricSums
) -> None:
    """`_accumulate`; where a rank runs out of memory, all begin again with micro-batches half as large."""
    engine, progress = trainer.engine, trainer.progress
    rng, before = checkpoint.rng_state(), dict(sums.sums)
    while True:
        problem = None
        try:
            _accumulate(trainer, module, batches, scale, sums, in_backward=False)
        except OutOfMemory as error:
            problem = str(error)
        problem = next(filter(None, engine.gather(problem)), None)
        if problem is None:
            break
        if 2 * progress.splits > trainer.args.batch_size:
            raise UserError(problem)
        progress.splits *= 2
        trainer.model.zero_grad(set_to_none=True)
        sums.sums = dict(before)
        checkpoint.set_rng_state(rng)
        torch.cuda.empty_cache()
        size = -(-trainer.args.batch_size // progress.splits)
        say(f"warning: {problem}; from now on micro-batches have {size} samples, {progress.splits} times as many")
    engine.reduce_gradients(module, in_backward=False)


class OutOfMemory(UserError):
    """The message has the sizes, and what to lower."""

    def __init__(self, trainer: Trainer, batch: Batch):
        shape = " x ".join(map(str, batch["input_ids"].shape)) if "input_ids" in batch else "?"
        super().__init__(
            f"out of memory at update {trainer.progress.update + 1} on rank {trainer.engine.rank} "
            f"({trainer.engine.device}), in a micro-batch of {shape} tokens: lower batch_size and raise "
            "gradient_accumulation_steps as much (--auto_micro_batch does), shorten the samples, or keep less for the "
            "backward pass"
        )


def _is_out_of_memory(error: Exception) -> bool:
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)  # the latter: torch's CPU allocator


def _split(batch: Batch, parts: int) -> list[Batch]:
    """A batch cut along its samples."""
    if parts == 1:
        return [batch]
    size = len(next(iter(batch.values())))
    edges = [size * part // parts for part in range(parts + 1)]
    return [{k: v[low:high] for k, v in batch.items()} for low, high in zip(edges, edges[1:]) if high > low]


def _count(trainer: Trainer, batches: list[Batch], is_finite: bool) -> None:
    progress = trainer.progress
    if not is_finite:
        progress.skipped += 1
    progress.skipped_in_a_row = 0 if is_finite else progress.skipped_in_a_row + 1
    stop_at_repeated_skips(trainer)
    progress.update += 1
    progress.samples += trainer.global_batch_size
    tokens = sum(batch["input_ids"].numel() for batch in batches if "input_ids" in batch)
    progress.tokens += tokens * trainer.engine.world_size


def settle(trainer: Trainer, module: nn.Module) -> None:
    """Backward passes whose gradients are thrown away, where an engine sums in another order in its first ones.

    So the first update of a resumed run is bit for bit that of the uninterrupted one.
    """
    if not trainer.engine.settling_passes:
        return
    rng = checkpoint.rng_state()
    sample = KeyedDataset(trainer.train_dataset)[0, 0]
    batch = trainer.to_device((trainer.collate_fn or default_collate)([sample]))
    module.train()
    for _ in range(trainer.engine.settling_passes):
        with trainer.autocast():
            output = module(**trainer.batch_transform_fn(batch), **trainer.forward_kwargs)
        (output["loss"].nan_to_num() * 0).backward()
    trainer.optimizer.zero_grad(set_to_none=True)
    checkpoint.set_rng_state(rng)
