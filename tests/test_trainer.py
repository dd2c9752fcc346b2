"""The Trainer: the same gradients however a batch is cut, exact resume, checkpoints, logs."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from processes import TIMINGS, finish, launch, wait_for_update
from tiny_task import TinyData, TinyModel, collate, make_trainer
from torch import nn

from lm_experiments_tools import checkpoint
from lm_experiments_tools.args import OptimizerArgs, TrainerArgs
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.metrics import num_labels
from lm_experiments_tools.optim import make_optimizer
from lm_experiments_tools.trainer import Trainer

TESTS = Path(__file__).parent


def weights(folder):
    return {k: v for f in sorted(Path(folder).glob("*.safetensors")) for k, v in checkpoint.load_file(f).items()}


def gradients(accumulation, batch):
    """Gradient of the first update with global batch 8, from samples with 1 to 5 labels."""
    trainer = make_trainer(TrainerArgs(iters=1, batch_size=batch, gradient_accumulation_steps=accumulation))
    found = {}
    step = trainer.optimizer.step

    def remember():
        found.update({name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()})
        step()

    trainer.optimizer.step = remember
    trainer.train()
    return found


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    whole, parts, uneven = gradients(1, 8), gradients(4, 2), gradients(8, 1)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(uneven[name], gradient, atol=1e-6, rtol=1e-6)


def test_the_loss_is_the_mean_over_labelled_tokens_of_the_update():
    batch = collate([TinyData()[i] for i in range(8)])
    counts = [num_labels(collate([TinyData()[i]])) for i in range(8)]
    assert len(set(counts)) > 2, "label counts must be ragged for this to mean anything"
    torch.manual_seed(0)
    model = TinyModel()
    alone = [model(**collate([TinyData()[i]]))["loss"] for i in range(8)]
    mean = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(model(**batch)["loss"], mean)


@pytest.mark.parametrize("ranks, accumulation, batch", [(2, 1, 4), (2, 2, 2), (2, 4, 1)])
def test_two_ranks_under_torchrun_make_the_same_update_and_metrics(tmp_path, ranks, accumulation, batch):
    run_tiny(tmp_path / "one", ranks=1, batch_size=8, iters=3)
    run_tiny(tmp_path / "two", ranks=ranks, batch_size=batch, gradient_accumulation_steps=accumulation, iters=3)
    one, two = (weights(checkpoint.step_folder(tmp_path / name, 3)) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=1e-5)
    first, second = (valid_rows(tmp_path / name)[-1] for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value == pytest.approx(second[name], abs=1e-5), name


def run_tiny(run, ranks=1, kill_after=None, **options):
    """A run in processes of its own; `kill_after` updates: SIGKILL. Returns its output."""
    process = launch(run, options, ranks)
    if kill_after is not None:
        wait_for_update(run, kill_after)
        process.send_signal(signal.SIGKILL)
    code, output = finish(process)
    assert code == (0 if kill_after is None else -signal.SIGKILL), output
    return output


def valid_rows(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "valid"]


RESUMABLE = dict(
    iters=60, batch_size=4, gradient_accumulation_steps=2, save_interval=7, valid_interval=5, log_interval=1,
    save_best=True, lr_scheduler="linear", num_warmup_steps=10, clip_grad_norm=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_tiny(folder, **RESUMABLE)
    return folder


@pytest.mark.parametrize("kills, workers", [((12,), 0), ((9, 40), 2)])
def test_a_run_killed_at_any_update_ends_as_the_uninterrupted_run_bit_for_bit(tmp_path, uninterrupted, kills, workers):
    for update in kills:
        run_tiny(tmp_path, kill_after=update, data_n_workers=workers, **RESUMABLE)
    output = run_tiny(tmp_path, data_n_workers=workers, **RESUMABLE)
    assert "resumed from" in output
    last = checkpoint.step_folder(tmp_path, 60)
    expected = checkpoint.step_folder(uninterrupted, 60)
    assert (last / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert (last / "trainer_state.json").read_text() == (expected / "trainer_state.json").read_text()
    states = [torch.load(folder / "optimizer.pt", weights_only=True) for folder in (last, expected)]
    assert repr(states[0]) == repr(states[1])
    rows = [
        [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in file.open()]
        for file in (tmp_path / "log.jsonl", uninterrupted / "log.jsonl")
    ]
    assert rows[0] == rows[1], "every update is logged once, with the same values"
    assert os.readlink(tmp_path / "best") == os.readlink(uninterrupted / "best")


def test_a_finished_run_is_not_trained_again(tmp_path, uninterrupted):
    before = (uninterrupted / "log.jsonl").read_text()
    run_tiny(uninterrupted, **RESUMABLE)
    assert (uninterrupted / "log.jsonl").read_text() == before


def test_a_broken_newest_checkpoint_is_skipped_for_the_one_before(tmp_path, uninterrupted):
    args = TrainerArgs(model_path=str(tmp_path), iters=4, batch_size=8, save_interval=2)
    make_trainer(args).train()
    newest = checkpoint.step_folder(tmp_path, 4)
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    assert checkpoint.newest_checkpoint(tmp_path) == checkpoint.step_folder(tmp_path, 2)
    assert newest.with_name(newest.name + ".bad").is_dir()
    (checkpoint.step_folder(tmp_path, 2) / "optimizer.pt").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="optimizer.pt is missing"):
        checkpoint.newest_checkpoint(tmp_path)


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    def fill(folder):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_folder(tmp_path / "step-00000001", fill)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(FileExistsError, match="never overwritten"):
        checkpoint.write_folder(tmp_path / "step-00000001", fill)


def test_resume_never_refuses_a_folder_with_a_run(tmp_path):
    make_trainer(TrainerArgs(model_path=str(tmp_path), iters=1)).train()
    with pytest.raises(UserError, match="holds a run"):
        make_trainer(TrainerArgs(model_path=str(tmp_path), iters=2, resume="never")).train()


def test_resuming_from_a_named_checkpoint_never_overwrites_newer_ones(tmp_path):
    make_trainer(TrainerArgs(model_path=str(tmp_path), iters=4, save_interval=2)).train()
    older, newer = (checkpoint.step_folder(tmp_path, update) for update in (2, 4))
    args = TrainerArgs(model_path=str(tmp_path), iters=4, save_interval=2, resume=str(older))
    with pytest.raises(UserError, match="move step-00000004 away"):
        make_trainer(args).train()
    expected = (newer / "model.safetensors").read_bytes()
    newer.rename(tmp_path / "elsewhere")
    make_trainer(args).train()
    assert (newer / "model.safetensors").read_bytes() == expected


def test_a_checkpoint_of_another_architecture_is_refused_with_names(tmp_path):
    make_trainer(TrainerArgs(model_path=str(tmp_path), iters=1)).train()
    folder = checkpoint.step_folder(tmp_path, 1)
    with pytest.raises(UserError, match=r"shapes: embed.weight \(11, 8\) instead of \(11, 6\)"):
        checkpoint.load_weights(TinyModel(width=6), folder)
    with pytest.raises(UserError, match="missing: 0.weight, 0.bias; unexpected: embed.weight"):
        checkpoint.load_weights(nn.Sequential(nn.Linear(2, 2)), folder)


def test_kept_values_reach_metrics_fn_whole_and_in_order():
    def keep(batch, output):
        return {"first": batch["input_ids"][:, 0].tolist()}

    trainer = make_trainer(
        TrainerArgs(batch_size=3), keep_for_metrics_fn=keep, metrics_fn=lambda kept: {"kept": kept["first"]}
    )
    data = TinyData(size=10)
    assert trainer.validate(data)["kept"] == [data[i]["input_ids"][0].item() for i in range(10)]


def test_tensorboard_has_the_known_tag_names(uninterrupted):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(uninterrupted / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    for tag in ("loss/iterations/train", "loss/samples/train", "loss/iterations/valid", "accuracy/iterations/valid",
                "lr/iterations/param_group_0", "tokens_per_second/iterations/train"):  # fmt: skip
        assert tag in tags
    assert [event.step for event in events.Scalars("loss/iterations/valid")] == list(range(5, 61, 5))


def test_bf16_keeps_float32_weights():
    trainer = make_trainer(TrainerArgs(iters=2, batch_size=4, mixed_precision="bf16"))
    trainer.train()
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adam", "Adafactor", "RMSprop"])
def test_optimizers_are_found_by_name(name):
    parameters = [nn.Parameter(torch.zeros(2, 2))]
    optimizer = make_optimizer(parameters, OptimizerArgs(optimizer=name, weight_decay=0.1), lr=0.01)
    assert type(optimizer).__name__ == name
    assert optimizer.param_groups[0]["lr"] == 0.01 and optimizer.param_groups[0]["weight_decay"] == 0.1


IMPOSSIBLE = {
    "clip_grad_norm and clip_grad_value exclude": dict(clip_grad_norm=1.0, clip_grad_value=1.0),
    "iters is 0": dict(iters=0),
    "save_best is decided by validation": dict(save_best=True),
    "num_warmup_steps needs an lr_scheduler": dict(num_warmup_steps=3),
    "reset_lr says what to take": dict(reset_lr=True),
    "need model_path": dict(save_interval=3),
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_an_impossible_pair_of_options_fails_at_construction(message):
    with pytest.raises(UserError, match=message):
        TrainerArgs(**IMPOSSIBLE[message])


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="no optimizer 'Adamm'"):
        make_optimizer([nn.Parameter(torch.zeros(1))], OptimizerArgs(optimizer="Adamm"), lr=None)
    with pytest.raises(UserError, match="no lr_scheduler 'lin'.*linear"):
        make_trainer(TrainerArgs(lr_scheduler="lin"))
    with pytest.raises(UserError, match="no validation sample"):
        Trainer(TrainerArgs(valid_interval=1), TinyModel(), valid_dataset=TinyData(size=0))


class OfManyLengths(TinyData):
    """Samples of 4 to 9 tokens."""

    sample_lengths = [4 + index % 6 for index in range(12)]

    def sample(self, epoch, index):
        row = super().sample(epoch, index)
        return {name: tensor.repeat(2)[: self.sample_lengths[index]] for name, tensor in row.items()}


def pad(rows):
    return {
        name: nn.utils.rnn.pad_sequence([row[name] for row in rows], True, 0 if name == "input_ids" else -100)
        for name in rows[0]
    }


def test_generation_takes_samples_of_like_length_together_and_metrics_get_them_in_order():
    widths = []

    def keep(batch, output):
        widths.append(batch["input_ids"].shape[1])
        return {"first": batch["input_ids"][:, 0].tolist()}

    data, args = OfManyLengths(size=12), TrainerArgs(batch_size=2, use_generate_on_valid=True)
    trainer = make_trainer(args, collate_fn=pad, keep_for_metrics_fn=keep, metrics_fn=lambda kept: kept)
    trainer.model.generate = lambda input_ids, **_: input_ids
    assert trainer.validate(data)["first"] == [data[i]["input_ids"][0].item() for i in range(12)]
    assert widths == [9, 8, 7, 6, 5, 4]


def test_a_validation_before_the_first_update_is_logged_and_can_be_best(tmp_path):
    args = TrainerArgs(
        model_path=str(tmp_path), iters=2, batch_size=2, valid_interval=2, eval_on_start=True, save_best=True,
        optimize_mode="max",  # of a loss that falls
    )  # fmt: skip
    progress = make_trainer(args).train()
    assert [row["update"] for row in valid_rows(tmp_path)] == [0, 2] and progress.best_update == 0
    assert (tmp_path / "best").resolve() == checkpoint.step_folder(tmp_path, 0).resolve()


def test_utilisation_is_the_arithmetic_of_the_model_over_the_given_peak(tmp_path):
    args = TrainerArgs(model_path=str(tmp_path), iters=3, batch_size=4, log_interval=1, peak_tflops=1e-6)
    make_trainer(args).train()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    width, vocab, layers = 8, 11, 2
    flops_per_token = 3 * 2 * (layers * width * width + width * vocab)  # forward, and twice as many backward
    for row in rows:
        assert row["model_flops_utilisation"] == pytest.approx(row["tokens_per_second"] * flops_per_token / 1e6)


def test_predictions_and_hyper_parameters_are_shown_as_text(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = TrainerArgs(
        model_path=str(tmp_path), iters=2, batch_size=2, valid_interval=1, save_best=True, show_valid_examples=3
    )
    examples = lambda batch, output: [str(row.tolist()) for row in batch["input_ids"]]  # noqa: E731
    make_trainer(args, examples_fn=examples).train()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    valid = TinyData(size=11, seed=1)
    shown = [row["texts"] for row in rows if row["split"] == "examples"]
    assert shown == 2 * [[str(valid[i]["input_ids"].tolist()) for i in range(3)]]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert "examples/valid/text_summary" in tags["tensors"] and "best/loss" in tags["scalars"]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_background_saves_hold_the_state_of_their_update(tmp_path):
    for name, is_async in (("now", False), ("later", True)):
        args = TrainerArgs(
            model_path=str(tmp_path / name), iters=6, batch_size=2, save_interval=1, keep_checkpoints=9,
            async_save=is_async, lr_scheduler="linear",
        )  # fmt: skip
        make_trainer(args, dropout=0.1).train()
    for update in range(1, 7):
        now, later = (checkpoint.step_folder(tmp_path / name, update) for name in ("now", "later"))
        assert checkpoint.problem_of(later) is None
        for file in ("model.safetensors", "trainer_state.json"):
            assert (now / file).read_bytes() == (later / file).read_bytes()
        states = [torch.load(folder / "optimizer.pt", weights_only=True) for folder in (now, later)]
        assert repr(states[0]) == repr(states[1])
