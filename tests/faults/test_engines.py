"""Engines that really run: the same update on each, a resume on each, and what a launcher does when a rank is lost."""

import json
import os
import signal
import sys
import time

import pytest
import torch
from processes import (
    TESTS,
    assert_same,
    completed,
    finish,
    launch,
    needs_horovod,
    ranks_of,
    start,
    wait_for_update,
    wait_until_none_is_left,
)  # fmt: skip
from safetensors.torch import load_file
from transformers import LlamaConfig

from lm_experiments_tools import checkpoint
from lm_experiments_tools.distributed import make_engine
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.status import read_status

SINGLE, DDP, FSDP = ("single", 1), ("ddp", 2), ("fsdp", 2)
HOROVOD = pytest.param("horovod", 2, marks=needs_horovod)


def weights_and_norms_after(run, ranks=1, update=3, **options):
    completed(run, ranks, iters=update, valid_interval=update, clip_grad_norm=None, **options)  # without dropout
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    norms = [row["gradient_norm"] for row in rows if row["split"] == "train"]
    return load_file(checkpoint.step_folder(run, update) / "model.safetensors"), torch.tensor(norms)


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory):
    return weights_and_norms_after(tmp_path_factory.mktemp("one"), batch_size=8, gradient_accumulation_steps=1)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", pytest.param("horovod", marks=needs_horovod)])
@pytest.mark.parametrize("accumulation, ranks", [(2, 2), (1, 4)])
def test_every_engine_makes_the_updates_of_one_process(tmp_path, of_one_process, engine, accumulation, ranks):
    batch = 8 // (ranks * accumulation)
    options = dict(batch_size=batch, gradient_accumulation_steps=accumulation, engine=engine)
    weights, norms = weights_and_norms_after(tmp_path, ranks, **options)
    torch.testing.assert_close(norms, of_one_process[1], atol=1e-6, rtol=1e-6)
    for name, tensor in of_one_process[0].items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=1e-5)


RUNNER = TESTS.parent / "run_finetuning_babilong.py"
OPTIONS = dict(
    segment_size=48, num_mem_tokens=2, d_mem=4, max_n_facts=2, vary_n_facts=True, simulated_questions=300,
    max_n_segments=4, vary_n_segments=True, valid_size=20, test_size=10, vocab_size=1000, batch_size=1,
    gradient_accumulation_steps=2, iters=3, save_interval=3, lr=1e-2, optimizer="SGD", lora_r=2,
)  # fmt: skip


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_ranks_may_read_different_numbers_of_segments(tmp_path, engine):
    """A whole run of the program, with LoRA, whose samples have 1 to 4 segments."""
    LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128,
    ).save_pretrained(tmp_path / "tiny")  # fmt: skip
    options = OPTIONS | {"model_cfg": tmp_path / "tiny", "data_cache": tmp_path / "cache"}
    found = []
    for ranks, changes in ((1, {"gradient_accumulation_steps": 4}), (2, {"engine": engine})):
        run = tmp_path / f"ranks-{ranks}"
        code, output = finish(launch(run, options | changes, ranks, program=RUNNER))
        assert code == 0, output
        found.append(load_file(checkpoint.step_folder(run, 3) / "model.safetensors"))
        assert load_file(run / "adapter" / "adapter_model.safetensors").keys() < found[-1].keys()
        assert (run / "starts.jsonl").exists() and (ranks == 1 or (run / "logs" / "rank-1.log").exists())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-6, rtol=1e-5)


RESUMED = pytest.mark.case(0, "SIGKILL at any moment, on every engine: same end")


@RESUMED
@pytest.mark.parametrize("engine, ranks", [SINGLE, DDP, FSDP, HOROVOD])
def test_kills_at_any_moment_do_not_change_the_end(tmp_path, uninterrupted, engine, ranks):
    for moment in ("update 17", "validation 20", "rename 28"):
        code, output = finish(start(tmp_path, ranks, f"die {moment}", engine=engine), seconds=60)
        assert code != 0, output
        wait_until_none_is_left(tmp_path, 10)
    assert "resumed from" in completed(tmp_path, ranks, engine=engine)
    assert_same(tmp_path, uninterrupted(ranks, engine=engine))


@RESUMED
@pytest.mark.parametrize("engine, ranks", [SINGLE, FSDP])
def test_a_kill_does_not_change_the_end_with_workers_and_background_saves(tmp_path, uninterrupted, engine, ranks):
    options = dict(data_n_workers=2, async_save=True, engine=engine)
    process = start(tmp_path, ranks, **options)
    wait_for_update(tmp_path, 16)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    wait_until_none_is_left(tmp_path, 10)
    completed(tmp_path, ranks, **options)
    assert_same(tmp_path, uninterrupted(ranks, engine=engine))


@needs_horovod
@pytest.mark.case(13, "a rank dies under horovodrun: likewise")
def test_under_horovod_a_dead_rank_ends_the_job_and_the_restarted_job_ends_the_same(tmp_path, uninterrupted, ranks=4):
    process = start(tmp_path, ranks, engine="horovod")
    wait_for_update(tmp_path, 12)
    os.kill(ranks_of(tmp_path)[-1], signal.SIGKILL)
    began = time.monotonic()
    code, output = finish(process, seconds=60)
    assert code != 0 and time.monotonic() - began < 60
    wait_until_none_is_left(tmp_path, 10)
    completed(tmp_path, ranks, engine="horovod")
    assert_same(tmp_path, uninterrupted(ranks, engine="horovod"))


@pytest.mark.case(14, "a rank hangs: the job ends within 60 s and names the collective")
@pytest.mark.parametrize("engine, ranks", [DDP, HOROVOD])
def test_a_rank_that_hangs_ends_the_job(tmp_path, engine, ranks):
    process = start(tmp_path, ranks, "updates-take 0.2", engine=engine, collective_timeout=5)
    wait_for_update(tmp_path, 2)
    os.kill(ranks_of(tmp_path)[-1], signal.SIGSTOP)
    code, output = finish(process, seconds=60)
    assert code != 0
    wait_until_none_is_left(tmp_path, 10)
    words = ("all_reduce", "allreduce", "all_gather", "allgather", "backward")
    assert any(word in output.lower() for word in words), output
    assert read_status(tmp_path)["status"] in ("failed", "running"), output


def test_an_engine_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    for name, message in (
        ("horovod", "scripts/install_horovod.sh"),
        ("fsdp", "started by torchrun"),
        ("mpi", "choose one of auto, single, ddp, fsdp, horovod"),
    ):
        with pytest.raises(UserError, match=message):
            make_engine(name)
