"""Runs that are really stopped: what is left, and that the resumed run ends as the uninterrupted one."""

import os
import signal
import time
from pathlib import Path

import pytest
from processes import assert_same, finish, result, start, wait_for_file, wait_for_update, workers_of

from lm_experiments_tools import checkpoint
from lm_experiments_tools.preemption import EXIT_CODE
from lm_experiments_tools.status import read_status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
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
    assert_same(tmp_path, uninterrupted(1))


def test_a_value_that_is_logged_rarely_is_whole_after_a_stop_between_two_logs(tmp_path):
    code, output = finish(start(tmp_path / "whole", log_interval=10))
    assert code == 0, output
    process = start(tmp_path / "stopped", log_interval=10, fault="stop-after 13")
    code, output = finish(process)
    assert code == EXIT_CODE and read_status(tmp_path / "stopped")["update"] == 13, output
    code, output = finish(start(tmp_path / "stopped", log_interval=10))
    assert code == 0, output
    assert_same(tmp_path / "stopped", result(tmp_path / "whole"))


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
    code, _ = finish(start(tmp_path))
    assert code == 0
    assert_same(tmp_path, uninterrupted(1))


def test_a_second_signal_ends_the_process_at_once(tmp_path, uninterrupted):
    process = start(tmp_path, fault="updates-take-30s")
    wait_for_file(tmp_path / "updating")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    code, _ = finish(process, seconds=5)
    assert code == 128 + signal.SIGTERM and read_status(tmp_path)["status"] == "running"
    code, _ = finish(start(tmp_path))
    assert code == 0
    assert_same(tmp_path, uninterrupted(1))


def test_the_time_limit_saves_and_stops(tmp_path, uninterrupted):
    code, output = finish(start(tmp_path, max_hours=1e-9))
    assert code == EXIT_CODE and "max_hours 1e-09" in read_status(tmp_path)["reason"], output
    code, _ = finish(start(tmp_path))
    assert code == 0
    assert_same(tmp_path, uninterrupted(1))


@pytest.mark.parametrize("ranks, whom", [(2, "one rank"), (3, "launcher")])
def test_under_torchrun_all_ranks_stop_at_the_same_update(tmp_path, uninterrupted, ranks, whom):
    process = start(tmp_path, ranks)
    wait_for_update(tmp_path, 12)
    if whom == "launcher":
        process.send_signal(signal.SIGTERM)
    else:
        os.kill(workers_of(process)[-1], signal.SIGUSR1)
    code, output = finish(process)
    assert code != 0  # torchrun says 1 for any of them: scripts read the status
    status = read_status(tmp_path)
    assert status["status"] == "preempted", output
    assert checkpoint.newest_checkpoint(tmp_path) == checkpoint.step_folder(tmp_path, status["update"])
    code, output = finish(start(tmp_path, ranks))
    assert code == 0, output
    assert_same(tmp_path, uninterrupted(ranks))


@pytest.mark.parametrize("ranks", [3, 4])  # where DDP sums in another order before it settles
def test_a_rank_that_dies_takes_the_job_down_and_the_restarted_job_ends_the_same(tmp_path, uninterrupted, ranks):
    process = start(tmp_path, ranks)
    wait_for_update(tmp_path, 12)
    workers = workers_of(process)
    os.kill(workers[-1], signal.SIGKILL)
    began = time.monotonic()
    code, output = finish(process, seconds=60)
    assert code != 0 and time.monotonic() - began < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert read_status(tmp_path)["status"] in ("failed", "preempted"), output  # by what the others saw first
    code, output = finish(start(tmp_path, ranks))
    assert code == 0, output
    assert_same(tmp_path, uninterrupted(ranks))


def test_torchrun_restarts_a_job_by_itself_and_it_ends_the_same(tmp_path, uninterrupted):
    process = start(tmp_path, ranks=3, restarts=1)
    wait_for_update(tmp_path, 12)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    code, output = finish(process, seconds=180)
    assert code == 0 and "resumed from" in output, output
    assert read_status(tmp_path)["status"] == "done"
    assert_same(tmp_path, uninterrupted(3))
