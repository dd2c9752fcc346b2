"""Scores by where the facts stand: bins, counts and intervals are those computed by hand."""

import csv

import pytest
from result_folders import BEFORE, write_about, write_result

from lm_experiments_tools.evaluation import by_place
from lm_experiments_tools.evaluation.official_files import About, read_folder
from lm_experiments_tools.evaluation.places import Place, read_places
from lm_experiments_tools.evaluation.scoring import Score, wilson_interval
from lm_experiments_tools.evaluation.seeds import group_results


def groups_of(folder):
    return group_results(read_folder(folder))


def rows(text):
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture
def results(tmp_path):
    """qa2 of one model at 1k: contexts of 100 tokens behind 10 others, segments of 16 tokens, trained on 32."""
    facts = [
        [[0, 6], [95, 100]],  # the last fact starts at 95%; ends in token 109, of segment 6, as the question: 110
        [[80, 86], [9, 15]],  # not in order: the last one is at 80%; ends in token 95, of segment 5: 1 before
        [[9, 15]],  # at 9%; token 24, of segment 1: 5 before
        [[10, 16]],  # at 10%, in the second bin; token 25, of segment 1
        [[5, 6], [29, 37]],  # at 29%, in the third bin; token 46, of segment 2: 4 before
        [],  # tells nothing
    ]
    write_result(tmp_path / "armt", "qa2", "1k", [True, True, False, True, False, True], facts, context=100)
    write_about(tmp_path / "armt", segment_size=16, trained_tokens=32)
    return tmp_path


def test_depths_are_counted_in_tenths_of_the_context_by_the_last_fact(results):
    (result,) = read_folder(results)
    scores = by_place.scores_by(by_place.depth_axis("last"), [result])
    assert scores == {0: Score(1, 0, 0), 1: Score(1, 1, 1), 2: Score(1, 0, 0), 8: Score(1, 1, 1), 9: Score(1, 1, 1)}


def test_every_fact_counts_when_that_is_asked_for_but_a_sample_once_in_a_bin(results):
    (result,) = read_folder(results)
    scores = by_place.scores_by(by_place.depth_axis("every"), [result])
    assert {number: (score.official, score.samples) for number, score in scores.items()} == {
        0: (2, 4), 1: (1, 1), 2: (0, 1), 8: (1, 1), 9: (1, 1),
    }  # fmt: skip
    both = Place(0, 100, ((1, 3), (5, 7)))
    assert by_place.depth_axis("every").bins_of(both, result) == [0]


def test_distances_are_borders_of_segments_between_the_last_fact_and_the_question(results):
    (result,) = read_folder(results)
    distances = [answer.place.distance(16) for answer in result.answers[:5]]
    assert distances == [0, 1, 5, 5, 4]
    assert (BEFORE + 100) // 16 == 6  # of the question
    axis = by_place.distance_axis([result])
    assert by_place.scores_by(axis, [result]) == {0: Score(1, 1, 1), 1: Score(1, 1, 1), 3: Score(3, 1, 1)}
    assert [axis.label(number) for number in range(5)] == ["0", "1", "2–3", "4–7", "8–15"]


def test_bins_of_distances_double_and_cover_every_distance(results):
    for size in (16, None):
        axis = by_place.distance_axis([_about(result, size) for result in read_folder(results)])
        edges = [axis.edges(number) for number in range(12)]
        assert edges[0][0] == 0 and all(before[1] == after[0] for before, after in zip(edges, edges[1:]))
        assert all(after[1] == 2 * after[0] for after in edges[1:])


def _about(result, segment_size):
    return type(result)(**vars(result) | {"about": About(segment_size, None)})


def test_without_known_segments_distances_are_tokens(results):
    (result,) = read_folder(results)
    result = _about(result, None)
    axis = by_place.distance_axis([result])
    assert axis.title.endswith("in tokens") and axis.label(0) == "0–63" and axis.label(5) == "1Ki–2Ki"
    assert [answer.place.distance(None) for answer in result.answers[:5]] == [0, 14, 85, 84, 63]
    assert by_place.scores_by(axis, [result]) == {0: Score(3, 2, 2), 1: Score(2, 1, 1)}


def test_a_fact_is_cut_where_a_border_of_segments_lies_within_it(results):
    (result,) = read_folder(results)
    # tokens 10-15, 105-109; 90-95, 19-24; 19-24; 20-25; 15, 39-46: none goes over a multiple of 16
    assert [answer.place.borders(16) for answer in result.answers[:5]] == [0, 0, 0, 0, 0]
    # of 20: border 20 is in 19-24 of two samples, 40 in 39-46; 20-25 begins at one
    assert [answer.place.borders(20) for answer in result.answers[:5]] == [0, 1, 1, 0, 1]
    assert Place(3, 100, ((0, 30), (40, 41))).borders(8) == 4  # at 8, 16, 24, 32 within 3-32
    axis = by_place.wholeness_axis()
    assert by_place.scores_by(axis, [_about(result, 20)]) == {0: Score(2, 2, 2), 1: Score(3, 1, 1)}
    assert by_place.scores_by(axis, [_about(result, 2)]) == {1: Score(5, 3, 3)}  # one border or more
    assert by_place.scores_by(axis, [_about(result, None)]) == {}
    assert [axis.label(number) for number in (0, 1)] == ["whole", "cut"]


def test_a_model_without_places_does_not_turn_segments_into_tokens(results):
    write_result(results / "public", "qa2", "1k", [True])
    assert by_place.distance_axis(read_folder(results)).unit == "segments"


def test_csv_has_a_row_for_each_bin_with_its_edges_count_and_interval(results):
    write_result(results / "armt", "qa2", "2k", [False] * 4, [[[0, 5]]] * 4, context=100)
    axis = by_place.depth_axis("last")
    table = rows(by_place.as_csv(axis, groups_of(results)))
    assert [row["length"] for row in table] == ["pooled"] * 5 + ["1k"] * 5 + ["2k"]
    pooled = table[0]
    assert (pooled["from"], pooled["below"], pooled["samples"], pooled["official"]) == ("0", "0.1", "5", "0.000000")
    assert float(pooled["official_high"]) == pytest.approx(wilson_interval(0, 5)[1], abs=1e-6)
    assert (table[-1]["samples"], table[5]["samples"]) == ("4", "1")
    assert {row["unit"] for row in table} == {"part of the context"}


def test_markdown_shows_all_ten_depths_with_counts(results):
    text = by_place.pooled_markdown(by_place.depth_axis("last"), groups_of(results), "official")
    header, _, line = text.splitlines()
    assert header.count("%") == 10 and "| 0–10% | 10–20% |" in header
    assert line.startswith("| qa2 | armt | 0.0 (0.0–79.3) of 1 | 100.0 (20.7–100.0) of 1 |") and line.count(" – ") == 5


def test_depths_and_wholeness_are_pooled_over_the_lengths_that_all_models_have(results):
    for length in ("1k", "2k"):
        write_result(results / "rmt", "qa2", length, [True], [[[0, 5]]], context=100)
    write_about(results / "rmt")
    write_result(results / "public", "qa2", "1M", [True])  # without places, it does not count
    groups = groups_of(results)
    for axis in (by_place.depth_axis("last"), by_place.wholeness_axis()):
        assert by_place.pooled_lengths(axis, groups) == ["1k"]
    assert by_place.pooled_lengths(by_place.distance_axis(read_folder(results)), groups) == ["1k", "2k"]
    text = by_place.pooled_markdown(by_place.depth_axis("last"), groups, "official")
    assert "| qa2 | rmt | 100.0 (20.7–100.0) of 1 |" in text and "public" not in text


def test_answers_find_their_places_by_index_whatever_rows_there_are(results):
    path = next(results.glob("armt/*.csv"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[4], lines[2]]) + "\n")
    (result,) = read_folder(results)
    assert [answer.place.facts[0] for answer in result.answers] == [(10, 16), (9, 15)]


MALFORMED = {
    "no json": '{"index": 0,',
    "no facts": '{"index": 0, "context_tokens": 9, "tokens_before_context": 0}',
    "half a span": '{"index": 0, "context_tokens": 9, "tokens_before_context": 0, "supporting_facts": [[1]]}',
    "outside": '{"index": 0, "context_tokens": 9, "tokens_before_context": 0, "supporting_facts": [[5, 10]]}',
    "no mapping": "7",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_places_are_named_and_left_out_and_the_score_stays(results, case, capsys):
    path = next(results.glob("armt/*.jsonl"))
    path.write_text(path.read_text().splitlines()[0] + "\n" + MALFORMED[case] + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_places(path)
    (result,) = read_folder(results)
    assert result.score == Score(6, 4, 4) and all(answer.place is None for answer in result.answers)
    assert f"{path} is left out: line 2" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"about": 3}', '{"about": {"segment_size": "64"}}'])
def test_malformed_facts_about_a_model_are_named_and_left_out(results, text, capsys):
    path = results / "armt" / "evaluation.json"
    path.write_text(text)
    (result,) = read_folder(results)
    assert result.about == About() and f"{path} is left out" in capsys.readouterr().out


def test_folders_that_say_nothing_about_the_model_are_read(results):
    (results / "armt" / "evaluation.json").write_text('{"seed": 42}')
    assert read_folder(results)[0].about == About()
