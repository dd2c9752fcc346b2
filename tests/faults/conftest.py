"""Fixtures of the fault suite."""

import pytest
from processes import finish, result, start

from lm_experiments_tools.status import read_status


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Results by number of ranks, made once each."""
    made = {}

    def of(ranks):
        if ranks not in made:
            run = tmp_path_factory.mktemp(f"ranks-{ranks}")
            code, output = finish(start(run, ranks))
            assert code == 0 and read_status(run)["status"] == "done", output
            made[ranks] = result(run)
        return made[ranks]

    return of
