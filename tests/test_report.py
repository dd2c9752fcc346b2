"""Table and picture of a result by length; tables and heat maps of BABILong results."""

import csv
import json
from dataclasses import replace

import matplotlib.image
import pytest
from matplotlib.colors import LinearSegmentedColormap

from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation import figures, report, tables
from lm_experiments_tools.evaluation.official_files import About, Result
from lm_experiments_tools.evaluation.scoring import Score

ARMT = "instruction_no_examples_no_post_prompt_no_chat_template_no_system_prompt_no"
OTHER = "instruction_yes_examples_yes_post_prompt_yes_chat_template_no_system_prompt_no"


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


def results(model, shares, setting=ARMT):
    """Results on 100 samples; strict exact match is 10 percent lower."""
    return [
        Result(model, setting, task, length, Score(100, round(100 * share), max(0, round(100 * share) - 10)))
        for (task, length), share in shares.items()
    ]


TWO = results("armt", {("qa2", "1M"): 0.9, ("qa1", "0k"): 1.0, ("qa1", "1M"): 0.7, ("qa10", "0k"): 0.5})


def test_markdown_has_a_table_for_each_score_with_tasks_and_lengths_in_order():
    text = tables.as_markdown(TWO)
    assert "## armt: official score, %" in text and "## armt: strict exact match, %" in text
    lines = text.splitlines()
    assert lines[2] == "| task | 0k | 1M |"
    assert lines[4] == "| qa1 | 100.0 (96.3–100.0) | 70.0 (60.4–78.1) |"
    assert [line.split(" | ")[0] for line in lines[4:8]] == ["| qa1", "| qa2", "| qa10", "| average"]
    assert lines[5].startswith("| qa2 | – |") and lines[7] == "| average | – | – |"


def test_an_average_stands_where_all_tasks_have_a_score():
    (grid,) = tables.grids(results("a", {("qa1", "1k"): 1.0, ("qa2", "1k"): 0.5, ("qa1", "2k"): 0.3}))
    assert grid.share(tables.AVERAGE, "1k", "official") == 0.75
    assert grid.share(tables.AVERAGE, "2k", "official") is None


def test_csv_holds_every_score_with_its_interval():
    rows = list(csv.DictReader(tables.as_csv(TWO).splitlines()))
    assert len(rows) == 4 and rows[0]["official"] == "0.900000" and rows[0]["strict"] == "0.800000"
    assert float(rows[2]["official_low"]) == pytest.approx(0.6042, abs=1e-4)


def test_latex_has_as_many_cells_in_each_row_as_columns():
    text = tables.as_latex(TWO + results("a_b%", {("qa1", "4k"): 0.2}))
    assert text.count(r"\begin{tabular}{lccc}") == 2 and text.count(r"\end{tabular}") == 2
    rows = [line for line in text.splitlines() if line.startswith(("qa", "task", "average"))]
    assert {line.count("&") for line in rows} == {3} and all(line.endswith(r"\\") for line in rows)
    assert r"\multicolumn{4}{l}{a\_b\%} \\" in text


def test_a_model_with_several_prompts_has_a_grid_for_each():
    both = results("m", {("qa1", "1k"): 1.0}) + results("m", {("qa1", "1k"): 0.5}, OTHER)
    names = [grid.name for grid in tables.grids(both)]
    assert names == ["m (no prompt)", "m (instruction, examples, post prompt)"]


def test_heat_maps_are_drawn_for_any_number_of_models_tasks_and_lengths(tmp_path):
    one = results("armt", {("qa1", "1k"): 0.4})
    many = [
        r for n in range(5) for r in results(f"m{n}", {(f"qa{t}", f"{k}k"): 0.1 * t for t in (1, 9) for k in (1, 8)})
    ]
    for number, shown in enumerate((one, TWO, many)):
        figures.draw_heat_map(tables.grids(shown), [tmp_path / f"{number}.png", tmp_path / f"{number}.svg"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{n}.{kind}" for n in range(3) for kind in ("png", "svg")
    ]
    assert all(matplotlib.image.imread(tmp_path / f"{n}.png").shape[1] > 300 for n in range(3))


def test_a_higher_score_is_lighter_also_without_colour():
    colours = LinearSegmentedColormap.from_list("score", figures.COLOURS)
    grey = [sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), colours(share / 100))) for share in range(101)]
    assert all(low < high for low, high in zip(grey, grey[1:]))


def test_two_results_of_the_same_are_refused_and_not_mixed_up():
    with pytest.raises(UserError, match="two results of model 'armt' at qa2 1M; rename a folder"):
        tables.grids(TWO + results("armt", {("qa2", "1M"): 0.1}))


def test_csv_says_how_far_beyond_the_trained_length_a_score_is():
    trained = [replace(result, about=About(64, 256_000)) for result in TWO]
    rows = list(csv.DictReader(tables.as_csv(trained).splitlines()))
    assert [(row["tokens"], row["times_trained"]) for row in rows[:2]] == [("1000000", "3.90625"), ("0", "0")]
    assert {row["times_trained"] for row in csv.DictReader(tables.as_csv(TWO).splitlines())} == {""}
