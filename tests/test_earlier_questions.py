"""Samples that ask the earlier questions of their story too."""

import pytest

from lm_experiments_tools.data import babi, babi_simulator, background, embedded_text, tokenizer
from lm_experiments_tools.data.babilong import BabilongDataset, Lengths


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The five questions of a story of qa2, tokenizer and background."""
    folder = tmp_path_factory.mktemp("data")
    questions = babi.read_questions(babi_simulator.write_task(folder, "qa2", "train", 50, seed=0))  # ends with a story
    stream = embedded_text.sentences(seed=1)
    (folder / "book.txt").write_text("\n".join(next(stream) for _ in range(400)))
    source = background.find_source([str(folder / "book.txt")])
    texts = [f" {s}" for q in questions for s in (*q.facts, q.question, q.answer)] + list(source.texts())
    words = tokenizer.train_tokenizer(texts, "test", 600, folder)
    text = background.prepare_background(source, words, tokenizer.tokenizer_identity(words), folder)
    return questions[-5:], words, text


def samples(data, size=None, **options):
    questions, words, text = data
    return BabilongDataset(
        questions, words, text if size else None, Lengths(size), seed=0, earlier_questions=True, **options
    )


def written(question, words):
    return f" {question.question}GEN {question.answer}{words.eos_token}"


def size_of(text, words):
    return len(words.encode(text, add_special_tokens=False))


def test_earlier_questions_are_asked_and_their_answers_are_targets(data):
    story, words, _ = data
    sample = samples(data, 600).sample(0, 4)
    text, target = words.decode(sample["input_ids"]), sample["labels"] != -100
    assert words.decode(sample["labels"][target]) == "".join(f" {q.answer}{words.eos_token}" for q in story)
    assert (sample["labels"][target] == sample["input_ids"][target]).all() and (sample["input_ids"] >= 0).all()
    for question in story[:-1]:
        assert f" {question.facts[-1]}{written(question, words)}" in text
    assert text.endswith(written(story[-1], words))


def test_the_context_keeps_its_size_and_the_latest_questions_come_first(data):
    questions, words, _ = data
    facts = sum(size_of(f" {fact}", words) for fact in questions[-1].facts)
    last, before = (size_of(written(question, words), words) for question in questions[:-3:-1])
    for room, asked in ((0, 1), (before - 1, 1), (before, 2)):
        sample = samples(data, facts + room).sample(0, 4)
        assert len(sample["input_ids"]) == facts + room + last
        assert words.decode(sample["input_ids"]).count("GEN") == asked


def test_a_question_is_asked_where_the_story_has_its_facts_and_only_there(data):
    story, words, _ = data
    facts, outcomes = story[-1].facts, set()
    late = samples(data, vary_up_to_n_facts=len(facts))
    for epoch in range(20):
        text = facts_alone = words.decode(late.sample(epoch, 4)["input_ids"])
        for question in story:
            facts_alone = facts_alone.replace(written(question, words), "")
        start = next(i for i in range(len(facts)) if facts_alone == "".join(f" {fact}" for fact in facts[i:]))
        for question in story[:-1]:
            asked = f" {question.facts[-1]}{written(question, words)}" in text
            assert asked == (min(question.supporting) >= start)
            outcomes.add(asked)
    assert outcomes == {True, False}
