"""Fixtures of the fault suite, and its table case by case."""

import pytest
from processes import completed, result

OUTCOMES = {}  # (case, what happens) -> outcomes of its tests


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Results by number of ranks and options, made once each."""
    made = {}

    def of(ranks=1, **options):
        key = ranks, *sorted(options.items())
        if key not in made:
            run = tmp_path_factory.mktemp("uninterrupted")
            completed(run, ranks, **options)
            made[key] = result(run)
        return made[key]

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
