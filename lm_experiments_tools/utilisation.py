"""Model FLOPs utilisation: arithmetic that the model needs a second over what the device can do.

A model that has `training_flops(batch)` counts for itself, each micro-batch. For another one, torch counts the forward
pass of the first micro-batch, once; a backward pass takes twice as many. What is computed again to save memory does not
count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .metrics import Batch

FORWARD_AND_BACKWARD = 3  # times the FLOPs of a forward pass


def _cpu_attention(query: tuple, key: tuple, value: tuple, *args, out_shape=None, **options) -> int:
    """Scores, and values under them; torch's own (2.11) refuses fewer heads of keys than of queries."""
    batch, heads, positions, width = query
    return 2 * batch * heads * positions * key[2] * (width + value[3])


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}  # torch counts CUDA's only


class Utilisation:
    """Of one rank.

    Args:
        peak_tflops: of the device, in TFLOP/s; None: that of a matrix product, measured once.
        dtype: compute type.
        model: may have `training_flops(batch) -> float`, FLOPs of a forward and a backward pass.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, peak_tflops: float | None, model: nn.Module):
        self.device, self.dtype = device, dtype
        self.peak = None if peak_tflops is None else 1e12 * peak_tflops  # FLOP/s
        self.training_flops = getattr(model, "training_flops", None)
        self.flops, self.tokens = 0.0, 0  # of the micro-batches that were counted

    @contextmanager
    def counting(self, batch: Batch) -> Iterator[None]:
        """Around the forward pass of a micro-batch, of which `batch` is the copy on the CPU: it waits for no device."""
        ids: Tensor | None = batch.get("input_ids")
        if ids is None or (self.tokens and self.training_flops is None):
            yield
            return
        if self.training_flops is not None:
            self.flops += self.training_flops(batch)
            yield
        else:
            with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
                yield
            self.flops += FORWARD_AND_BACKWARD * counter.get_total_flops()
        self.tokens += ids.numel()

    def share(self, tokens_per_second: float) -> float | None:
        """Of the peak, at this rate of the rank; None before the first count."""
        if not self.tokens:
            return None
        if self.peak is None:
            self.peak = measured_peak(self.device, self.dtype)
        return tokens_per_second * self.flops / self.tokens / self.peak


def measured_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of a large square matrix product, the best of some."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product = a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    del product
    return 2 * size**3 / best
