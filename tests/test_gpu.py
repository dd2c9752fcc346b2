"""What holds on a CPU holds on a GPU: the published vectors, every family, compiled cells, generation, bfloat16."""

import subprocess
import sys

import pytest
import torch
from test_diagonal import assert_same, close, gradients, in_double  # noqa: F401  the fixture
from test_evaluation_babilong import folder, outputs, words  # noqa: F401  the fixture
from test_parity import (
    needs_reference,
    published,  # noqa: F401  the fixture
    published_gradients,
    published_labels,
    published_model,
    relative_error,
)
from test_runner import ROOT
from tiny_models import CONFIGS, SEGMENT, make, padded, tokens

from lm_experiments_tools import checkpoint
from lm_experiments_tools.evaluation import babilong
from lm_experiments_tools.preemption import EXIT_CODE
from modeling_armt.executors import diagonal

NEAR = 1e-4  # norms and rotary angles are float32 in some families, whatever the type of the rest

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: bash scripts/test.sh tests/test_gpu.py"
)


def assert_same_outputs(gpu, cpu, ids, tolerance, **inputs):
    with torch.no_grad():
        one, other = cpu(ids, **inputs), gpu(ids.cuda(), **{name: value.cuda() for name, value in inputs.items()})
    mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    close(other.logits.cpu()[mask], one.logits[mask], tolerance)
    close(other.memory_state.A.cpu(), one.memory_state.A, tolerance)


@needs_reference
@pytest.mark.parametrize("executor", ["sequential", "diagonal"])
def test_logits_loss_and_gradients_equal_the_published_code(published, tmp_path, executor):  # noqa: F811
    tensors, _ = published
    model = published_model(published, tmp_path)
    if executor == "diagonal" and model.config.model_type == "rmt":
        pytest.skip("RMT has one order")
    model.config.executor = executor
    model.cuda()
    ids, mask = tensors["input_ids"], tensors["attention_mask"]
    labels = published_labels(tensors)
    output = model(ids.cuda(), attention_mask=mask.cuda(), labels=labels.cuda(), output_logits=True)
    torch.testing.assert_close(output.logits.cpu(), tensors["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss.cpu(), tensors["loss"][0], atol=1e-5, rtol=0)
    output.loss.backward()
    expected = published_gradients(tensors)
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad.cpu(), expected[name]) < 1e-4, name


@pytest.mark.parametrize("executor", ["sequential", "diagonal"])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_gives_what_it_gives_on_a_cpu(in_double, family, executor):  # noqa: F811
    cpu, gpu = make(family), make(family, executor=executor).cuda()
    ids = tokens(2, 3 * SEGMENT)  # of more segments, float32 parts of some families make rounding a percent of A
    assert_same_outputs(gpu, cpu, ids, NEAR)
    (loss, expected), (other, found) = gradients(cpu, ids), gradients(gpu, ids.cuda())
    close(other.cpu(), loss, NEAR)
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            close(found[name].cpu(), gradient, NEAR)


@pytest.mark.parametrize("family", CONFIGS)
def test_recorded_diagonals_of_every_family_give_what_segments_in_order_give(in_double, family):  # noqa: F811
    one, other = make(family).cuda(), make(family, executor="diagonal").cuda()
    ids = tokens(2, 14 * SEGMENT - 3).cuda()
    with torch.no_grad():
        assert_same(one(ids), other(ids), 1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_rows_of_different_lengths_give_what_they_give_on_a_cpu(family):
    ids, mask, _ = padded([tokens(1, 3 * SEGMENT - 2), tokens(1, SEGMENT + 2, seed=1)], "left")
    assert_same_outputs(make(family).cuda(), make(family), ids, NEAR, attention_mask=mask)


@pytest.mark.parametrize("executor", ["sequential", "diagonal"])
def test_compiled_cells_give_the_same_outputs_and_gradients(family, executor):
    cpu, gpu = make(family), make(family, executor=executor).cuda()
    gpu.compile_cells()
    ids = tokens(2, 14 * SEGMENT - 3)
    assert_same_outputs(gpu, cpu, ids, NEAR)
    (loss, expected), (other, found) = gradients(cpu, ids), gradients(gpu, ids.cuda())
    close(other.cpu(), loss, NEAR)
    for name, gradient in expected.items():
        assert gradient is None or relative_error(found[name].cpu(), gradient) < 1e-3, name


@pytest.mark.parametrize("executor", ["sequential", "diagonal"])
def test_autocast_keeps_the_memory_in_float32_and_the_outputs_near(family, executor):
    cpu, gpu = make(family), make(family, executor=executor).cuda()
    ids = tokens(2, 5 * SEGMENT)
    with torch.no_grad():
        expected = cpu(ids)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            output = gpu(ids.cuda())
    assert output.memory_state.A.dtype == output.memory_state.z.dtype == torch.float32
    assert relative_error(output.logits.float().cpu(), expected.logits) < 0.05


def test_recorded_diagonals_of_a_model_in_bfloat16_are_those_that_are_called(family, monkeypatch):
    model, ids = make(family, executor="diagonal").bfloat16().cuda(), tokens(2, 30 * SEGMENT).cuda()
    recorded = model.read(ids)
    monkeypatch.setattr(diagonal, "REPLAYED", set())
    called = model.read(ids)
    assert called.A.dtype == torch.float32
    assert torch.equal(recorded.A, called.A) and torch.equal(recorded.z, called.z)


def test_generation_writes_the_tokens_of_the_cpu(family, kind):
    cpu, gpu = make(family, kind), make(family, kind).cuda()
    ids, mask, _ = padded([tokens(1, 3 * SEGMENT - 2), tokens(1, SEGMENT + 2, seed=1)], "left")
    options = dict(max_new_tokens=2 * SEGMENT, do_sample=False, pad_token_id=0, eos_token_id=None)
    expected = cpu.generate(ids, attention_mask=mask, **options)
    found = gpu.generate(ids.cuda(), attention_mask=mask.cuda(), **options)
    assert torch.equal(found.cpu(), expected)


def test_memory_of_a_read_does_not_grow_with_the_text():
    model = make(executor="diagonal").cuda()
    peaks = []
    model.read(tokens(1, 200 * SEGMENT))  # what libraries keep from their first call on
    for segments in (200, 2000):
        ids = tokens(1, segments * SEGMENT)
        torch.cuda.reset_peak_memory_stats()
        model.read(ids)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.02 * peaks[0]


@pytest.mark.parametrize("executor", ["sequential", "diagonal"])
def test_an_evaluation_leaves_the_files_of_one_on_the_cpu(folder, tmp_path, monkeypatch, executor):  # noqa: F811
    babilong.main(words(folder, tmp_path / "gpu", executor=executor))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    babilong.main(words(folder, tmp_path / "cpu"))
    assert outputs(tmp_path / "gpu") == outputs(tmp_path / "cpu")


def test_a_resumed_deterministic_run_ends_bit_for_bit_as_the_uninterrupted_one(tmp_path):
    def run(name, *more):
        words = ["--task_dataset", "qa1", "--simulated_questions", 300, "--valid_size", 20, "--test_size", 20,
                 "--facts_only", "--vary_n_facts", "--segment_size", 16, "--data_cache", tmp_path / "cache",
                 "--model_cfg", "configs/models/llama-2x128.json", "--batch_size", 8, "--iters", 12, "--lr", 1e-3,
                 "--save_interval", 4, "--deterministic", "--model_path", tmp_path / name, *more]  # fmt: skip
        command = [sys.executable, "run_finetuning_babilong.py", *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, output = run("whole")
    assert code == 0, output
    code, output = run("stopped", "--max_hours", 1e-9)
    assert code == EXIT_CODE, output
    code, output = run("stopped")
    assert code == 0 and "resumed from" in output, output
    for part in ("model.safetensors", "optimizer.pt"):
        one, other = (checkpoint.step_folder(tmp_path / name, 12) / part for name in ("whole", "stopped"))
        assert one.read_bytes() == other.read_bytes(), part
