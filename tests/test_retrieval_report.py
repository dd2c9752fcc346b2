"""The report on associative retrieval: tables and pictures of hand-made results."""

import csv
import json

import matplotlib.image
import pytest

from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation import retrieval_report
from lm_experiments_tools.evaluation.retrieval_report import capacity

SHARES = {"armt": {1: 1.0, 20: 0.96, 100: 0.75}, "rmt": {1: 1.0, 20: 0.25}, "none": {1: 0.0625, 20: 0.0625, 100: 0.05}}


def write_run(folder, shares, task="remember", trained=20, samples=400, **config):
    folder.mkdir(parents=True)
    test = {str(n): {"exact_match": share, "samples": samples, "tokens": 5 * n + 5} for n, share in shares.items()}
    metrics = {"task": task, "trained_n_pairs": trained, "test": test, "config": {"value_size": 1} | config}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / "runs" / name, shares) for name, shares in SHARES.items()]


def test_capacity_is_what_a_memory_that_guesses_the_rest_would_show():
    for pairs, known, values in ((20, 15, 16), (100, 0, 16), (7, 7, 256)):
        accuracy = known / pairs + (1 - known / pairs) / values
        assert capacity(pairs, values, accuracy) == pytest.approx(known)
    assert capacity(100, 16, 0.01) == 0


def test_every_model_and_number_of_pairs_has_a_row_with_its_intervals(runs, tmp_path):
    retrieval_report.main([*runs, "--output", str(tmp_path / "report")])
    rows = list(csv.DictReader((tmp_path / "report" / "scores.csv").open()))
    shares = {(row["model"], int(row["pairs"])): float(row["exact_match"]) for row in rows}
    assert shares == {(name, n): share for name, of_model in SHARES.items() for n, share in of_model.items()}
    for row in rows:
        for name in ("exact_match", "capacity"):
            assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
    row = next(row for row in rows if row["model"] == "armt" and row["pairs"] == "100")
    assert float(row["capacity"]) == pytest.approx(100 * (16 * 0.75 - 1) / 15, abs=1e-5)
    assert (float(row["exact_match_low"]), float(row["exact_match_high"])) == pytest.approx((0.7053, 0.7899), abs=1e-3)


def test_the_page_has_both_tables_and_shows_every_picture(runs, tmp_path, capsys):
    retrieval_report.main([*runs, "--output", str(tmp_path / "report")])
    page = (tmp_path / "report" / "index.md").read_text()
    assert "| rmt | 20 | 100.0 (99.0–100.0) | 25.0 (21.0–29.5) | – |" in page
    assert "| armt | 20 | 1.0 | 19.1 | 73.3 |" in page and page in capsys.readouterr().out
    for name in ("remember", "remember_capacity"):
        assert f"({name}.png)" in page and (tmp_path / "report" / f"{name}.svg").stat().st_size > 5000
        picture = matplotlib.image.imread(tmp_path / "report" / f"{name}.png")
        assert picture.shape[0] > 300 and picture.std() > 0.05


def test_each_task_has_its_own_part_and_runs_may_be_named(tmp_path):
    first = write_run(tmp_path / "a" / "best-run", {1: 1.0, 2: 0.5})
    second = write_run(tmp_path / "b" / "best-run", {1: 1.0, 50: 0.9}, task="rewrite", trained=10)
    third = write_run(tmp_path / "c", {50: 0.9}, value_size=2)
    retrieval_report.main([f"big={first}", second, third, "--output", str(tmp_path / "report")])
    page = (tmp_path / "report" / "index.md").read_text()
    assert "| big | 20 |" in page.partition("rewrite: exact match")[0] and "| best-run | 10 |" in page
    assert f"| {50 * (256 * 0.9 - 1) / 255:.1f} |" in page
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        "remember.png", "remember_capacity.png", "rewrite.png"  # what was rewritten need not be held
    }  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "report" / "scores.csv").open()))
    assert all(bool(row["capacity"]) == (row["task"] == "remember") for row in rows)


def test_bad_input_is_named(runs, tmp_path):
    with pytest.raises(UserError, match="absent.metrics.json cannot be read .*: give folders of finished runs"):
        retrieval_report.main([str(tmp_path / "absent")])
    with pytest.raises(UserError, match="two runs of remember are named 'armt': give them as NAME=FOLDER"):
        retrieval_report.main([runs[0], runs[0], "--output", str(tmp_path / "report")])
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa" / "metrics.json").write_text(json.dumps({"task": "qa1", "trained_n_segments": 4}))
    with pytest.raises(UserError, match="is not of associative retrieval but of qa1"):
        retrieval_report.main([str(tmp_path / "qa")])
    with pytest.raises(UserError, match="usage"):
        retrieval_report.main([])
