"""The report as a user starts it: what it leaves, which pictures it can draw, what it refuses."""

import re
from xml.etree import ElementTree

import matplotlib.image
import pytest
from result_folders import write_about, write_model, write_result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation import by_place, canvas, curves, figures, report, seeds, tables
from lm_experiments_tools.evaluation.official_files import read_folder
from lm_experiments_tools.evaluation.scoring import TASK_NAMES

LENGTHS = ["0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "512k", "1M", "10M", "50M"]


def half_right(task, tokens, depth):
    return 0.5


def model(folder, tasks=("qa1",), lengths=("1k",), trained=256, segment=64, **options):
    write_model(folder, tasks, lengths, half_right, samples=8, **options)
    if trained or segment:
        write_about(folder, segment, trained)


def run(results, output, *words):
    report.main([str(results), "--output", str(output), *words])
    return {path.name for path in output.iterdir()}


def both(*names):
    return {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}


HEAT_MAPS = both("heat_map_official", "heat_map_strict")
SCORES = {"index.md", "scores.md", "scores.csv", "scores.tex"} | HEAT_MAPS | both("extrapolation")
PLACES = {f"{axis}.{suffix}" for axis in ("depth", "distance", "wholeness") for suffix in ("md", "csv")}
PLACES |= both("depth", "distance")
COMPARISON = {"comparison.md", "comparison.csv", "comparison.tex"}
ABLATIONS = {"ablations.md", "ablations.csv", "ablations.tex"} | both("ablations")


def public(folder):
    model(folder / "a" / "x", lengths=["0k", "4k"], trained=None, segment=None, places=False)


def one(folder):
    model(folder / "a")


def facts_alone(folder):
    model(folder / "a", lengths=["0k"])


def everything(folder):
    for seed in (1, 2):
        model(folder / f"a-seed{seed}", ["qa1", "qa2"], ["0k", "1k", "1M"], seed=seed)
    model(folder / "b", lengths=["0k", "1k"], trained=1000)
    model(folder / "c", ["qa2"], trained=None, segment=None, places=False)
    for ablation in ("zero", "freeze_2"):
        model(folder / "a-seed1" / f"ablate_{ablation}", lengths=["0k", "1k"])


def many_models(folder):
    for number in range(12):
        model(folder / f"a-rather-long-name-of-a-model/{number}", lengths=["0k", "1k"])


CASES = {
    public: SCORES,
    one: SCORES | PLACES | both("depth_by_length_qa1"),
    facts_alone: SCORES | PLACES | both("depth_by_length_qa1"),
    everything: (
        SCORES | PLACES | COMPARISON | ABLATIONS
        | both("heat_map_mean", "depth_by_length_qa1", "depth_by_length_qa2")
    ),
    many_models: SCORES | PLACES | COMPARISON | both("depth_by_length_qa1"),
}  # fmt: skip


def assert_drawn(path):
    pixels = matplotlib.image.imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 200 and pixels.std() > 0.02, path.name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_everything_that_is_known_is_drawn_and_shown_on_one_page(case, tmp_path):
    case(tmp_path / "results")
    names = run(tmp_path / "results", tmp_path / "out")
    assert names == CASES[case]
    for name in names:
        if name.endswith(".png"):
            assert_drawn(tmp_path / "out" / name)
        if name.endswith(".svg"):
            assert ElementTree.parse(tmp_path / "out" / name).getroot().tag.endswith("svg")
    page = (tmp_path / "out" / "index.md").read_text()
    linked = set(re.findall(r"\]\(([\w.]+)\)", page))
    assert linked <= names and {name for name in names if name.endswith(".png")} <= linked
    assert linked >= {name for name in names if name.endswith((".csv", ".tex"))}


def test_all_tasks_and_lengths_of_the_benchmark_fit_into_a_picture(tmp_path):
    model(tmp_path / "a", TASK_NAMES, LENGTHS)
    results = read_folder(tmp_path)
    groups, axis = seeds.group_results(results), by_place.depth_axis("last")
    paths = {name: tmp_path / f"{name}.png" for name in ("heat_map", "curves", "places", "depths")}
    figures.draw_heat_map(tables.grids(results), [paths["heat_map"]])
    curves.draw_extrapolation(groups, [paths["curves"]], "official")
    curves.draw_by_place(axis, groups, [paths["places"]], "official")
    figures.draw_depth_map(axis, groups, "qa20", [paths["depths"]], "official")
    for path in paths.values():
        assert_drawn(path)


def test_chosen_models_come_in_their_order_and_ablated_results_in_their_own_table(tmp_path, capsys):
    for name in ("a-seed1", "a-seed1/ablate_freeze_2", "a-seed2", "b", "b/ablate_zero"):
        model(tmp_path / "results" / name)
    names = run(tmp_path / "results", tmp_path / "out", "--models", "b", "a-seed1", "b")
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert page.index("| b |") < page.index("| a-seed1 |") and "a-seed2" not in page
    assert "a-seed1" in capsys.readouterr().out and "heat_map_mean.png" not in names
    for name in ("scores.csv", "comparison.csv", "depth.csv", "distance.csv"):
        assert "ablate" not in (tmp_path / "out" / name).read_text()
    text = (tmp_path / "out" / "ablations.csv").read_text()
    assert "a-seed1,no prompt,qa1,1k,freeze:2,8," in text and "b,no prompt,qa1,1k,zero,8," in text


def test_the_score_and_the_facts_can_be_chosen(tmp_path):
    write_result(tmp_path / "results" / "a", "qa1", "1k", [True] * 4, [[[0, 5], [650, 655]]] * 4)
    run(tmp_path / "results", tmp_path / "out", "--score", "strict", "--facts", "every")
    page = (tmp_path / "out" / "index.md").read_text()
    assert "the strict exact match" in page and "![Scores by task and length: heat_map_strict]" in page
    assert (
        "depth of every supporting fact" in page and page.count(" of 4 |") == 4
    )  # all samples, two depths, one distance


def events(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_a_run_for_each_model_and_all_pictures(tmp_path):
    model(tmp_path / "results" / "b", lengths=["0k", "1k"])
    model(tmp_path / "results" / "b" / "ablate_zero")
    for _ in range(2):  # a second report replaces the first
        names = run(tmp_path / "results", tmp_path / "out", "--tensorboard", str(tmp_path / "tb"))
    pictures = {f"babilong/{name[:-4]}" for name in names if name.endswith(".png")}
    assert set(events(tmp_path / "tb").Tags()["images"]) == pictures
    assert len(list((tmp_path / "tb").glob("events*"))) == 1
    scalars = events(tmp_path / "tb" / "b")
    assert set(scalars.Tags()["scalars"]) == {"babilong_official/qa1", "babilong_strict/qa1"}
    assert [event.step for event in scalars.Scalars("babilong_official/qa1")] == [0, 1000]
    assert (tmp_path / "tb" / "b" / "ablate_zero").is_dir()


def test_0k_stands_before_all_lengths_and_before_the_trained_one():
    places = curves.length_places(["0k", "1k", "4k"], [256])
    assert places["4k"] - places["1k"] == pytest.approx(2) and places["0k"] == 8 - curves.BEFORE_FIRST
    assert curves.length_places(["0k"], []) == {"0k": 0}


def test_the_curve_is_cut_behind_0k(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(curves, "draw_curves", lambda chart, shown, paths: drawn.update(shown))
    model(tmp_path, lengths=["0k", "1k"])
    groups = seeds.group_results(read_folder(tmp_path))
    curves.draw_extrapolation(groups, [], "official")
    first, cut, second = drawn["qa1"][0].points
    assert cut.y != cut.y and first.x < second.x and first.low < first.y < first.high


def test_curves_are_told_apart_without_colour():
    styles = {(canvas.line(n), canvas.MARKERS[n % len(canvas.MARKERS)]) for n in range(30)}
    assert len(styles) == 30


def test_what_is_wrong_is_one_line_that_names_it(tmp_path):
    results, blocked = tmp_path / "results", tmp_path / "blocked"
    model(results / "a")
    blocked.write_text("")
    (tmp_path / "ablated").mkdir()
    model(tmp_path / "ablated" / "a" / "ablate_zero")
    cases = {
        "usage": ["--output", "x"],
        "no results folder": [str(tmp_path / "none")],
        "no results of model 'c'; there are some of a": [str(results), "--models", "c"],
        "seeds 'x' is not of the form": [str(results), "--seeds", "x"],
        "invalid choice: 'loose'": [str(results), "--score", "loose"],
        "only ablated results": [str(tmp_path / "ablated")],
        "two results of model 'a' at qa1 1k": [str(results), str(results)],
        "blocked": [str(results), "--output", str(blocked)],
    }
    for message, words in cases.items():
        with pytest.raises(UserError, match=re.escape(message)) as error:
            report.main([*words, *([] if "--output" in words else ["--output", str(tmp_path / "out")])])
        assert "\n" not in str(error.value)
