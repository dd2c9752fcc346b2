"""The Trainer: the same gradients however a batch is cut, exact resume, best checkpoint, stopping, options."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from processes import TIMINGS, finish, launch, wait_for_update
from tiny_task import TinyData, TinyModel, collate, make_trainer
from torch import nn

from lm_experiments_tools import checkpoint, training_state
from lm_experiments_tools.args import OptimizerArgs, TrainerArgs
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.optim import make_optimizer
from lm_experiments_tools.trainer import Trainer, num_labels

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


class Scripted:
    """Replaces validation by a list of values."""

    def __init__(self, trainer, values):
        self.trainer, self.values = trainer, iter(values)

    def __call__(self, dataset=None, split="valid"):
        return {"score": next(self.values)}


def scripted_run(tmp_path, values, **options):
    defaults = dict(model_path=str(tmp_path), iters=len(values), batch_size=2, valid_interval=1, save_best=True,
                    optimize_metric="score", optimize_mode="max")  # fmt: skip
    trainer = make_trainer(TrainerArgs(**(defaults | options)))
    trainer.validate = Scripted(trainer, values)
    return trainer.train()


def test_best_is_the_checkpoint_of_the_best_validation(tmp_path):
    progress = scripted_run(tmp_path, [0.1, 0.7, 0.3, 0.7, 0.2])
    assert (progress.best_metric, progress.best_update, progress.patience) == (0.7, 2, 3)
    assert (tmp_path / "best").resolve() == checkpoint.step_folder(tmp_path, 2).resolve()
    assert weights(tmp_path / "best").keys() == TinyModel().state_dict().keys()


def test_a_nan_metric_is_never_best(tmp_path):
    assert scripted_run(tmp_path, [float("nan"), 0.2, float("nan")]).best_update == 2


def test_early_stopping_and_desired_metric_end_a_run(tmp_path):
    progress = scripted_run(tmp_path / "a", [0.5, 0.4, 0.3, 0.2, 0.1], early_stopping_patience=2)
    assert progress.update == 3 and "no better score in 2" in progress.stop_reason
    progress = scripted_run(tmp_path / "b", [0.5, 0.95, 0.3], desired_metric=0.9)
    assert progress.update == 2 and "desired_metric" in progress.stop_reason
    progress = scripted_run(tmp_path / "c", [3.0, 1.0, 2.0], optimize_mode="min", desired_metric=1.5)
    assert progress.update == 2


def test_old_checkpoints_are_pruned_but_never_the_best(tmp_path):
    scripted_run(tmp_path, [0.1, 0.9, 0.3, 0.2, 0.1, 0.1], save_interval=1, keep_checkpoints=2)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000005", "step-00000006"]


def test_resuming_keeps_best_metric_and_patience(tmp_path):
    scripted_run(tmp_path, [0.9, 0.1, 0.2], save_interval=1)
    state = json.loads((checkpoint.step_folder(tmp_path, 3) / "trainer_state.json").read_text())
    assert state["best_metric"] == 0.9 and state["patience"] == 2
    (checkpoint.step_folder(tmp_path, 3) / "manifest.json").unlink()  # resume from update 2
    trainer = make_trainer(
        TrainerArgs(
            model_path=str(tmp_path),
            iters=3,
            batch_size=2,
            valid_interval=1,
            save_best=True,
            save_interval=1,
            optimize_metric="score",
            optimize_mode="max",
        )  # fmt: skip
    )
    trainer.validate = Scripted(trainer, [0.5])
    assert trainer.train().best_metric == 0.9
    assert (tmp_path / "best").resolve() == checkpoint.step_folder(tmp_path, 1).resolve()


def test_init_checkpoint_takes_what_is_not_reset(tmp_path):
    make_trainer(TrainerArgs(model_path=str(tmp_path / "a"), iters=3, batch_size=2, lr=0.1)).train()
    source = checkpoint.step_folder(tmp_path / "a", 3)

    def start(**options):
        args = TrainerArgs(iters=9, batch_size=2, lr=0.5, init_checkpoint=str(source), **options)
        trainer = make_trainer(args)
        training_state.restore(trainer)
        group = trainer.optimizer.param_groups[0]
        return trainer.progress.update, trainer.progress.samples, group["lr"], len(trainer.optimizer.state)

    states = len(list(TinyModel().parameters()))
    assert start() == (3, 0, 0.1, states)
    assert start(reset_iteration=True) == (0, 0, 0.1, states)
    assert start(skip_used_data=True) == (3, 6, 0.1, states)
    assert start(reset_lr=True) == (3, 0, 0.5, states)
    assert start(reset_optimizer=True) == (3, 0, 0.5, 0)


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


def test_exactly_iters_updates_are_made(tmp_path):
    trainer = make_trainer(TrainerArgs(iters=7, batch_size=2, gradient_accumulation_steps=3))
    progress = trainer.train()
    assert progress.update == 7 and progress.samples == 7 * 6
    assert all(state["step"] == 7 for state in trainer.optimizer.state.values())


def test_clipping_bounds_the_gradient_of_the_whole_update():
    for options, measure in (
        ({"clip_grad_norm": 1e-3}, lambda g: torch.cat([x.flatten() for x in g]).norm()),
        ({"clip_grad_value": 1e-4}, lambda g: max(x.abs().max() for x in g)),
    ):
        trainer = make_trainer(TrainerArgs(iters=1, batch_size=4, gradient_accumulation_steps=2, **options))
        seen, step = [], trainer.optimizer.step

        def remember(trainer=trainer, seen=seen, step=step):
            seen.extend(parameter.grad.clone() for parameter in trainer.model.parameters())
            step()

        trainer.optimizer.step = remember
        trainer.train()
        assert measure(seen) == pytest.approx(next(iter(options.values())), rel=1e-3)


def test_the_rate_drops_on_a_plateau_beside_a_schedule(tmp_path):
    trainer = make_trainer(
        TrainerArgs(
            iters=5,
            batch_size=2,
            lr=0.1,
            valid_interval=1,
            use_lr_drop=True,
            lr_drop_patience=1,
            lr_drop_factor=0.5,
            lr_scheduler="constant",
            optimize_metric="score",
            optimize_mode="max",
        )  # fmt: skip
    )
    trainer.validate = Scripted(trainer, [0.5, 0.4, 0.4, 0.4, 0.4])
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)


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
