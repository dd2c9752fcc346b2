"""Ten documents of very different sizes, prepared in four shards, for the tests."""

import numpy as np
import pytest
from tiny_corpora import prepare

from lm_experiments_tools.data import language_modeling, tokenizer
from lm_experiments_tools.data.corpus import Corpus

WORDS = "the whale, Ünïcode 漢字 and a ship of\nEngland went by; nothing\n\nelse 3.14 … happened to her".split(" ")


def text(number, size):
    """A document of `size` words."""
    rng = np.random.default_rng(number)
    return f"Chapter {number}. " + " ".join(rng.choice(WORDS, size))


TEXTS = [text(number, size) for number, size in enumerate([400, 3, 60, 1, 900, 20, 250, 5, 7, 130])]


def make_words(folder):
    """A tokenizer of 300 tokens, in a folder."""
    tokenizer.train_tokenizer(TEXTS, "pieces", 300, folder).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def make_books(folder, words):
    """The corpus."""
    write_books(folder / "books")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_modeling, "_groups", by_threes)
        prepare(folder / "books", folder / "corpus", tokenizer=str(words))
    return Corpus(folder / "corpus")


def write_books(folder, texts=TEXTS):
    folder.mkdir(parents=True)
    for number, content in enumerate(texts):
        (folder / f"{number:03d}.txt").write_text(content)


def by_threes(texts, size):
    texts = list(texts)
    return [texts[start : start + 3] for start in range(0, len(texts), 3)]


def decoded(corpus):
    words = corpus.tokenizer()
    return [words.decode(corpus.read(number), skip_special_tokens=True) for number in range(len(corpus))]
