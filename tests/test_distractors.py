"""Distractors: background that looks like facts, in training alone."""

import numpy as np
import pytest
from tiny_babilong import make_data

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


def test_pieces_of_facts_replace_the_given_share_of_the_background(data):
    questions, words, _, _ = data
    of_facts = {token for question in questions for fact in question.facts for token in words.encode(f" {fact}")}
    total = replaced = 0
    for one, other in changed(data, 0.03, samples=200):
        differing = one != other
        assert set(other[differing]) <= of_facts
        total, replaced = total + len(one), replaced + differing.sum()
    assert 0.018 < replaced / total < 0.03  # some less: pieces stand apart, and facts between them


def test_no_piece_is_more_than_half_a_fact_and_no_two_meet():
    fact = np.arange(100, 107)
    text = Distractors([fact], 0.1)(np.zeros(100_000, np.int32), np.random.default_rng(0))
    found = np.flatnonzero(text)
    runs = np.split(found, np.flatnonzero(np.diff(found) > 1) + 1)
    assert len(runs) > 500 and {len(run) for run in runs} == {1, 2, 3}
    assert all((np.diff(text[run]) == 1).all() for run in runs), "each is a part of the fact, in its order"
    assert {int(text[run[0]]) for run in runs} == set(range(100, 107)), "from everywhere in it"
    assert min(later[0] - run[-1] for run, later in zip(runs, runs[1:])) > 3


def test_facts_and_question_stay_as_they_are(data):
    questions, words, _, _ = data
    for index, (_, other) in enumerate(changed(data, 1.0, samples=30)):
        text, place = words.decode(other), -1
        for fact in questions[index].facts:
            place = text.index(f" {fact}", place + 1)
        assert text.endswith(f" {questions[index].question}GEN {questions[index].answer}{words.eos_token}")


def test_validation_and_test_have_none(tmp_path):
    args = BabilongArgs(task_dataset="qa1", simulated_questions=200, valid_size=20, test_size=5, max_n_segments=1,
                        segment_size=256, data_cache=str(tmp_path), distractor_ratio=0.5)  # fmt: skip
    task = BabilongTask(args, 0, SingleEngine())
    assert task.train.distractors is not None
    assert all(part.distractors is None for part in (task.valid, *task.tests.values()))


def test_it_is_a_share():
    with pytest.raises(UserError, match="distractor_ratio is 2; it lies between 0 and 1"):
        BabilongArgs(distractor_ratio=2)
