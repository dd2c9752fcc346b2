"""Runs that are really stopped: what is left, and that the resumed run ends as the uninterrupted one."""

import os
import signal
import time
from pathlib import Path

import pytest
from processes import (
    UPDATES,
    assert_same,
    completed,
    finish,
    needs_horovod,
    ranks_of,
    result,
    start,
    wait_for_file,
    wait_for_update,
    wait_until_none_is_left,
)  # fmt: skip

from lm_experiments_tools import checkpoint
from lm_experiments_tools.preemption import ECHO, EXIT_CODE
from lm_experiments_tools.status import read_status

STOPPED = pytest.mark.case(8, "a signal: the update ends, all ranks stop there and save; same end")


@STOPPED
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_ends_the_update_saves_and_asks_to_be_started_again(tmp_path, uninterrupted, number):
    process = start(tmp_path)
    wait_for_update(tmp_path, 12)
    process.send_signal(number)
    began = time.monotonic()
    code, output = finish(process)
    assert time.monotonic() - began < 5 and code == EXIT_CODE, output
    status = read_status(tmp_path)
    assert status["status"] == "preempted" and number.name in status["reason"]
    assert checkpoint.newest_checkpoint(tmp_path) == checkpoint.step_folder(tmp_path, status["update"])
    code, output = finish(start(tmp_path))
    assert code == 0 and f"resumed from {checkpoint.step_folder(tmp_path, status['update'])}" in output
    assert read_status(tmp_path)["status"] == "done"
    assert_same(tmp_path, uninterrupted())


@STOPPED
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_to_all_processes_as_slurm_sends_it_lets_data_workers_finish(tmp_path, uninterrupted, number):
    process = start(tmp_path, data_n_workers=2)
    wait_for_update(tmp_path, 12)
    os.killpg(process.pid, number)
    code, output = finish(process)
    assert code == EXIT_CODE and read_status(tmp_path)["status"] == "preempted", output
    wait_until_none_is_left(tmp_path, 10)
    completed(tmp_path, data_n_workers=2)
    assert_same(tmp_path, uninterrupted())


def test_a_value_that_is_logged_rarely_is_whole_after_a_stop_between_two_logs(tmp_path):
    code, output = finish(start(tmp_path / "whole", log_interval=10))
    assert code == 0, output
    process = start(tmp_path / "stopped", log_interval=10, fault="stop-after 13 2")
    code, output = finish(process)
    assert code == EXIT_CODE and read_status(tmp_path / "stopped")["update"] == 13, output
    code, output = finish(start(tmp_path / "stopped", log_interval=10))
    assert code == 0, output
    assert_same(tmp_path / "stopped", result(tmp_path / "whole"))


@STOPPED
def test_a_signal_inside_a_validation_gives_it_up_and_the_resumed_run_makes_it(tmp_path, uninterrupted):
    process = start(tmp_path, fault="validations-wait")
    wait_for_file(tmp_path / "validating")
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == EXIT_CODE, output
    status = read_status(tmp_path)
    assert status == status | {"status": "preempted", "update": 5}
    assert checkpoint.newest_checkpoint(tmp_path) == checkpoint.step_folder(tmp_path, 5, is_pending=True)
    process = start(tmp_path)
    wait_for_update(tmp_path, 6)  # behind the validation, before the next regular checkpoint
    process.kill()
    finish(process)
    assert checkpoint.newest_checkpoint(tmp_path) == checkpoint.step_folder(tmp_path, 5)
    completed(tmp_path)
    assert_same(tmp_path, uninterrupted())


def test_a_second_signal_ends_the_process_at_once(tmp_path, uninterrupted):
    process = start(tmp_path, fault="updates-take 30")
    wait_for_file(tmp_path / "updating")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)  # an echo of the first
    time.sleep(ECHO)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, _ = finish(process, seconds=5)
    assert code == 128 + signal.SIGTERM and read_status(tmp_path)["status"] == "running"
    completed(tmp_path)
    assert_same(tmp_path, uninterrupted())


@STOPPED
def test_the_time_limit_saves_and_stops(tmp_path, uninterrupted):
    code, output = finish(start(tmp_path, max_hours=1e-9))
    assert code == EXIT_CODE and "max_hours 1e-09" in read_status(tmp_path)["reason"], output
    completed(tmp_path)
    assert_same(tmp_path, uninterrupted())


@pytest.mark.parametrize(
    "engine, ranks, whom, number",
    [
        pytest.param("ddp", 3, "launcher", signal.SIGTERM, marks=STOPPED),
        pytest.param("fsdp", 2, "launcher", signal.SIGTERM, marks=STOPPED),
        pytest.param("ddp", 2, "one rank", signal.SIGUSR1, marks=pytest.mark.case(10, "a signal to one rank alone")),
        pytest.param(
            "horovod", 2, "launcher", signal.SIGTERM,
            marks=[needs_horovod, pytest.mark.case(9, "SIGTERM under horovodrun, whether it saves in 5 s or not")],
        ),
        pytest.param("ddp", 2, "launcher", signal.SIGUSR1, marks=pytest.mark.case(11, "SIGUSR1, SIGKILL to torchrun")),
        pytest.param("fsdp", 2, "launcher", signal.SIGKILL, marks=pytest.mark.case(11, "SIGUSR1, SIGKILL to torchrun")),
    ],
)  # fmt: skip
def test_all_ranks_stop_at_the_same_update(tmp_path, uninterrupted, engine, ranks, whom, number):
    process = start(tmp_path, ranks, engine=engine)
    wait_for_update(tmp_path, 12)
    os.kill(process.pid if whom == "launcher" else ranks_of(tmp_path)[-1], number)
    code, output = finish(process)
    if engine != "horovod":  # whose launcher says 0
        assert code != 0  # torchrun says 1 for any of them: scripts read the status
    wait_until_none_is_left(tmp_path, 10)
    status = read_status(tmp_path)
    assert status["status"] == "preempted", output
    assert checkpoint.newest_checkpoint(tmp_path) == checkpoint.step_folder(tmp_path, status["update"])
    completed(tmp_path, ranks, engine=engine)
    assert_same(tmp_path, uninterrupted(ranks, engine=engine))


@needs_horovod
@pytest.mark.case(9, "SIGTERM under horovodrun, whether it saves in 5 s or not")
def test_under_horovodrun_a_save_that_takes_too_long_is_left_out(tmp_path, uninterrupted):
    options = dict(engine="horovod")
    process = start(tmp_path, 2, "saves-take 20", save_interval=None, valid_interval=40, **options)
    wait_for_update(tmp_path, 3)
    process.send_signal(signal.SIGTERM)
    finish(process)
    wait_until_none_is_left(tmp_path, 10)
    assert checkpoint.newest_checkpoint(tmp_path) is None and read_status(tmp_path)["status"] == "running"
    completed(tmp_path, 2, **options)
    assert_same(tmp_path, uninterrupted(2, **options))


@pytest.mark.case(10, "a signal to one rank alone")
def test_a_second_signal_to_one_rank_in_the_save_leaves_one_whole_checkpoint(tmp_path, uninterrupted):
    options = dict(save_interval=None, valid_interval=UPDATES)
    process = start(tmp_path, 2, "saves-take 4", **options)
    wait_for_update(tmp_path, 12)
    last = ranks_of(tmp_path)[-1]
    os.kill(last, signal.SIGTERM)
    wait_for_file(tmp_path / "saving")
    time.sleep(ECHO)
    os.kill(last, signal.SIGTERM)
    finish(process)
    wait_until_none_is_left(tmp_path, 10)
    (folder,) = checkpoint.step_folders(tmp_path)
    assert checkpoint.problem_of(folder) is None
    completed(tmp_path, 2, **options)
    assert_same(tmp_path, uninterrupted(2, **options))


@pytest.mark.case(17, "a signal between micro-batches: the update ends first")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_between_micro_batches_lets_the_update_end(tmp_path, uninterrupted, ranks):
    options = dict(batch_size=1, gradient_accumulation_steps=4)
    code, output = finish(start(tmp_path, ranks, "stop-after 14 2", **options))
    assert code != 0 and read_status(tmp_path)["status"] == "preempted", output
    settling = 2 if ranks > 1 else 0  # throw-away passes, which the fault counts
    assert read_status(tmp_path)["update"] == 14 - (settling > 0)
    completed(tmp_path, ranks, **options)
    assert_same(tmp_path, uninterrupted(ranks, **options))


@pytest.mark.case(12, "a rank dies under torchrun: the job ends, is restarted, same end")
@pytest.mark.parametrize("ranks", [3, 4])  # where DDP sums in another order before it settles
def test_a_rank_that_dies_takes_the_job_down_and_the_restarted_job_ends_the_same(tmp_path, uninterrupted, ranks):
    process = start(tmp_path, ranks)
    wait_for_update(tmp_path, 12)
    workers = ranks_of(tmp_path)
    os.kill(workers[-1], signal.SIGKILL)
    began = time.monotonic()
    code, output = finish(process, seconds=60)
    assert code != 0 and time.monotonic() - began < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert read_status(tmp_path)["status"] in ("failed", "preempted"), output  # by what the others saw first
    code, output = finish(start(tmp_path, ranks))
    assert code == 0, output
    assert_same(tmp_path, uninterrupted(ranks))


@pytest.mark.case(12, "a rank dies under torchrun: the job ends, is restarted, same end")
def test_torchrun_restarts_a_job_by_itself_and_it_ends_the_same(tmp_path, uninterrupted):
    process = start(tmp_path, ranks=3, restarts=1)
    wait_for_update(tmp_path, 12)
    os.kill(ranks_of(tmp_path)[-1], signal.SIGKILL)
    code, output = finish(process, seconds=180)
    assert code == 0 and "resumed from" in output, output
    assert read_status(tmp_path)["status"] == "done"
    assert_same(tmp_path, uninterrupted(3))
