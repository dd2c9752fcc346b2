"""Table and picture of a result by length."""

import json

import pytest

from lm_experiments_tools.evaluation import report


def metrics(shares):
    rows = {str(n): {"exact_match": share, "samples": 200, "tokens": n * 64} for n, share in shares.items()}
    return {"task": "qa1", "trained_n_segments": 4, "test": rows}


@pytest.mark.parametrize("shares", [{1: 1.0, 64: 0.0}, {4: 0.5}, {1: 0.9999999, 2: 1.0, 8: 0.3, 1024: 0.98}])
def test_every_share_has_a_row_and_a_picture(tmp_path, shares):
    table = report.length_table(metrics(shares))
    assert len(table.splitlines()) == 1 + len(shares)
    report.draw_lengths(metrics(shares), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG" and len(list(tmp_path.iterdir())) == 1


def test_the_table_says_how_far_beyond_the_trained_lengths_a_row_is():
    table = report.length_table(metrics({4: 1.0, 64: 0.5})).splitlines()
    assert "longest" not in table[1] and "16x the longest trained" in table[2]


def test_wilson_intervals_are_the_known_ones():
    assert report.wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert report.wilson_interval(1.0, 200)[1] == pytest.approx(1.0)
    assert report.wilson_interval(1.0, 200)[0] == pytest.approx(0.9812, abs=1e-4)


def test_json_is_whole_and_holds_no_bare_nan(tmp_path):
    report.write_json(tmp_path / "m.json", {"valid": {"loss": float("nan"), "exact_match": 0.5}})
    assert json.loads((tmp_path / "m.json").read_text()) == {"valid": {"loss": "nan", "exact_match": 0.5}}
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]
