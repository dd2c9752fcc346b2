"""Models and seeds side by side, and ablations beside the true score: numbers are those computed by hand."""

import csv

import pytest
from result_folders import PROMPT, write_about, write_result

from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation import ablation_report, seeds, tables
from lm_experiments_tools.evaluation.official_files import read_folder
from lm_experiments_tools.evaluation.scoring import Score

OTHER = "instruction_yes_examples_yes_post_prompt_yes_chat_template_no_system_prompt_no"


def right(count, of=10):
    return [number < count for number in range(of)]


@pytest.fixture
def results(tmp_path):
    """Three seeds of one model and one other model."""
    for seed, (first, second) in enumerate([(10, 4), (9, 5), (8, 9)], start=1):
        write_result(tmp_path / f"armt-seed{seed}", "qa1", "1k", right(first))
        write_result(tmp_path / f"armt-seed{seed}", "qa2", "1k", right(second))
        write_about(tmp_path / f"armt-seed{seed}", trained_tokens=500)
    write_result(tmp_path / "rmt", "qa1", "1k", right(7))
    write_result(tmp_path / "rmt", "qa1", "2k", right(6))
    return tmp_path


@pytest.mark.parametrize(
    "names,groups",
    [
        (["a-seed1", "a-seed2", "b"], ["a-seed*", "a-seed*", "b"]),
        (["qa1_seed_1/best", "qa1_seed_22/best"], ["qa1_seed_*/best"] * 2),
        (["seed1", "seed2"], ["seed*"] * 2),
        (["a-seed1", "b-seed1"], ["a-seed1", "b-seed1"]),  # nothing to average
        (["a", "a-seed1", "a-seed2"], ["a", "a-seed*", "a-seed*"]),  # without a number it is another model
        (["linseed1", "linseed2", "a-seed1b", "a-seed2b"], ["linseed1", "linseed2", "a-seed1b", "a-seed2b"]),
    ],
)
def test_names_that_differ_in_their_seed_alone_are_one_group(names, groups):
    assert list(seeds.group_names(names, None).values()) == groups


def test_groups_can_be_named():
    names = seeds.group_names(["x", "y", "z-seed1", "z-seed2"], ["xy=x,y"])
    assert names == {"x": "xy", "y": "xy", "z-seed1": "z-seed*", "z-seed2": "z-seed*"}
    assert seeds.group_names(["x", "y"], ["x=x,y"]) == {"x": "x", "y": "x"}


@pytest.mark.parametrize(
    "words,message",
    [
        (["xy"], "seeds 'xy' is not of the form GROUP=NAME,NAME,..."),
        (["=x,y"], "not of the form"),
        (["a="], "not of the form"),
        (["a=x,w"], "no results of model 'w'; there are some of x, y, z"),
        (["a=x,y", "b=y,z"], "model 'y' is in another group already"),
        (["z=x,y"], "'z' is the name of something else"),
        (["a=x", "a=y"], "'a' is the name of something else"),
    ],
)
def test_groups_that_cannot_be_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        seeds.group_names(["x", "y", "z"], words)
    assert "\n" not in str(error.value)


def test_a_cell_is_the_mean_and_the_sample_deviation_over_seeds(results):
    armt, rmt = seeds.group_results(read_folder(results))
    assert armt.title == "armt-seed* (3 seeds)" and rmt.title == "rmt"
    assert armt.cell("qa1", "1k", "official") == "90.0±10.0"  # of 100, 90, 80
    assert armt.cell("qa2", "1k", "official") == "60.0±26.5"  # of 40, 50, 90
    assert armt.cell(tables.AVERAGE, "1k", "official") == "75.0±8.7"  # of 70, 70, 85
    assert armt.cell("qa1", "2k", "official") == "–"
    assert rmt.cell("qa1", "1k", "official") == "70.0 (39.7–89.2)"  # no deviation: its own interval


def test_the_comparison_has_all_models_in_each_task_and_format(results):
    groups = seeds.group_results(read_folder(results))
    lines = seeds.as_markdown(groups, ["official"], "###").splitlines()
    assert lines[2] == "| task | model | 1k | 2k |"
    assert lines[4] == "| qa1 | armt-seed* (3 seeds) | 90.0±10.0 | – |"
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| qa1"] * 2 + ["| qa2"] * 2 + ["| average"] * 2
    latex = seeds.as_latex(groups)
    cells = [line for line in latex.splitlines() if line.startswith(("qa", "task", "average"))]
    assert {line.count("&") for line in cells} == {3} and r"90.0$\pm$10.0 & -- \\" in latex
    assert latex.count(r"\begin{tabular}{llcc}") == 2 and latex.count(r"\midrule") == 6
    rows = list(csv.DictReader(seeds.as_csv(groups).splitlines()))
    first = rows[0]
    assert (first["model"], first["task"], first["seeds"]) == ("armt-seed*", "qa1", "3")
    assert (first["official_mean"], first["official_deviation"]) == ("0.900000", "0.100000")
    assert (first["tokens"], first["times_trained"]) == ("1000", "2")
    assert [(r["task"], r["length"], r["seeds"]) for r in rows if r["model"] == "rmt"] == [
        ("qa1", "1k", "1"), ("qa1", "2k", "1"),
    ]  # fmt: skip


def test_lengths_beyond_the_trained_ones_say_how_far(results):
    text = seeds.lengths_markdown(seeds.group_results(read_folder(results)), "official")
    assert "| armt-seed* (3 seeds) | 75.0±8.7 at 2x | – |" in text and "| rmt | – | – |" in text


def test_seeds_with_other_prompts_are_not_averaged(results):
    write_result(results / "armt-seed1", "qa1", "1k", right(1), prompt=OTHER)
    titles = [group.title for group in seeds.group_results(read_folder(results))]
    assert titles == ["armt-seed* (no prompt) (3 seeds)", "armt-seed* (instruction, examples, post prompt)", "rmt"]


@pytest.fixture
def ablated(results):
    model = results / "armt-seed1"
    for name, count in (("freeze_10", 9), ("freeze_3", 8), ("other", 1), ("zero", 2)):
        write_result(model / f"ablate_{name}", "qa1", "1k", right(count))
    write_result(model / "ablate_zero", "qa1", "2k", right(3))
    return results


def test_ablated_results_are_told_from_true_ones_and_belong_to_their_model(ablated):
    true, other = ablation_report.split(read_folder(ablated))
    assert {result.model for result in true} == {"armt-seed1", "armt-seed2", "armt-seed3", "rmt"}
    assert len(other) == 5 and {ablation_report.true_model(result) for result in other} == {"armt-seed1"}
    assert {ablation_report.memory_of(result) for result in other} == {"zero", "other", "freeze:3", "freeze:10"}
    assert all(ablation_report.memory_of(result) == "" for result in true)


def test_ablations_stand_beside_the_true_score_in_order(ablated):
    (model,) = ablation_report.side_by_side(*ablation_report.split(read_folder(ablated)))
    assert list(model.memories) == ["true", "zero", "other", "freeze:3", "freeze:10"]
    lines = ablation_report.as_markdown([model], ["official"]).splitlines()
    assert lines[2] == "| task | length | true | zero | other | freeze:3 | freeze:10 |"
    assert lines[4] == (
        "| qa1 | 1k | 100.0 (72.2–100.0) | 20.0 (5.7–51.0) | 10.0 (1.8–40.4) | 80.0 (49.0–94.3) | 90.0 (59.6–98.2) |"
    )
    assert lines[5] == "| qa1 | 2k | – | 30.0 (10.8–60.3) | – | – | – |" and len(lines) == 6
    rows = list(csv.DictReader(ablation_report.as_csv([model]).splitlines()))
    assert [row["memory"] for row in rows] == ["true", "zero", "other", "freeze:3", "freeze:10", "zero"]
    assert rows[1]["official"] == "0.200000" and rows[1]["samples"] == "10"
    latex = ablation_report.as_latex([model])
    assert {line.count("&") for line in latex.splitlines() if line.startswith(("qa", "task"))} == {6}


def test_a_model_folder_given_itself_has_its_ablations_too(ablated):
    true, other = ablation_report.split(read_folder(ablated / "armt-seed1"))
    (model,) = ablation_report.side_by_side(true, other)
    assert [result.model for result in true] == ["armt-seed1"] * 2  # which come first
    assert read_folder(ablated / "armt-seed1")[:2] == true
    assert model.name == "armt-seed1" and model.memories["true"]["qa1", "1k"] == Score(10, 10, 10)


def test_ablations_stand_beside_the_true_score_with_the_same_prompt(ablated):
    write_result(ablated / "armt-seed1", "qa1", "1k", right(0), prompt=OTHER)
    write_result(ablated / "armt-seed1" / "ablate_zero", "qa1", "1k", right(0), prompt=OTHER)
    models = ablation_report.side_by_side(*ablation_report.split(read_folder(ablated)))
    assert [model.setting for model in models] == [PROMPT, OTHER]
    assert [model.memories["true"]["qa1", "1k"].official for model in models] == [10, 0]
