"""Background text: sentences, prepared once, drawn from any place."""

import numpy as np
import pytest
from tiny_babilong import make_data

from lm_experiments_tools.data import background, tokenizer
from lm_experiments_tools.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def test_sentences_end_at_punctuation_and_not_at_line_breaks():
    text = 'A first\nsentence. "Is it so?" he asked. Yes!\n\nCHAPTER II\n\nIt cost 3.50 in all. End'
    assert background.split_sentences(text) == [
        "A first sentence.", '"Is it so?', "he asked.", "Yes!", "CHAPTER II", "It cost 3.50 in all.", "End",
    ] or background.split_sentences(text) == [
        "A first sentence.", '"Is it so?" he asked.', "Yes!", "CHAPTER II", "It cost 3.50 in all.", "End",
    ]  # fmt: skip


def test_background_is_prepared_once_and_shared(data, monkeypatch):
    questions, words, text, folder = data
    monkeypatch.setattr(background, "_write", lambda *_: pytest.fail("tokenised again"))
    source = background.find_source([str(folder / "books")])
    again = background.prepare_background(source, words, tokenizer.tokenizer_identity(words), folder)
    assert again.num_tokens == text.num_tokens
    import pickle

    copy = pickle.loads(pickle.dumps(text.part(0.25, 0.5)))
    drawn = [part.draw(100, np.random.default_rng(0)) for part in (copy, text.part(0.25, 0.5))]
    assert (drawn[0][0] == drawn[1][0]).all() and (drawn[0][1] == drawn[1][1]).all()


def test_parts_of_a_background_do_not_overlap(data):
    text = data[2]
    first, last = text.part(0, 0.9), text.part(0.9, 1)
    assert first.num_tokens + last.num_tokens == text.num_tokens and first.borders[-1] == last.borders[0]


def test_background_is_read_across_record_batches(data, tmp_path, monkeypatch):
    questions, words, text, folder = data
    monkeypatch.setattr(background, "BATCH_SENTENCES", 7)
    source = background.find_source([str(folder / "books")])
    pieces = background.prepare_background(source, words, "x", tmp_path)
    assert len(pieces.tokens) > 50
    for size in (1, 500, text.num_tokens):
        whole, cut = (part.draw(size, np.random.default_rng(3)) for part in (text, pieces))
        assert (whole[0] == cut[0]).all() and (whole[1] == cut[1]).all() and len(cut[0]) == size


@pytest.mark.parametrize("num_tokens", [150, 1000])
def test_a_short_background_is_read_in_a_cycle_if_asked_for(data, num_tokens):
    whole = data[2]
    once = whole.part(0.5, 0.505)
    cycle = background.Background(once.name, once.path, *once.shares, repeat=True)
    assert once.num_tokens < 150 and cycle.part(0, 0.9).repeat
    with pytest.raises(UserError, match=rf"has {once.num_tokens} tokens, .* needs {num_tokens}; .*repeat_background"):
        once.require(num_tokens)
    cycle.require(num_tokens)
    text, _ = once.draw(once.num_tokens, np.random.default_rng(0))
    starts = once.borders - once.borders[0]
    sentences = [text[start:stop].tolist() for start, stop in zip(starts, starts[1:])]
    firsts = set()
    for seed in range(20):
        drawn, borders = cycle.draw(num_tokens, np.random.default_rng(seed))
        assert len(drawn) == num_tokens == borders[-1] and borders[0] == 0
        pieces = [drawn[start:stop].tolist() for start, stop in zip(borders, borders[1:])]
        first = sentences.index(pieces[0])
        *expected, last = [sentences[(first + place) % len(sentences)] for place in range(len(pieces))]
        assert pieces[:-1] == expected and pieces[-1] == last[: len(pieces[-1])]
        firsts.add(first)
    assert firsts == set(range(len(sentences)))


def test_a_background_that_is_long_enough_is_never_repeated(data):
    whole = data[2]
    cycle = background.Background(whole.name, whole.path, repeat=True)
    for size in (1, 500, whole.num_tokens):
        usual, other = (text.draw(size, np.random.default_rng(3)) for text in (whole, cycle))
        assert (usual[0] == other[0]).all() and (usual[1] == other[1]).all()


def test_nothing_cannot_be_repeated(data):
    empty = background.Background(data[2].name, data[2].path, 0.5, 0.5, repeat=True)
    with pytest.raises(UserError, match="has 0 tokens, a sample needs 10"):
        empty.require(10)


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_a_prepared_background_that_was_cut_is_named(data, tmp_path, size):
    path = tmp_path / "background-x.arrow"
    path.write_bytes(data[2].path.read_bytes()[:size])
    with pytest.raises(UserError, match="background-x.arrow: cut or damaged .*remove it"):
        background.Background("books", path)


def test_background_comes_from_local_parquet_and_arrow_too(data, tmp_path):
    import datasets

    _, words, text, folder = data
    rows = datasets.Dataset.from_dict({"text": [(folder / "books" / name).read_text() for name in ("a.txt", "b.txt")]})
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(str(tmp_path / "parquet" / "part.parquet"))
    datasets.DatasetDict(train=rows).save_to_disk(str(tmp_path / "arrow"))
    for name in ("parquet", "arrow"):
        source = background.find_source([str(tmp_path / name)], "train")
        assert background.prepare_background(source, words, name, tmp_path).num_tokens == text.num_tokens
    with pytest.raises(UserError, match="split 'absent'"):
        background.find_source([str(tmp_path / "arrow")], "absent")


def test_a_background_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no-such-folder"):
        background.find_source([str(tmp_path / "no-such-folder")])
    with pytest.raises(UserError, match="no text in .*missing"):
        background.find_source([str(tmp_path / "missing"), str(tmp_path)])
    (tmp_path / "book.txt").write_text("Text is there.")
    with pytest.raises(UserError, match="no text in .*missing"):
        background.find_source([str(tmp_path / "book.txt"), str(tmp_path / "missing")])


def test_what_spells_a_special_token_in_a_book_is_text(data, tmp_path):
    words, line = data[1], "The GENERAL read <eos> on the wall and went away."
    (tmp_path / "book.txt").write_text(line)
    text = background.prepare_background(background.find_source([str(tmp_path)]), words, "special", tmp_path)
    tokens = text.slice(0, text.num_tokens)
    assert words.decode(tokens) == f" {line}" and not set(tokens.tolist()) & set(words.all_special_ids)
    assert not set(tokens.tolist()) & set(words.encode(tokenizer.GEN))
