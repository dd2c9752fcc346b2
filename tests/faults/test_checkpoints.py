"""Checkpoints that are broken, half-written or full: the one before is used, and the run ends the same."""

import json
import shutil
import signal

import pytest
from processes import UPDATES, assert_same, completed, finish, result, start

from lm_experiments_tools import checkpoint
from lm_experiments_tools.checkpoint import step_folder, step_folders
from lm_experiments_tools.preemption import EXIT_CODE
from lm_experiments_tools.status import read_status


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped at update 13, with checkpoints of updates 5, 7, 10 and 13."""
    run = tmp_path_factory.mktemp("stopped")
    code, output = finish(start(run, fault="stop-after 13 2", keep_checkpoints=9))
    assert code == EXIT_CODE, output
    assert [folder.name[-2:] for folder in step_folders(run)] == ["05", "07", "10", "13"]
    return run


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of `stopped`."""
    shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.mark.case(1, "SIGKILL in a save leaves only what the next start removes; same end")
@pytest.mark.parametrize("place", ["first-file", "manifest", "rename"])
@pytest.mark.parametrize("is_async", [False, True], ids=["at once", "background"])
def test_a_kill_in_a_save_leaves_the_checkpoint_before(tmp_path, uninterrupted, place, is_async):
    code, output = finish(start(tmp_path, fault=f"die {place} 14", async_save=is_async))
    assert code == -signal.SIGKILL, output
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.tmp")] == ["step-00000014.tmp"]
    assert not step_folder(tmp_path, 14).exists()
    before = step_folders(tmp_path)[-1]
    assert f"resumed from {before}" in completed(tmp_path, async_save=is_async)
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))
    assert_same(tmp_path, uninterrupted())


def cut(size):
    def damage(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * size) if size < 1 else -size])

    return damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    "damage, name",
    [
        pytest.param(cut(0), "model.safetensors", marks=pytest.mark.case(3, "a file cut: the one before; same end")),
        pytest.param(cut(0.5), "optimizer.pt", marks=pytest.mark.case(3, "a file cut: the one before; same end")),
        pytest.param(cut(1), "ranks.pt", marks=pytest.mark.case(3, "a file cut: the one before; same end")),
        pytest.param(flip, "model.safetensors", marks=pytest.mark.case(4, "one bit flipped: likewise")),
        pytest.param(remove, "optimizer.pt", marks=pytest.mark.case(6, "a file missing: likewise")),
        pytest.param(remove, "ranks.pt", marks=pytest.mark.case(6, "a file missing: likewise")),
    ],
)
def test_a_damaged_newest_checkpoint_is_put_aside_for_the_one_before(run, uninterrupted, damage, name):
    newest = step_folder(run, 13)
    damage(newest / name)
    output = completed(run)
    assert output.count(f"{newest} is broken ({name}") == 1 and f"resumed from {step_folder(run, 10)}" in output
    assert (run / "checkpoints" / "step-00000013.bad").is_dir()
    assert_same(run, uninterrupted())


@pytest.mark.case(5, "all checkpoints broken: an error with every reason, no new beginning")
def test_a_run_without_a_whole_checkpoint_is_not_begun_again(run):
    log = (run / "log.jsonl").read_bytes()
    folders = step_folders(run)
    for folder in folders:
        flip(folder / "ranks.pt")
    code, output = finish(start(run))
    assert code == 1 and "no checkpoint can be used" in output, output
    for folder in folders:
        assert f"{folder}: ranks.pt differs from the manifest" in output
    assert (run / "log.jsonl").read_bytes() == log and not step_folders(run)


@pytest.mark.case(7, "a save into an existing step is refused before any byte")
def test_a_checkpoint_is_never_overwritten(run):
    folder = step_folder(run, 10)
    before = (folder / "manifest.json").read_text()
    with pytest.raises(FileExistsError, match="never overwritten"):
        checkpoint.write_folder(folder, lambda path: (path / "new").touch())
    assert checkpoint.problem_of(folder) is None and (folder / "manifest.json").read_text() == before
    assert not list((run / "checkpoints").glob("*.tmp"))


@pytest.mark.case(2, "disk full: path and free bytes are told, training goes on, the exit code tells")
@pytest.mark.parametrize("is_async", [False, True], ids=["at once", "background"])
def test_training_goes_on_when_a_checkpoint_cannot_be_written(tmp_path, uninterrupted, is_async):
    code, output = finish(start(tmp_path, fault="no-space 7 14", async_save=is_async))
    assert code == 0 and f"{step_folder(tmp_path, 7)} could not be written" in output, output
    assert "bytes free" in output and not list((tmp_path / "checkpoints").glob("*.tmp"))
    found, expected = result(tmp_path), uninterrupted()
    assert found["weights"] == expected["weights"] and found["rows"] == expected["rows"]


@pytest.mark.case(2, "disk full: path and free bytes are told, training goes on, the exit code tells")
def test_when_the_last_checkpoint_cannot_be_written_the_exit_code_tells(tmp_path, uninterrupted):
    code, output = finish(start(tmp_path, fault=f"no-space 30 {UPDATES}"))
    assert code == 1 and read_status(tmp_path)["status"] == "failed", output
    newest = checkpoint.newest_checkpoint(tmp_path)
    assert int(newest.name[5:]) < 30 and checkpoint.problem_of(newest) is None
    completed(tmp_path)
    assert_same(tmp_path, uninterrupted())


@pytest.mark.case(2, "disk full: path and free bytes are told, training goes on, the exit code tells")
@pytest.mark.parametrize("is_async", [False, True], ids=["at once", "background"])
def test_parts_of_ranks_that_cannot_be_written_leave_nothing(tmp_path, is_async):
    options = dict(engine="fsdp", async_save=is_async)
    code, output = finish(start(tmp_path, 2, "no-space-for-parts 7", **options))
    assert code == 0 and "could not be written" in output, output
    assert output.count("training goes on") == 1
    assert not list((tmp_path / "checkpoints").glob("*.tmp*"))
    assert checkpoint.problem_of(step_folder(tmp_path, UPDATES)) is None


@pytest.mark.case(19, "a cut log line, rows behind the checkpoint: every update once")
def test_the_log_is_cut_back_to_the_checkpoint(run, uninterrupted):
    with open(run / "log.jsonl", "a") as log:
        log.write(json.dumps({"split": "train", "update": 14, "samples": 56, "loss": 9.9}) + "\n")
        log.write('{"split": "train", "update": 15, "lo')
    output = completed(run)
    assert "2 rows behind update 13 are cut" in output
    assert_same(run, uninterrupted())
    assert steps_in_tensorboard(run) == list(range(1, UPDATES + 1))


def steps_in_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("loss/iterations/train")]


@pytest.mark.case(18, "a save at the end of an epoch: the next begins with its own first sample")
def test_a_run_that_stops_at_the_end_of_an_epoch_goes_on_with_the_next(tmp_path, uninterrupted):
    options = dict(batch_size=37, gradient_accumulation_steps=1)  # an update is an epoch
    code, output = finish(start(tmp_path, fault="stop-after 13 1", **options))
    assert code == EXIT_CODE and read_status(tmp_path)["update"] == 13, output
    completed(tmp_path, **options)
    assert_same(tmp_path, uninterrupted(**options))
