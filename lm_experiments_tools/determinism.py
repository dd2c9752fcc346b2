"""Runs that repeat bit for bit on a GPU. On a CPU they do so as they are."""

import os

import torch


def repeat_exactly() -> None:
    """From now on, in this process, torch takes only algorithms that give the same bits each time.

    An operation that has none is an error, which names it. Call it before the first product on a GPU: cuBLAS reads its
    workspace's size once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
