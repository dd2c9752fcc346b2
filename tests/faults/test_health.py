"""Gradients that are not finite, too little memory, another number of ranks, another engine."""

import json

import pytest
from processes import completed, finish, result, start
from safetensors.torch import load_file

from lm_experiments_tools import checkpoint
from lm_experiments_tools.status import read_status


def rows_of(run, split="train"):
    return [row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if row["split"] == split]


NOT_FINITE = pytest.mark.case(15, "NaN on one rank: skipped on all and counted; too many in a row fail")


@NOT_FINITE
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


@NOT_FINITE
def test_too_many_skipped_updates_in_a_row_fail_and_name_their_samples(tmp_path):
    code, output = finish(start(tmp_path, fault="nan 0 9 10 11", max_skipped_updates=3))
    assert code == 1 and "not finite in 3 updates in a row, up to update 11" in output
    status = read_status(tmp_path)
    assert status["status"] == "failed" and status["rank"] == 0 and "NotFinite" in status["reason"]
    samples = json.loads((tmp_path / "not-finite-00000011.json").read_text())
    assert len(samples) == 4 and samples[0].keys() == {"epoch", "index"}
    weights = load_file(checkpoint.newest_checkpoint(tmp_path) / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


OTHER_RANKS = pytest.mark.case(16, "other ranks or another engine: the same samples; another batch is refused")


@OTHER_RANKS
@pytest.mark.parametrize(
    "engines", [("single", "ddp"), ("single", "fsdp"), ("fsdp", "single"), ("ddp", "fsdp")], ids=" to ".join
)
def test_another_number_of_ranks_and_another_engine_go_on_with_the_same_samples(tmp_path, uninterrupted, engines):
    options = dict(clip_grad_norm=None)  # with it, the task has dropout, which is drawn by rank
    for engine, fault in zip(engines, ("stop-after 13 1", None)):
        ranks = 1 if engine == "single" else 2
        code, output = finish(
            start(tmp_path, ranks, fault, engine=engine, gradient_accumulation_steps=2 // ranks, **options)
        )
    assert code == 0 and "resumed from" in output, output
    found, expected = result(tmp_path)["rows"], uninterrupted(**options)["rows"]
    assert [row["samples"] for row in found] == [row["samples"] for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.case(26, "out of memory: sizes and what to lower; --auto_micro_batch halves the micro-batch on all ranks")
@pytest.mark.parametrize("engine, ranks", [("single", 1), ("ddp", 2), ("fsdp", 2)])
def test_too_little_memory_halves_the_micro_batch_on_all_ranks(tmp_path, uninterrupted, engine, ranks):
    options = dict(clip_grad_norm=None, batch_size=8 // ranks, gradient_accumulation_steps=1)
    fault = f"out-of-memory 2 {ranks - 1}"
    code, output = finish(start(tmp_path, ranks, fault, auto_micro_batch=True, engine=engine, **options))
    assert code == 0 and output.count("from now on micro-batches have 2 samples") == 1, output
    found, expected = result(tmp_path), uninterrupted(**options | {"batch_size": 8})
    assert json.loads(found["progress"])["splits"] == 4 // ranks
    for mine, theirs in zip(found["rows"], expected["rows"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.case(26, "out of memory: sizes and what to lower; --auto_micro_batch halves the micro-batch on all ranks")
def test_out_of_memory_tells_the_sizes_and_what_to_lower(tmp_path):
    for options in ({}, {"auto_micro_batch": True}):
        code, output = finish(start(tmp_path, fault="out-of-memory 0", **options))
        message = output[output.index("error: ") :]
        size = 1 if options else 2
        assert code == 2 and message.startswith("error: out of memory at update 1"), output
        assert f"micro-batch of {size} x 6 tokens" in message and "lower batch_size" in message


@OTHER_RANKS
def test_another_number_of_samples_an_update_is_refused_unless_asked_for(tmp_path):
    completed(tmp_path, iters=7)
    code, output = finish(start(tmp_path, iters=9, batch_size=3))
    assert code == 2 and "4 samples an update, now there would be 6" in output
    code, output = finish(start(tmp_path, iters=9, batch_size=3, allow_batch_change=True))
    assert code == 0, output
    assert [row["samples"] for row in rows_of(tmp_path)][-2:] == [28 + 6, 28 + 12]
