"""Sums of metrics that stay on the device and are gathered over ranks once, when they are read."""

from __future__ import annotations

from typing import Any

import torch

from .distributed.base import Engine

Batch = dict[str, Any]


class MetricSums:
    """Weighted means: loss is weighted by labelled tokens, everything else by samples."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, name: str, mean, weight) -> None:
        """Count a mean over `weight` items (tokens or samples); tensors are not read here, so no wait."""
        mean = torch.as_tensor(mean).detach().double()
        pair = torch.stack((mean * weight, torch.full_like(mean, weight)))
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def state(self) -> dict[str, torch.Tensor]:
        """The sums of this rank, on the CPU."""
        return {name: pair.cpu() for name, pair in self.sums.items()}

    def load(self, states: list[dict[str, torch.Tensor]]) -> None:
        """Go on from what `state` returned on some ranks."""
        self.sums = {}
        for state in states:
            for name, pair in state.items():
                pair = pair.to(self.engine.device)
                self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def means(self) -> dict[str, float]:
        """Means over all ranks; forgets the sums. A name that any rank has must have been added on every rank."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        table = torch.stack([self.sums[name].to(self.engine.device) for name in names])
        self.engine.sum_(table)
        self.sums = {}
        return {name: (total / weight).item() for name, (total, weight) in zip(names, table.cpu()) if weight > 0}


def num_labels(batch: Batch) -> int:
    """Labels that count in the loss: all but the first column, which nothing predicts, where not -100."""
    return int((batch["labels"][..., 1:] != -100).sum())
