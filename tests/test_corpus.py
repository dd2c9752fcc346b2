"""Documents for pre-training: prepared without loss, restartable, damage and wrong input named."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_books import TEXTS, by_threes, decoded, make_books, make_words, write_books
from tiny_corpora import prepare

from lm_experiments_tools.data import corpus as corpora
from lm_experiments_tools.data import language_modeling, rows
from lm_experiments_tools.data.corpus import Corpus
from lm_experiments_tools.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return make_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def books(tmp_path_factory, words):
    return make_books(tmp_path_factory.mktemp("books"), words)


def test_the_shards_decode_to_the_text_and_every_document_ends_once(books):
    assert len(list((books.folder / "shards").glob("*.json"))) == 4
    assert decoded(books) == TEXTS
    ends = [np.flatnonzero(books.read(n) == books.tokenizer().eos_token_id).tolist() for n in range(len(books))]
    assert ends == [[size - 1] for size in books.sizes]
    assert books.bytes.tolist() == [len(content.encode()) for content in TEXTS]


def test_what_spells_a_special_token_is_text(tmp_path, words):
    content = "GENTLEMEN of <eos> GENEVA, <pad> and GEN"
    (tmp_path / "a.txt").write_text(content)
    prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=str(words))
    made = Corpus(tmp_path / "out")
    assert decoded(made) == [content] and (made.read(0) == made.tokenizer().eos_token_id).sum() == 1


@pytest.mark.parametrize("layout", ["folders", "files"])
def test_the_splits_of_a_folder_of_text_are_kept_apart(tmp_path, words, layout):
    for number, split in enumerate(("train", "validation", "test")):
        path = tmp_path / "data" / (f"{split}/0.txt" if layout == "folders" else f"{split}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEXTS[number])
    for number, split in enumerate(("train", "validation", "test")):
        prepare(tmp_path / "data", tmp_path / split, tokenizer=str(words), split=split)
        assert decoded(Corpus(tmp_path / split)) == [TEXTS[number]]


def test_the_manifest_counts_and_names_what_the_shards_hold(books):
    manifest = json.loads((books.folder / "manifest.json").read_text())
    assert manifest["documents"] == 10 and manifest["tokens"] == books.sizes.sum()
    assert manifest["bytes"] == sum(len(content.encode()) for content in TEXTS)
    for shard in manifest["shards"]:
        for part, digest in shard["sha256"].items():
            path = corpora.part_path(books.folder, shard["name"], part)
            summed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
            assert summed.split()[0] == digest


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "arrow", "stream"])
def test_rows_of_a_dataset_are_documents_and_empty_ones_are_left_out(tmp_path, words, kind):
    import datasets

    data = datasets.Dataset.from_dict({"body": [TEXTS[0], "", None, TEXTS[1]], "number": [1, 2, 3, 4]})
    (tmp_path / "data").mkdir()
    if kind == "arrow":
        data.save_to_disk(str(tmp_path / "data"))
    elif kind == "jsonl":
        data.to_json(str(tmp_path / "data" / "train.jsonl"))
    else:
        data.to_parquet(str(tmp_path / "data" / "train-0.parquet"))
        data.select([0]).to_parquet(str(tmp_path / "data" / "test-0.parquet"))
    options = dict(tokenizer=str(words), column="body", streaming=kind == "stream")
    manifest = prepare(tmp_path / "data", tmp_path / "out", **options)
    assert decoded(Corpus(tmp_path / "out")) == [TEXTS[0], TEXTS[1]]
    assert manifest["read"] == 4
    if kind == "parquet":
        prepare(tmp_path / "data", tmp_path / "test", split="test", **options)
        assert decoded(Corpus(tmp_path / "test")) == [TEXTS[0]]
        with pytest.raises(UserError, match="named after the split 'validation'; there are test, train"):
            prepare(tmp_path / "data", tmp_path / "none", split="validation", **options)


def test_lines_become_documents_at_headings(tmp_path, words):
    lines = ["", " = One = ", "", " First. ", " = = Part = = ", " Second. ", " = Two = ", " Third. "]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    prepare(tmp_path / "train.jsonl", tmp_path / "out", tokenizer=str(words), document_start="^ = [^=]")
    found = decoded(Corpus(tmp_path / "out"))
    assert found == ["\n", "".join(f"{line}\n" for line in lines[1:6]), " = Two = \n Third. \n"]


def test_several_processes_make_the_same_files(tmp_path, words, monkeypatch):
    write_books(tmp_path / "books")
    monkeypatch.setattr(language_modeling, "_groups", by_threes)
    for processes in (1, 2):
        prepare(tmp_path / "books", tmp_path / str(processes), tokenizer=str(words), processes=processes)
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "12")
    assert (
        one["shards"] == two["shards"]
        and len(one["shards"]) == 4
        and one["tokens"] == Corpus(tmp_path / "1").sizes.sum()
    )


def test_without_a_tokenizer_one_is_trained_and_kept(tmp_path):
    write_books(tmp_path / "books")
    prepare(tmp_path / "books", tmp_path / "out", vocab_size=280, max_documents=3)
    made = Corpus(tmp_path / "out")
    assert len(made.tokenizer()) == 280 and decoded(made) == TEXTS[:3]


def test_a_preparation_goes_on_with_what_is_missing(tmp_path, words, monkeypatch):
    """Killed after two shards of four; then one of them is damaged."""
    write_books(tmp_path / "books")
    monkeypatch.setattr(language_modeling, "_groups", by_threes)
    made, write = [], language_modeling.make_shard

    def until(last):
        def make(folder, number, texts):
            if number > last:
                raise KeyboardInterrupt
            made.append(number)
            return write(folder, number, texts)

        return make

    paths = (tmp_path / "books", tmp_path / "out")
    monkeypatch.setattr(language_modeling, "make_shard", until(1))
    with pytest.raises(KeyboardInterrupt):
        prepare(*paths, tokenizer=str(words))
    with pytest.raises(UserError, match="the preparation of .*out has not ended: run the command .* again"):
        Corpus(tmp_path / "out")
    damaged = tmp_path / "out" / "shards" / "00001.tokens.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(language_modeling, "make_shard", until(9))
    prepare(*paths, tokenizer=str(words))
    assert made == [0, 1, 1, 2, 3] and decoded(Corpus(tmp_path / "out", verify=True)) == TEXTS
    prepare(*paths, tokenizer=str(words))
    assert made == [0, 1, 1, 2, 3]


def test_what_a_kill_cut_is_made_again_and_a_tokenizer_of_other_options_is_not_kept(tmp_path, words, monkeypatch):
    write_books(tmp_path / "books")
    paths = (tmp_path / "books", tmp_path / "out")
    monkeypatch.setattr(language_modeling, "_make_shards", None)  # killed behind the tokenizer
    with pytest.raises(TypeError):
        prepare(*paths, vocab_size=280)
    monkeypatch.undo()
    whole = prepare(*paths, tokenizer=str(words))
    assert len(Corpus(tmp_path / "out").tokenizer()) == 300
    part = tmp_path / "out" / "shards" / "00000.json"
    part.write_text(part.read_text()[:50])
    assert prepare(*paths, tokenizer=str(words)) == whole and json.loads(part.read_text()) == whole["shards"][0]


def test_a_stream_of_other_content_is_another_source(tmp_path, words):
    for content in ("first", "second"):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"text": content}) + "\n")
        prepare(tmp_path / "rows.jsonl", tmp_path / content, streaming=True, tokenizer=str(words))
    with pytest.raises(UserError, match="begun with digest of the text"):
        prepare(tmp_path / "rows.jsonl", tmp_path / "first", streaming=True, tokenizer=str(words))


def test_a_killed_process_is_continued_to_the_same_shards(tmp_path, words, books):
    write_books(tmp_path / "books", TEXTS * 30)
    slow = (
        "import sys, time\nfrom lm_experiments_tools.data import language_modeling as m\nwrite = m.make_shard\n"
        "m.make_shard = lambda *args: (write(*args), time.sleep(0.5))[0]\n"
        "m._groups = lambda texts, size: ([text] for text in texts)\nm.main(sys.argv[1:])"
    )
    options = ["prepare", "--input", tmp_path / "books", "--output", tmp_path / "out", "--tokenizer", words]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *map(str, options), "--processes", "1"], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 100
    while len(list((tmp_path / "out").glob("shards/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shards/*.json")}
    assert len(kept) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_modeling, "_groups", lambda texts, size: ([one] for one in texts))
        prepare(tmp_path / "books", tmp_path / "out", tokenizer=str(words))
    assert decoded(Corpus(tmp_path / "out", verify=True)) == TEXTS * 30
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_bad_input_is_named(tmp_path, words, books, monkeypatch):
    write_books(tmp_path / "books")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": "text", "id": 3}) + "\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfd")

    def error(*inputs, **options):
        with pytest.raises(UserError) as error:
            prepare(*inputs, tmp_path / "out", tokenizer=str(words), **options)
        return str(error.value)

    assert "no column 'text'; its columns are body, id" in error(tmp_path / "rows.jsonl")
    assert "no column 'text'; its columns are body, id" in error(tmp_path / "rows.jsonl", streaming=True)
    assert "no regular expression" in error(tmp_path / "rows.jsonl", column="body", document_start="(")
    assert "no document with text" in error(tmp_path / "empty.txt")
    assert "'id' has no text but values like 3" in error(tmp_path / "rows.jsonl", column="id")
    assert "no .txt file in" in error(tmp_path / "books", tmp_path / "rows.jsonl")
    assert "no .txt file in" in error(tmp_path / "books", tmp_path / "absent")
    assert "no file in" in error(tmp_path / "books", split="test")
    prepare(tmp_path / "books", tmp_path / "out", tokenizer=str(words))  # what failed above binds nobody
    assert "out was begun with column 'text', now 'body'; digest of the" in error(
        tmp_path / "rows.jsonl", column="body"
    )
    (tmp_path / "rows.jsonl").write_text('{"text": "abc"}\n{"text": ')
    assert "rows.jsonl: cut or damaged, or empty" in error(tmp_path / "rows.jsonl")
    assert "rows.jsonl' broke off (JSON parse error" in error(tmp_path / "rows.jsonl", streaming=True)
    (tmp_path / "rows.jsonl").write_text("")
    assert "rows.jsonl: cut or damaged, or empty" in error(tmp_path / "rows.jsonl")
    (tmp_path / "books" / "rows.jsonl").write_text('{"text": "abc"}')
    assert "has text, 000.txt, and rows, rows.jsonl" in error(tmp_path / "books")
    with pytest.raises(UserError, match="binary.txt: not UTF-8"):
        prepare(tmp_path / "binary.txt", tmp_path / "binary", tokenizer=str(words))
    with pytest.raises(UserError, match="is no prepared corpus; make one: python -m .* prepare --input"):
        Corpus(tmp_path / "books")


def test_a_hub_that_is_not_reached_says_how_to_do_without(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach 'some/books' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr("datasets.get_dataset_config_names", lambda name: ["default"])
    with pytest.raises(UserError, match="hf download --repo-type dataset some/books --local-dir FOLDER"):
        rows.load_rows("some/books", "train")


def test_a_damaged_shard_is_named_by_its_digest(tmp_path, words):
    write_books(tmp_path / "books")
    prepare(tmp_path / "books", tmp_path / "out", tokenizer=str(words))
    path = tmp_path / "out" / "shards" / "00000.tokens.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"ab")
    with pytest.raises(UserError, match="00000.tokens.npy is damaged: its SHA-256 is .* the manifest has .* again"):
        Corpus(tmp_path / "out", verify=True)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="00000.tokens.npy is damaged"):
        Corpus(tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match="00000.tokens.npy is missing"):
        Corpus(tmp_path / "out", verify=True)


def test_a_part_of_a_corpus_is_its_documents_in_any_process(books):
    part = pickle.loads(pickle.dumps(books.part(2, 7).part(1, 4)))
    assert decoded(part) == TEXTS[3:6] and len(part) == 3 and part.sizes.tolist() == books.sizes[3:6].tolist()


def test_the_command_prepares_and_refuses_in_one_line(tmp_path, words):
    write_books(tmp_path / "books")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "lm_experiments_tools.data.language_modeling", *map(str, arguments)],
            cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    options = ["--output", tmp_path / "out", "--tokenizer", words, "--processes", 1]
    done = run("prepare", "--input", tmp_path / "books", *options)
    assert done.returncode == 0 and "10 documents" in done.stdout, done.stderr
    refused = run("prepare", "--input", tmp_path / "books", "--output", tmp_path / "out", "--tokenizer", "no-such")
    lines = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert refused.returncode == 2 and len(lines) == 1 and "begun with tokenizer" in lines[0]
    assert "Traceback" not in refused.stderr
