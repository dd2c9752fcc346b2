"""Each option of the Trainer of earlier `lm_experiments_tools`, by its effect; the last test tests these tests."""

import inspect
import json
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file
from tiny_task import TinyData, TinyModel, collate, make_trainer

from lm_experiments_tools import checkpoint
from lm_experiments_tools.args import OptimizerArgs, TrainerArgs
from lm_experiments_tools.callbacks import Callback
from lm_experiments_tools.optim import make_optimizer
from lm_experiments_tools.trainer import Trainer

UPSTREAM = """
model_path log_interval valid_interval save_interval save_best use_generate_on_valid init_checkpoint skip_used_data
reset_lr reset_iteration reset_optimizer lr batch_size iters gradient_accumulation_steps clip_grad_norm clip_grad_value
early_stopping_patience lr_scheduler num_warmup_steps num_training_steps use_lr_drop lr_drop_factor lr_drop_patience
lr_drop_threshold lr_drop_threshold_mode lr_drop_cooldown lr_drop_min_lr lr_drop_eps optimize_metric optimize_mode
""".split()


def covers(option):
    """The test fails where this option has no effect: the last test sees to it."""

    def mark(test):
        test.option = option
        return test

    return mark


def train(run, **options):
    return make_trainer(TrainerArgs(model_path=str(run), iters=5, batch_size=2, **options)).train()


def logged(run, split):
    """Updates that have a row of this split in the log."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["update"] for row in rows if row["split"] == split]


def checkpoints(run):
    return [int(folder.name.removeprefix("step-")) for folder in checkpoint.step_folders(run)]


def scripted(**values):
    """Options of a Trainer whose validations give these metrics, one value after the other."""
    values = {name: iter(each) for name, each in values.items()}
    return {
        "keep_for_metrics_fn": lambda batch, output: {},
        "metrics_fn": lambda kept: {name: next(each) for name, each in values.items()},
    }


def scripted_run(run, score, other=None, **options):
    """A run with one validation an update."""
    defaults = dict(model_path=str(run), iters=len(score), batch_size=2, valid_interval=1, save_best=True,
                    optimize_metric="score", optimize_mode="max")  # fmt: skip
    return make_trainer(TrainerArgs(**(defaults | options)), **scripted(score=score, other=other or score)).train()


def rates(score=(), **options):
    """The learning rate of each update; `score`: of the validations."""
    trainer, used = make_trainer(TrainerArgs(batch_size=2, lr=1.0, **options), **scripted(score=score)), []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    trainer.train()
    return [round(rate, 9) for rate in used]


def gradients(**options):
    """All gradients of the first update, behind one another."""
    trainer, seen = make_trainer(TrainerArgs(iters=1, batch_size=4, gradient_accumulation_steps=2, **options)), []
    parameters = list(trainer.model.parameters())
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.extend(each.grad.flatten() for each in parameters))
    trainer.train()
    return torch.cat(seen)


def batches(**options):
    """Inputs of every micro-batch of a training, and the Trainer."""
    args, seen = TrainerArgs(**options), []
    trainer = make_trainer(args, batch_transform_fn=lambda batch: seen.append(batch["input_ids"]) or batch)
    trainer.train()
    return seen, trainer


@covers("model_path")
def test_all_files_of_a_run_are_in_its_folder_and_without_one_there_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_trainer(TrainerArgs(iters=1, log_interval=1)).train()
    assert list(tmp_path.iterdir()) == []
    make_trainer(TrainerArgs(iters=1, log_interval=1, model_path="run")).train()
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    assert {"checkpoints", "log.jsonl", "tensorboard"} <= {path.name for path in (tmp_path / "run").iterdir()}


@covers("log_interval")
def test_training_is_logged_every_log_interval_updates_and_at_the_end(tmp_path):
    train(tmp_path / "a", log_interval=2)
    train(tmp_path / "b")
    assert logged(tmp_path / "a", "train") == [2, 4, 5] and logged(tmp_path / "b", "train") == []


@covers("valid_interval")
def test_validation_is_every_valid_interval_updates_and_at_the_end(tmp_path):
    train(tmp_path / "a", valid_interval=2)
    train(tmp_path / "b")
    assert logged(tmp_path / "a", "valid") == [2, 4, 5] and logged(tmp_path / "b", "valid") == []


@covers("save_interval")
def test_a_checkpoint_is_written_every_save_interval_updates_and_at_the_end(tmp_path):
    train(tmp_path / "a", save_interval=2, keep_checkpoints=9)
    train(tmp_path / "b", keep_checkpoints=9)
    assert checkpoints(tmp_path / "a") == [2, 4, 5] and checkpoints(tmp_path / "b") == [5]


@covers("save_best")
def test_best_is_the_checkpoint_of_the_best_validation(tmp_path):
    progress = scripted_run(tmp_path, [0.1, 0.7, 0.3, 0.7, 0.2])
    assert (progress.best_metric, progress.best_update, progress.patience) == (0.7, 2, 3)
    assert (tmp_path / "best").resolve() == checkpoint.step_folder(tmp_path, 2).resolve()
    assert load_file(tmp_path / "best" / "model.safetensors").keys() == TinyModel().state_dict().keys()
    scripted_run(tmp_path / "none", [0.1, 0.7, 0.3], save_best=False)
    assert checkpoints(tmp_path / "none") == [3] and not (tmp_path / "none" / "best").exists()


def test_a_nan_metric_is_never_best(tmp_path):
    assert scripted_run(tmp_path, [float("nan"), 0.2, float("nan")]).best_update == 2


def test_old_checkpoints_are_pruned_but_never_the_best(tmp_path):
    scripted_run(tmp_path, [0.1, 0.9, 0.3, 0.2, 0.1, 0.1], save_interval=1, keep_checkpoints=2)
    assert checkpoints(tmp_path) == [2, 5, 6]


def test_resuming_keeps_best_metric_and_patience(tmp_path):
    scripted_run(tmp_path, [0.9, 0.1, 0.2], save_interval=1)
    state = json.loads((checkpoint.step_folder(tmp_path, 3) / "trainer_state.json").read_text())
    assert state["best_metric"] == 0.9 and state["patience"] == 2
    (checkpoint.step_folder(tmp_path, 3) / "manifest.json").unlink()  # resume from update 2
    progress = scripted_run(tmp_path, [0.5], save_interval=1, iters=3)
    assert progress.best_metric == 0.9 and progress.patience == 2
    assert (tmp_path / "best").resolve() == checkpoint.step_folder(tmp_path, 1).resolve()


@covers("use_generate_on_valid")
def test_validation_generates_for_the_metrics_where_asked_and_training_never(tmp_path):
    def generated(**options):
        seen = []
        trainer = make_trainer(
            TrainerArgs(iters=2, batch_size=2, valid_interval=1, valid_batch_size=11, **options),
            generate_inputs_fn=lambda batch: {"input_ids": batch["input_ids"][:, :4]},
            generate_kwargs={"more": 3},
            batch_metrics_fn=lambda batch, output: seen.append(output.get("generation_outputs")) or {},
        )
        trainer.model.generate = lambda input_ids, more: input_ids.repeat(1, more)
        trainer.train()
        return [ids if ids is None else tuple(ids.shape) for ids in seen]

    assert generated(use_generate_on_valid=True) == [None, (11, 12), None, (11, 12)]
    assert generated() == [None] * 4


class Beginning(Callback):
    """Remembers where a run began."""

    def on_train_begin(self, trainer):
        group = trainer.optimizer.param_groups[0]
        self.place = trainer.progress.update, trainer.progress.samples, group["lr"], len(trainer.optimizer.state)
        self.weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


PARAMETERS = len(list(TinyModel().parameters()))


@pytest.fixture
def source(tmp_path):
    """Checkpoint of another run: 3 updates with 2 samples and rate 0.1."""
    make_trainer(TrainerArgs(model_path=str(tmp_path / "source"), iters=3, batch_size=2, lr=0.1)).train()
    return checkpoint.step_folder(tmp_path / "source", 3)


def begin(source, **options):
    """Where a run with rate 0.5 begins that starts from this checkpoint."""
    beginning = Beginning()
    args = TrainerArgs(iters=4, batch_size=2, lr=0.5, init_checkpoint=str(source), **options)
    make_trainer(args, callbacks=[beginning]).train()
    return beginning


@covers("init_checkpoint")
def test_init_checkpoint_starts_from_weights_optimizer_rate_and_update_of_another_run(source):
    beginning = begin(source)
    assert beginning.place == (3, 0, 0.1, PARAMETERS)
    for name, weight in load_file(source / "model.safetensors").items():
        assert torch.equal(beginning.weights[name], weight), name


@covers("reset_iteration")
def test_reset_iteration_counts_from_0(source):
    assert begin(source, reset_iteration=True).place == (0, 0, 0.1, PARAMETERS)


@covers("reset_optimizer")
def test_reset_optimizer_takes_no_moments(source):
    assert begin(source, reset_optimizer=True).place == (3, 0, 0.5, 0)


@covers("reset_lr")
def test_reset_lr_takes_neither_rate_nor_schedule(source, tmp_path):
    assert begin(source, reset_lr=True).place == (3, 0, 0.5, PARAMETERS)
    assert train(tmp_path, lr_scheduler="linear").update == 5
    options = dict(init_checkpoint=str(checkpoint.step_folder(tmp_path, 5)), reset_lr=True, reset_iteration=True)
    assert rates(iters=4, lr_scheduler="linear", **options) == [1, 0.75, 0.5, 0.25]


@covers("skip_used_data")
def test_skip_used_data_goes_on_behind_the_samples_of_the_checkpoint(source):
    whole, _ = batches(iters=4, batch_size=2)
    again, _ = batches(iters=4, batch_size=2, init_checkpoint=str(source))
    behind, _ = batches(iters=4, batch_size=2, init_checkpoint=str(source), skip_used_data=True)
    assert len(again) == len(behind) == 1
    assert torch.equal(again[0], whole[0]) and torch.equal(behind[0], whole[3])
    assert begin(source, skip_used_data=True).place == (3, 6, 0.1, PARAMETERS)


@covers("lr")
def test_an_update_is_as_long_as_lr_says_or_the_optimizer_itself():
    def update(lr):
        torch.manual_seed(0)
        model, args = TinyModel(), TrainerArgs(iters=1, batch_size=4, lr=lr)
        before = model.head.weight.detach().clone()
        optimizer = make_optimizer(model.parameters(), OptimizerArgs(optimizer="SGD"), args.lr)
        Trainer(args, model, optimizer, TinyData(), collate_fn=collate).train()
        return model.head.weight.detach() - before

    torch.testing.assert_close(update(2.0), 2 * update(1.0))
    torch.testing.assert_close(update(None), 1e-3 * update(1.0), atol=1e-6, rtol=0)


@covers("batch_size")
def test_a_micro_batch_has_batch_size_samples():
    seen, trainer = batches(iters=2, batch_size=3)
    assert [len(batch) for batch in seen] == [3, 3] and trainer.progress.samples == 6


@covers("gradient_accumulation_steps")
def test_an_update_has_as_many_micro_batches_as_accumulate():
    seen, trainer = batches(iters=2, batch_size=3, gradient_accumulation_steps=4)
    assert [len(batch) for batch in seen] == [3] * 8 and trainer.progress.samples == 24
    assert all(state["step"] == 2 for state in trainer.optimizer.state.values())


@covers("iters")
def test_exactly_iters_updates_are_made():
    trainer = make_trainer(TrainerArgs(iters=7, batch_size=2, gradient_accumulation_steps=3))
    progress = trainer.train()
    assert progress.update == 7 and progress.samples == 7 * 6
    assert all(state["step"] == 7 for state in trainer.optimizer.state.values())


@covers("clip_grad_norm")
def test_clip_grad_norm_bounds_the_norm_of_the_whole_update_and_keeps_its_direction():
    whole, clipped = gradients(), gradients(clip_grad_norm=1e-3)
    torch.testing.assert_close(clipped, whole * (1e-3 / whole.norm()), rtol=1e-3, atol=0)
    assert torch.equal(gradients(clip_grad_norm=100.0), whole)


@covers("clip_grad_value")
def test_clip_grad_value_bounds_every_gradient_of_the_whole_update():
    whole = gradients()
    assert torch.equal(gradients(clip_grad_value=1e-2), whole.clamp(-1e-2, 1e-2))


@covers("early_stopping_patience")
def test_a_run_stops_after_early_stopping_patience_validations_without_improvement(tmp_path):
    values = [0.5, 0.4, 0.6, 0.3, 0.2, 0.1]
    progress = scripted_run(tmp_path / "a", values, early_stopping_patience=2)
    assert progress.update == 5 and "no better score in 2" in progress.stop_reason
    assert scripted_run(tmp_path / "b", values, early_stopping_patience=4).update == 6


def test_a_run_stops_at_the_desired_metric(tmp_path):
    progress = scripted_run(tmp_path / "a", [0.5, 0.95, 0.3], desired_metric=0.9)
    assert progress.update == 2 and "desired_metric" in progress.stop_reason
    assert scripted_run(tmp_path / "b", [3.0, 1.0, 2.0], optimize_mode="min", desired_metric=1.5).update == 2


@covers("lr_scheduler")
def test_the_schedule_is_that_of_its_name():
    assert rates(iters=4) == rates(iters=4, lr_scheduler="constant") == [1, 1, 1, 1]
    assert rates(iters=4, lr_scheduler="linear") == [1, 0.75, 0.5, 0.25]
    assert rates(iters=3, lr_scheduler="cosine") == [1, 0.75, 0.25]


@covers("num_warmup_steps")
def test_the_rate_warms_up_for_num_warmup_steps():
    assert rates(iters=4, lr_scheduler="constant_with_warmup", num_warmup_steps=2) == [0, 0.5, 1, 1]
    assert rates(iters=4, lr_scheduler="linear", num_warmup_steps=2) == [0, 0.5, 1, 0.5]


@covers("num_training_steps")
def test_the_schedule_spans_num_training_steps():
    assert rates(iters=4, lr_scheduler="linear", num_training_steps=8) == [1, 0.875, 0.75, 0.625]


FLAT = [0.5] * 6


def drops(score, **options):
    """Rates with a validation behind every update; the last validation shows in no rate any more."""
    defaults = dict(use_lr_drop=True, lr_drop_patience=0, lr_drop_factor=0.5, optimize_mode="max")
    return rates(score, iters=len(score), valid_interval=1, optimize_metric="score", **(defaults | options))


@covers("use_lr_drop")
def test_the_rate_drops_on_a_plateau_only_with_use_lr_drop():
    assert drops(FLAT) == [1, 1, 0.5, 0.25, 0.125, 0.0625]
    assert drops(FLAT, use_lr_drop=False) == [1] * 6
    assert drops([0.1, 0.2, 0.3, 0.4]) == [1] * 4


def test_the_rate_drops_on_a_plateau_beside_a_schedule():
    assert drops(FLAT, lr_scheduler="constant") == [1, 1, 0.5, 0.25, 0.125, 0.0625]
    assert drops(FLAT[:4], lr_scheduler="linear") == [1, 0.75, 0.5 * 0.5, 0.25 * 0.25]


@covers("lr_drop_factor")
def test_a_drop_multiplies_the_rate_by_lr_drop_factor():
    assert drops(FLAT[:4], lr_drop_factor=0.2) == [1, 1, 0.2, 0.04]


@covers("lr_drop_patience")
def test_a_drop_waits_for_lr_drop_patience_validations_without_improvement():
    assert drops(FLAT, lr_drop_patience=1) == [1, 1, 1, 0.5, 0.5, 0.25]


@covers("lr_drop_threshold")
def test_less_than_lr_drop_threshold_is_no_improvement():
    assert drops([1.0, 1.05, 1.2, 1.2], lr_drop_threshold=0.1) == [1, 1, 0.5, 0.5]
    assert drops([1.0, 1.05, 1.2, 1.2], lr_drop_threshold=0.01) == [1, 1, 1, 1]


@covers("lr_drop_threshold_mode")
def test_lr_drop_threshold_is_relative_or_absolute():
    assert drops([10.0, 10.5, 11.0], lr_drop_threshold=0.1, lr_drop_threshold_mode="rel") == [1, 1, 0.5]
    assert drops([10.0, 10.5, 11.0], lr_drop_threshold=0.1, lr_drop_threshold_mode="abs") == [1, 1, 1]


@covers("lr_drop_cooldown")
def test_the_rate_rests_for_lr_drop_cooldown_validations_after_a_drop():
    assert drops(FLAT, lr_drop_cooldown=2) == [1, 1, 0.5, 0.5, 0.5, 0.25]


@covers("lr_drop_min_lr")
def test_the_rate_does_not_drop_below_lr_drop_min_lr():
    assert drops(FLAT, lr_drop_min_lr=0.3) == [1, 1, 0.5, 0.3, 0.3, 0.3]


@covers("lr_drop_eps")
def test_a_drop_by_less_than_lr_drop_eps_is_left_out():
    assert drops(FLAT, lr_drop_eps=0.2) == [1, 1, 0.5, 0.25, 0.25, 0.25]


@covers("optimize_metric")
def test_optimize_metric_decides_what_is_best(tmp_path):
    metrics = dict(score=[0.1, 0.7, 0.3], other=[0.9, 0.1, 0.2])
    assert scripted_run(tmp_path / "a", **metrics).best_update == 2
    assert scripted_run(tmp_path / "b", **metrics, optimize_metric="other").best_update == 1


@covers("optimize_mode")
def test_optimize_mode_decides_what_is_best_and_when_the_rate_drops(tmp_path):
    values = [0.3, 0.1, 0.7]
    assert scripted_run(tmp_path / "a", values, optimize_mode="min").best_update == 2
    assert scripted_run(tmp_path / "b", values, optimize_mode="max").best_update == 3
    assert drops([0.1, 0.2, 0.3], optimize_mode="max") == [1, 1, 1]
    assert drops([0.1, 0.2, 0.3], optimize_mode="min") == [1, 1, 0.5]


@pytest.mark.parametrize("option", UPSTREAM)
def test_every_option_of_upstream_has_a_test_that_fails_where_it_has_no_effect(option, request):
    (default,) = [field.default for field in fields(TrainerArgs) if field.name == option]
    tests = [test for name, test in globals().items() if name.startswith("test_")]
    (test,) = [test for test in tests if getattr(test, "option", None) == option]
    fixtures = {name: request.getfixturevalue(name) for name in inspect.signature(test).parameters}

    def without_effect(args, check=TrainerArgs.__post_init__):
        check(args)
        setattr(args, option, default)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(TrainerArgs, "__post_init__", without_effect)
        test(**fixtures)
