"""What a run asks of its devices, as far as a CPU can tell."""

import os

import pytest
import torch
from tiny_task import make_trainer

from lm_experiments_tools.args import TrainerArgs
from lm_experiments_tools.distributed.base import local_device
from lm_experiments_tools.errors import UserError


def test_more_ranks_than_gpus_is_one_line_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="rank 1 .* has no GPU, there are 1: start at most 1 processes"):
        local_device(1)


def test_without_a_gpu_every_rank_is_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device(3) == torch.device("cpu")


def test_a_deterministic_run_takes_only_algorithms_that_repeat(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        make_trainer(TrainerArgs(iters=2, batch_size=2, deterministic=True)).train()
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
