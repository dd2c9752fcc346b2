"""Distractors: background that looks like facts, in training alone."""

import numpy as np
import pytest
from tiny_babilong import make_data

from lm_experiments_tools.data import babi_simulator
from lm_experiments_tools.data.babilong import BabilongDataset, Lengths
from lm_experiments_tools.data.babilong_task import BabilongArgs, BabilongTask
from lm_experiments_tools.data.distractors import Distractors
from lm_experiments_tools.distributed.single import SingleEngine
from lm_experiments_tools.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def dataset(data, **options):
    questions, words, text, _ = data
    return BabilongDataset(questions, words, text, Lengths(400), 0, **options)


def changed(data, ratio, samples=100):
    """Of some samples: tokens without and with distractors, and where they differ."""
    plain, hard = dataset(data), dataset(data, distractor_ratio=ratio)
    for index in range(samples):
        one, other = (part.sample(0, index)["input_ids"] for part in (plain, hard))
        assert len(one) == len(other)
        yield one, other


def test_words_behind_the_become_places_with_the_given_probability(data):
    _, words, _, _ = data
    (the,) = words.encode(" the")
    places = {words.encode(f" {place}")[0] for place in babi_simulator.world.PLACES}
    behind = replaced = 0
    for one, other in changed(data, 0.5):
        candidates = [i + 1 for i, token in enumerate(one[:-1]) if token == the and one[i + 1] not in places]
        behind += len(candidates)
        differing = np.flatnonzero(one != other)
        replaced += len(differing)
        assert set(differing) <= set(candidates) and set(other[differing]) <= places
    assert behind > 500 and abs(replaced / behind - 0.5) < 0.05


def test_facts_and_question_stay_as_they_are(data):
    questions, words, _, _ = data
    for index, (_, other) in enumerate(changed(data, 1.0, samples=30)):
        text, place = words.decode(other), -1
        for fact in questions[index].facts:
            place = text.index(f" {fact}", place + 1)
        assert text.endswith(f" {questions[index].question}GEN {questions[index].answer}{words.eos_token}")


def test_a_task_without_such_answers_is_refused():
    with pytest.raises(UserError, match="distractor_ratio needs answers .* leave it out"):
        Distractors([np.array([1, 2, 3])], [np.array([1]), np.array([2, 3])], 0.5)  # the first begins its fact


def test_validation_and_test_have_none(tmp_path):
    args = BabilongArgs(task_dataset="qa1", simulated_questions=200, valid_size=20, test_size=5, max_n_segments=1,
                        segment_size=256, data_cache=str(tmp_path), distractor_ratio=0.5)  # fmt: skip
    task = BabilongTask(args, 0, SingleEngine())
    assert task.train.distractors is not None
    assert all(part.distractors is None for part in (task.valid, *task.tests.values()))


def test_it_is_a_probability():
    with pytest.raises(UserError, match="distractor_ratio is 2; it is a probability"):
        BabilongArgs(distractor_ratio=2)
