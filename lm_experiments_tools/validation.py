"""Validation: every sample exactly once on any number of ranks; ranks work alone and meet once, at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from .loggers import progress_bar
from .metrics import Batch, MetricSums, num_labels
from .preemption import Preempted, leave_signals_to_the_run

if TYPE_CHECKING:
    from .trainer import Trainer


class Interrupted(Preempted):
    """A rank was asked to stop during the validation, which is given up on all of them; the message says why."""


@torch.no_grad()
def validate(trainer: Trainer, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of the Trainer's model over `dataset`; rank r takes samples r, r + ranks, ...

    Raises:
        Interrupted: on every rank, where any was asked to stop.
    """
    engine, model = trainer.engine, trainer.model
    indexes = _share(trainer, dataset)
    sums, kept = MetricSums(engine), []
    trainer.examples = []
    was_training = model.training
    model.eval()
    with engine.gathered(model):
        for batch in progress_bar(
            engine.rank == 0, _loader(trainer, dataset, indexes), desc=split, unit=" batches", leave=False
        ):
            if trainer.stop_request.reason is not None:
                break
            _evaluate(trainer, batch, sums, kept)
    model.train(was_training)
    reasons = [reason for reason in engine.gather(trainer.stop_request.reason) if reason]
    if reasons:
        raise Interrupted(reasons[0])
    return _means(sums, engine, len(indexes)) | _metrics_of_kept(trainer, kept, indexes, len(dataset))


def _share(trainer: Trainer, dataset: Dataset) -> list[int]:
    """Samples of this rank; generation takes the longest first (`dataset.sample_lengths`, if any): little padding."""
    indexes = list(range(trainer.engine.rank, len(dataset), trainer.engine.world_size))
    lengths = getattr(dataset, "sample_lengths", None)
    if lengths is not None and trainer.args.use_generate_on_valid:
        indexes.sort(key=lambda index: -lengths[index])
    return indexes


def _loader(trainer: Trainer, dataset: Dataset, indexes: list[int]) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=trainer.args.valid_batch_size or trainer.args.batch_size,
        sampler=indexes,
        collate_fn=trainer.collate_fn,
        num_workers=trainer.args.data_n_workers,
        worker_init_fn=leave_signals_to_the_run,
        generator=torch.Generator(),  # leave the global generator as it is
    )


def _evaluate(trainer: Trainer, batch: Batch, sums: MetricSums, kept: list[dict]) -> None:
    batch = trainer.to_device(batch)
    output = _predict(trainer, batch)
    count = num_labels(batch)
    sums.add("loss", output["loss"] if count else 0.0, count)
    trainer.add_batch_metrics(sums, batch, output)
    missing = trainer.args.show_valid_examples - len(trainer.examples)
    if trainer.examples_fn and missing > 0 and trainer.engine.rank == 0:
        trainer.examples += trainer.examples_fn(batch, output)[:missing]
    if trainer.keep_for_metrics_fn:
        kept.append(trainer.keep_for_metrics_fn(batch, output))


def _predict(trainer: Trainer, batch: Batch) -> Any:
    with trainer.autocast():
        output = trainer.model(**trainer.batch_transform_fn(batch), **trainer.forward_kwargs)
        if trainer.args.use_generate_on_valid:
            inputs = trainer.generate_inputs_fn(batch) if trainer.generate_inputs_fn else batch
            output["generation_outputs"] = trainer.model.generate(**inputs, **trainer.generate_kwargs)
    return output


def _means(sums: MetricSums, engine, num_samples: int) -> dict[str, float]:
    """Means over ranks; a rank without samples takes part with weight 0."""
    names = sorted({name for rank_names in engine.gather(list(sums.sums)) for name in rank_names})
    if not num_samples:
        for name in names:
            sums.add(name, 0.0, 0)
    return sums.means()


def _metrics_of_kept(trainer: Trainer, kept: list[dict], indexes: list[int], size: int) -> dict[str, float]:
    """Gather the kept lists once, put them into the dataset's order, check that none is missing."""
    if not (trainer.keep_for_metrics_fn and trainer.metrics_fn):
        return {}
    own = {name: [item for part in kept for item in part[name]] for name in (kept[0] if kept else ())}
    shares = trainer.engine.gather((indexes, own))
    whole = {name: [None] * size for _, share in shares for name in share}
    for rank_indexes, share in shares:
        for name, items in share.items():
            if len(items) != len(rank_indexes):
                raise ValueError(f"keep_for_metrics_fn kept {len(items)} of {name!r} for {len(rank_indexes)} samples")
            for index, item in zip(rank_indexes, items):
                whole[name][index] = item
    return trainer.metrics_fn(whole)
