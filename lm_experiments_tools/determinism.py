"""Runs that repeat bit for bit: their seed, and a GPU's algorithms. On a CPU those repeat as they are."""

import os
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """All global generators. That of transformers imports peft, which few runs use, for half a second."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of all devices


def repeat_exactly() -> None:
    """From now on, in this process, torch takes only algorithms that give the same bits each time.

    An operation that has none is an error, which names it. Call it before the first product on a GPU: cuBLAS reads its
    workspace's size once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
