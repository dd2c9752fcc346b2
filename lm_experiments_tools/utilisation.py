"""Model FLOPs utilisation: arithmetic that the model needs a second over what the device can do.

Forward FLOPs of one micro-batch are counted once by torch, at the first update; a backward pass takes twice as many.
What is computed again to save memory does not count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from .metrics import Batch

FORWARD_AND_BACKWARD = 3  # times the FLOPs of a forward pass


class Utilisation:
    """Of one rank.

    Args:
        peak_tflops: of the device, in TFLOP/s; None: that of a matrix product, measured once.
        dtype: compute type.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, peak_tflops: float | None):
        self.device, self.dtype = device, dtype
        self.peak = None if peak_tflops is None else 1e12 * peak_tflops  # FLOP/s
        self.flops_per_token: float | None = None
        self.is_wanted = True

    @contextmanager
    def counting(self, batch: Batch) -> Iterator[None]:
        """Around the forward pass of a micro-batch: the first one is counted."""
        if not self.is_wanted or self.flops_per_token is not None or "input_ids" not in batch:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.flops_per_token = FORWARD_AND_BACKWARD * counter.get_total_flops() / batch["input_ids"].numel()

    def share(self, tokens_per_second: float) -> float | None:
        """Of the peak, at this rate of the rank; None before the first count."""
        if self.flops_per_token is None:
            return None
        if self.peak is None:
            self.peak = measured_peak(self.device, self.dtype)
        return tokens_per_second * self.flops_per_token / self.peak


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
