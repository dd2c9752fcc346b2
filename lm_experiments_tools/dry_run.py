"""What a run would take: memory and time, estimated from two real passes over one micro-batch, which leave nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from .peak_memory import PeakMemory

if TYPE_CHECKING:
    from .trainer import Trainer

GB = 1e9


def estimate(trainer: Trainer) -> str:
    """A table of memory and time; the weights of `trainer` are changed.

    The sums over ranks are left out. On a CPU, memory is that of the process.
    """
    args, device = trainer.args, trainer.engine.device
    batch = next(trainer.train_batches())
    with PeakMemory(device) as memory:
        _pass(trainer, batch)
    start = time.perf_counter()
    _pass(trainer, batch)
    seconds = (time.perf_counter() - start) * args.gradient_accumulation_steps
    weights = _bytes(trainer.model.parameters())
    gradients = _bytes(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    optimizer = _bytes(value for value in states if torch.is_tensor(value))
    activations = max(0, memory.bytes - gradients - optimizer)
    shape = " x ".join(map(str, batch["input_ids"].shape))
    tokens = batch["input_ids"].numel() * args.gradient_accumulation_steps * trainer.engine.world_size
    share = trainer.utilisation.share(tokens / trainer.engine.world_size / seconds)
    rows = [
        ("weights", f"{weights / GB:.3f} GB", ""),
        ("gradients", f"{gradients / GB:.3f} GB", ""),
        ("optimizer state", f"{optimizer / GB:.3f} GB", type(trainer.optimizer).__name__),
        ("activations", f"{activations / GB:.3f} GB", f"micro-batch of {shape} tokens"),
        ("a rank", f"{(weights + gradients + optimizer + activations) / GB:.3f} GB", str(device)),
        ("one update", f"{seconds:.3g} s", f"{tokens / seconds:,.0f} tokens/s, {share:.0%} of the peak"),
        (f"{args.iters} updates", f"{seconds * args.iters / 3600:.3g} h", "without validation"),
    ]
    return "\n".join(f"{name:<18}{value:>12}  {note}".rstrip() for name, value, note in rows)


def _pass(trainer: Trainer, batch: dict) -> None:
    """Forward, backward and optimizer step on this rank alone."""
    trainer.model.train()
    with trainer.autocast(), trainer.utilisation.counting(batch):
        output = trainer.model(**trainer.batch_transform_fn(trainer.to_device(batch)), **trainer.forward_kwargs)
    output["loss"].backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.engine.device.type == "cuda":
        torch.cuda.synchronize(trainer.engine.device)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
