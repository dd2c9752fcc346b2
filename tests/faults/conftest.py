"""Fixtures of the fault suite, and its table case by case."""

import fcntl
import os

import pytest
from processes import completed, result

from lm_experiments_tools.status import read_status

OUTCOMES = {}  # (case, what happens) -> outcomes of its tests


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Results by number of ranks and options, made once each: by the xdist worker that needs them first."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def of(ranks=1, **options):
        options = {"engine": "single" if ranks == 1 else "ddp"} | options  # the default, by its name
        run = base / "-".join([f"uninterrupted-{ranks}", *(f"{name}={options[name]}" for name in sorted(options))])
        with open(f"{run}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (read_status(run) or {}).get("status") != "done":
                completed(run, ranks, **options)
        return result(run)

    return of


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    marker = item.get_closest_marker("case")
    if marker and (report.when == "call" or report.outcome != "passed"):
        report.case = marker.args  # travels with the report from pytest-xdist's workers
    return report


def pytest_runtest_logreport(report):
    if hasattr(report, "case"):
        OUTCOMES.setdefault(tuple(report.case), []).append(report.outcome)


def pytest_terminal_summary(terminalreporter):
    """What was shown of each case."""
    if not OUTCOMES:
        return
    terminalreporter.section("fault cases")
    for (case, what), outcomes in sorted(OUTCOMES.items()):
        worst = next(word for word in ("failed", "skipped", "passed") if word in outcomes)
        terminalreporter.line(f"{case:>3}  {worst:<8}{len(outcomes):>3} tests  {what}")
