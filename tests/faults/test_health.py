"""Gradients that are not finite, a disk that is full, another number of ranks."""

import json

import pytest
from processes import UPDATES, assert_same, finish, result, start, wait_for_update
from safetensors.torch import load_file

from lm_experiments_tools import checkpoint
from lm_experiments_tools.preemption import EXIT_CODE
from lm_experiments_tools.status import read_status


def rows_of(run, split="train"):
    return [row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if row["split"] == split]


@pytest.mark.parametrize("ranks, rank", [(1, 0), (2, 1)])
def test_an_update_with_nan_on_one_rank_is_skipped_on_all_and_recorded(tmp_path, ranks, rank):
    settling = 1 if ranks > 1 else 0  # two throw-away passes are one update's worth of calls
    updates = [3 + settling, 4 + settling]
    code, output = finish(start(tmp_path, ranks, fault=f"nan {rank} {updates[0]} {updates[1]}"))
    assert code == 0, output
    rows = rows_of(tmp_path)
    assert [row["update"] for row in rows if row["gradient_norm"] == "nan"] == [3, 4]
    assert [row["update"] for row in rows if row["loss"] == "nan"] == [3, 4]
    assert rows[-1]["skipped_updates"] == 2 and "skipped_updates" not in rows[1]
    assert all(isinstance(row["loss"], float) for row in rows[4:]), "the weights stayed finite"
    assert read_status(tmp_path)["status"] == "done"


def test_too_many_skipped_updates_in_a_row_fail_and_name_their_samples(tmp_path):
    code, output = finish(start(tmp_path, fault="nan 0 9 10 11", max_skipped_updates=3))
    assert code == 1 and "not finite in 3 updates in a row, up to update 11" in output
    status = read_status(tmp_path)
    assert status["status"] == "failed" and status["rank"] == 0 and "NotFinite" in status["reason"]
    samples = json.loads((tmp_path / "not-finite-00000011.json").read_text())
    assert len(samples) == 4 and samples[0].keys() == {"epoch", "index"}
    weights = load_file(checkpoint.newest_checkpoint(tmp_path) / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_training_goes_on_when_a_checkpoint_cannot_be_written(tmp_path, uninterrupted):
    code, output = finish(start(tmp_path, fault="no-space 7 14"))
    assert code == 0 and f"{checkpoint.step_folder(tmp_path, 7)} could not be written" in output
    assert "bytes free" in output and not list((tmp_path / "checkpoints").glob("*.tmp"))
    found, expected = result(tmp_path), uninterrupted(1)
    assert found["weights"] == expected["weights"] and found["rows"] == expected["rows"]


def test_when_the_last_checkpoint_cannot_be_written_the_exit_code_tells(tmp_path, uninterrupted):
    code, output = finish(start(tmp_path, fault=f"no-space 30 {UPDATES}"))
    assert code == 1 and read_status(tmp_path)["status"] == "failed", output
    newest = checkpoint.newest_checkpoint(tmp_path)
    assert int(newest.name[5:]) < 30 and checkpoint.problem_of(newest) is None
    code, output = finish(start(tmp_path))
    assert code == 0, output
    assert_same(tmp_path, uninterrupted(1))


def test_another_number_of_ranks_goes_on_with_the_same_samples(tmp_path):
    options = dict(clip_grad_norm=None)  # with it, the task has dropout, which is drawn by rank
    assert finish(start(tmp_path / "one", **options))[0] == 0
    process = start(tmp_path / "other", **options)
    wait_for_update(tmp_path / "other", 12)
    process.terminate()
    assert finish(process)[0] == EXIT_CODE
    code, output = finish(start(tmp_path / "other", ranks=2, gradient_accumulation_steps=1, **options))
    assert code == 0 and "resumed from" in output
    found, expected = (result(tmp_path / name)["rows"] for name in ("other", "one"))
    assert [row["samples"] for row in found] == [row["samples"] for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_another_number_of_samples_an_update_is_refused_unless_asked_for(tmp_path):
    code, _ = finish(start(tmp_path, iters=7))
    assert code == 0
    state = checkpoint.step_folder(tmp_path, 7) / "trainer_state.json"
    unfinished = json.loads(state.read_text()) | {"stop_reason": None}
    state.write_text(json.dumps(unfinished))
    manifest = state.with_name("manifest.json")
    files = json.loads(manifest.read_text()) | {"trainer_state.json": checkpoint._fingerprint(state)}
    manifest.write_text(json.dumps(files))
    code, output = finish(start(tmp_path, iters=9, batch_size=3))
    assert code == 2 and "4 samples an update, now there would be 6" in output
    code, output = finish(start(tmp_path, iters=9, batch_size=3, allow_batch_change=True))
    assert code == 0, output
    assert [row["samples"] for row in rows_of(tmp_path)][-2:] == [28 + 6, 28 + 12]
