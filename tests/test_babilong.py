"""BABILong samples: exact length, facts in order and whole, a pure function of (seed, epoch, index)."""

import numpy as np
import pytest
import torch
from tiny_babilong import make_data
from torch.utils.data import DataLoader

from lm_experiments_tools.data import tokenizer
from lm_experiments_tools.data.babilong import (
    BabilongDataset,
    Lengths,
    collate,
    hold_out,
    question_size,
    select_questions,
)
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.sampling import KeyedDataset, TrainSampler, epoch_order


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def dataset(data, sample_size=200, seed=0, segments=1, **options):
    questions, words, text, _ = data
    lengths = {name: options.pop(name) for name in ("vary_n_segments", "mixed_length_ratio") if name in options}
    return BabilongDataset(questions, words, text, Lengths(sample_size, 64, segments, **lengths), seed, **options)


def test_the_context_has_exactly_the_asked_size_and_holds_all_facts_in_order(data):
    questions, words, _, _ = data
    samples = dataset(data)
    for index in range(50):
        sample = samples.sample(0, index)
        prompt, answer = samples.prompts[index], samples.answers[index]
        assert len(sample["input_ids"]) == 200 + len(prompt) + len(answer)
        text = words.decode(sample["input_ids"])
        place = -1
        for fact in questions[index].facts:
            place = text.index(f" {fact}", place + 1)
        assert text.endswith(f" {questions[index].question}GEN {questions[index].answer}{words.eos_token}")


def test_only_the_answer_and_its_end_are_labelled(data):
    questions, words, _, _ = data
    sample = dataset(data).sample(0, 3)
    wanted = sample["labels"] != -100
    assert words.decode(sample["input_ids"][wanted]) == f" {questions[3].answer}{words.eos_token}"
    assert (sample["labels"][wanted] == sample["input_ids"][wanted]).all() and wanted[-1]


def test_no_special_token_marks_a_fact(data):
    """A tokenizer that adds a start token to every text must not put it before every fact."""
    questions, words, text, folder = data
    from tokenizers.processors import TemplateProcessing

    marked = type(words).from_pretrained(folder / next(p.name for p in folder.glob("tokenizer-*")))
    marked.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.PAD} $A", special_tokens=[(tokenizer.PAD, marked.pad_token_id)]
    )
    assert marked.encode(" a")[0] == marked.pad_token_id
    samples = BabilongDataset(questions, marked, text, Lengths(200), 0)
    assert marked.pad_token_id not in samples.sample(0, 0)["input_ids"]


def test_a_sample_depends_on_seed_epoch_and_index_alone(data):
    first, again = dataset(data).sample(2, 5), dataset(data).sample(2, 5)
    assert (first["input_ids"] == again["input_ids"]).all()
    for other in (dataset(data).sample(3, 5), dataset(data, seed=1).sample(2, 5)):
        assert (first["input_ids"] != other["input_ids"]).any()


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_samples_do_not_depend_on_workers_or_ranks(data, ranks):
    samples = dataset(data)

    def stream(workers, world_size):
        loaders = [
            iter(
                DataLoader(
                    KeyedDataset(samples),
                    batch_sampler=TrainSampler(len(samples), 4 // world_size, 0, rank, world_size, start=290),
                    collate_fn=lambda rows: rows,
                    num_workers=workers,
                )
            )
            for rank in range(world_size)
        ]
        return [row["input_ids"].tolist() for _ in range(6) for loader in loaders for row in next(loader)]

    assert stream(workers=2, world_size=ranks) == stream(workers=0, world_size=1)


def test_every_epoch_is_its_own_permutation():
    orders = [epoch_order(50, 7, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any()
    batches = iter(TrainSampler(50, 30, 7, 0, 1, start=0))
    keys = [key for _ in range(5) for key in next(batches)]
    assert sorted(keys) == [(epoch, index) for epoch in range(3) for index in range(50)]


def test_facts_keep_to_the_asked_part_of_the_context(data):
    questions, words, _, _ = data
    samples = dataset(data, sample_size=400, task_start_pct=0.5, task_end_pct=0.75)
    for index in range(40):
        text = words.decode(samples.sample(0, index)["input_ids"])
        facts = questions[index].facts
        before = len(words.encode(text[: text.index(f" {facts[0]}")]))
        upto_last = len(words.encode(text[: text.rindex(f" {facts[-1]}")]))
        fact_sizes = [len(words.encode(f" {fact}")) for fact in facts]
        background_size = 400 - sum(fact_sizes)
        assert before >= 0.5 * background_size
        assert upto_last - sum(fact_sizes[:-1]) <= 0.75 * background_size


def lengths_of(samples, number=300):
    sizes = [len(samples.sample(0, i)["input_ids"]) - len(samples.prompts[i]) - len(samples.answers[i])
             for i in range(number)]  # fmt: skip
    return np.array(sizes)


def test_vary_n_segments_draws_every_number_of_segments(data):
    sizes = lengths_of(dataset(data, sample_size=4 * 64 - 10, segments=4, vary_n_segments=True))
    values, counts = np.unique(sizes, return_counts=True)
    # facts of up to 10 sentences need two segments of 64 tokens: such samples are never of one
    assert values.tolist() == [64 - 10, 128 - 10, 192 - 10, 256 - 10] and counts.min() > 20


def test_mixed_length_ratio_is_the_probability_of_a_shorter_sample(data):
    sizes = lengths_of(dataset(data, sample_size=4 * 64 - 10, segments=4, mixed_length_ratio=0.3))
    assert abs((sizes < sizes.max()).mean() - 0.3) < 0.08
    assert (lengths_of(dataset(data, sample_size=246, segments=4)) == 246).all()


def test_validation_and_training_share_no_story(data):
    questions = data[0]
    train, valid = hold_out(questions, 50)
    assert not {q.story for q in train} & {q.story for q in valid} and 50 <= len(valid) < 60
    assert train + valid == questions
    with pytest.raises(UserError, match="300"):
        hold_out(questions, 300)


def test_questions_with_more_facts_are_left_out(data):
    assert {len(q.facts) for q in select_questions(data[0], 4)} == {2, 4}
    with pytest.raises(UserError, match="max_n_facts 1 .* shortest has 2"):
        select_questions(data[0], 1)


def test_a_story_may_start_late_but_keeps_what_the_answer_needs(data):
    questions, words, text, _ = data
    kept = select_questions(questions, 4, shorten=True)
    assert len(kept) > len(select_questions(questions, 4))
    samples = BabilongDataset(kept, words, None, Lengths(None), 0, vary_up_to_n_facts=4)
    numbers = set()
    for index, question in enumerate(kept[:100]):
        for epoch in range(3):
            context = words.decode(samples.sample(epoch, index)["input_ids"])
            number = context.count(".")
            assert context.startswith("".join(f" {fact}" for fact in question.facts[-number:]))
            assert number <= 4 and question.facts[question.supporting[0]] in context
            numbers.add(number)
    assert numbers == {1, 2, 3, 4}


def test_what_does_not_fit_is_refused_at_the_start(data):
    with pytest.raises(UserError, match="sample_size 40 is smaller than the facts"):
        dataset(data, sample_size=40)
    with pytest.raises(UserError, match=r"has \d+ tokens, a sample needs 1000000"):
        dataset(data, sample_size=1_000_000)


LIMIT = 40  # tokens: four facts, of up to ten


def is_long(data, question):
    return sum(len(data[1].encode(f" {fact}")) for fact in question.facts) > LIMIT


def test_a_question_that_is_too_long_is_named_with_its_place_length_and_limit(data):
    longest = max(data[0], key=lambda question: sum(len(data[1].encode(f" {fact}")) for fact in question.facts))
    with pytest.raises(UserError) as error:
        dataset(data, sample_size=LIMIT)
    size = sum(len(data[1].encode(f" {fact}")) for fact in longest.facts)
    name = f"sample {data[0].index(longest)} ({longest.where}: {size} tokens, {len(longest.facts)} facts)"
    assert f"sample_size {LIMIT} is smaller than the facts of {name}" in str(error.value)


def test_long_questions_are_skipped_if_asked_for(data):
    samples = dataset(data, sample_size=LIMIT, long_samples="skip")
    assert samples.questions == [question for question in data[0] if not is_long(data, question)]
    assert samples.num_long == len(data[0]) - len(samples) > 0
    for index in range(len(samples)):
        text = data[1].decode(samples.sample(0, index)["input_ids"])
        question = samples.questions[index]
        assert text.endswith(f" {question.question}GEN {question.answer}{data[1].eos_token}")


def test_long_questions_lose_their_earliest_facts_if_asked_for(data):
    questions, words, _, _ = data
    samples = dataset(data, sample_size=LIMIT, long_samples="truncate")
    assert len(samples) == len(questions) and samples.num_long == sum(is_long(data, q) for q in questions) > 0
    for index, question in enumerate(questions):
        sample = samples.sample(0, index)
        assert len(sample["input_ids"]) == LIMIT + len(samples.prompts[index]) + len(samples.answers[index])
        text = words.decode(sample["input_ids"])
        assert text.endswith(f" {question.question}GEN {question.answer}{words.eos_token}")
        kept, sizes = 0, [len(words.encode(f" {fact}")) for fact in reversed(question.facts)]
        while kept < len(sizes) and sum(sizes[: kept + 1]) <= LIMIT:
            kept += 1
        place = -1
        for fact in question.facts[len(question.facts) - kept :]:
            place = text.index(f" {fact}", place + 1)


def test_a_story_that_may_start_late_starts_where_the_rest_fits(data):
    samples = dataset(data, sample_size=LIMIT, vary_up_to_n_facts=10, long_samples="truncate")
    assert set(lengths_of(samples)) == {LIMIT}
    for (first, last), question, facts in zip(samples.first_facts, samples.questions, samples.facts, strict=True):
        assert sum(map(len, facts[first:])) <= LIMIT and first <= last == max(first, min(question.supporting))


def test_samples_that_fit_are_the_same_however_long_ones_are_treated(data):
    usual, *others = (dataset(data, long_samples=choice) for choice in ("error", "skip", "truncate"))
    for other in others:
        assert other.num_long == 0 and len(other) == len(usual)
        assert (other.sample(1, 5)["input_ids"] == usual.sample(1, 5)["input_ids"]).all()


def test_a_limit_that_leaves_nothing_is_refused(data):
    with pytest.raises(UserError, match="long_samples skip leaves none of 300 questions .* 5 tokens"):
        dataset(data, sample_size=5, long_samples="skip")
    with pytest.raises(UserError, match="sample_size 5 is smaller than the last fact of sample 0 .*, line 3: "):
        dataset(data, sample_size=5, long_samples="truncate")


def test_collate_pads_on_the_right_and_labels_no_padding(data):
    samples = dataset(data, sample_size=246, segments=4, vary_n_segments=True)
    rows = [samples.sample(0, i) for i in range(8)]
    batch = collate(rows, pad_token_id=0)
    for i, row in enumerate(rows):
        size = len(row["input_ids"])
        assert batch["attention_mask"][i].tolist() == [1] * size + [0] * (batch["input_ids"].shape[1] - size)
        assert batch["input_ids"][i, :size].tolist() == row["input_ids"].tolist()
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert batch["labels"].dtype == torch.long


def test_question_size_is_the_most_tokens_behind_a_context(data):
    questions, words, _, _ = data
    samples = dataset(data)
    assert question_size(questions, words) >= max(
        len(prompt) + len(answer) for prompt, answer in zip(samples.prompts, samples.answers, strict=True)
    )


def test_a_trained_tokenizer_is_lossless_and_cached(data):
    _, words, _, folder = data
    text = " Mary went to the kitchen. Ünïcode 漢字 …"
    assert words.decode(words.encode(text)) == text
    again = tokenizer.train_tokenizer(iter(()), "test", 600, folder)
    assert again.get_vocab() == words.get_vocab()
    assert words.pad_token_id != words.eos_token_id and len(words.encode(tokenizer.GEN)) == 1


def test_contexts_of_facts_alone_tell_their_lengths(data):
    questions, words, _, _ = data
    samples = BabilongDataset(questions[:20], words, None, Lengths(None), 0)
    assert samples.sample_lengths == [len(sample["input_ids"]) for sample in samples]
    assert len(set(samples.sample_lengths)) > 1
