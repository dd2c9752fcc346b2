"""Documents for pre-training: prepared without loss, cut and packed without reading across their borders."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import close
from torch.utils.data import DataLoader
from transformers import LlamaConfig

from lm_experiments_tools.data import corpus as corpora
from lm_experiments_tools.data import language_modeling, rows, tokenizer
from lm_experiments_tools.data.corpus import Corpus
from lm_experiments_tools.data.pieces import (
    Evenly,
    Mixture,
    PieceDataset,
    collate_rows,
    cut,
    even_step,
    pack,
    whole_windows,
)
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.sampling import KeyedDataset, TrainSampler
from modeling_armt import ArmtForCausalLM

ROOT = Path(__file__).parents[1]
WORDS = "the whale, Ünïcode 漢字 and a ship of\nEngland went by; nothing\n\nelse 3.14 … happened to her".split(" ")


def text(number, size):
    """A document of `size` words."""
    rng = np.random.default_rng(number)
    return f"Chapter {number}. " + " ".join(rng.choice(WORDS, size))


TEXTS = [text(number, size) for number, size in enumerate([400, 3, 60, 1, 900, 20, 250, 5, 7, 130])]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer in a folder."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer.train_tokenizer(TEXTS, "pieces", 300, folder).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def prepare(*inputs, output, **options):
    values = dict(input=list(map(str, inputs)), output=str(output), processes=1) | options
    return language_modeling.prepare(language_modeling.PrepareArgs(**values))


@pytest.fixture(scope="module")
def books(tmp_path_factory, words):
    """Ten documents of very different sizes, in several shards."""
    folder = tmp_path_factory.mktemp("books")
    write_books(folder / "books")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(language_modeling, "_groups", by_threes)
    prepare(folder / "books", output=folder / "corpus", tokenizer=str(words))
    monkey.undo()
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


def test_the_shards_decode_to_the_text_and_every_document_ends_once(books):
    assert len(list((books.folder / "shards").glob("*.json"))) == 4
    assert decoded(books) == TEXTS
    ends = [np.flatnonzero(books.read(n) == books.tokenizer().eos_token_id).tolist() for n in range(len(books))]
    assert ends == [[size - 1] for size in books.sizes]
    assert books.bytes.tolist() == [len(content.encode()) for content in TEXTS]


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
    manifest = prepare(tmp_path / "data", output=tmp_path / "out", **options)
    assert decoded(Corpus(tmp_path / "out")) == [TEXTS[0], TEXTS[1]]
    assert manifest["read"] == 4
    if kind == "parquet":
        prepare(tmp_path / "data", output=tmp_path / "test", split="test", **options)
        assert decoded(Corpus(tmp_path / "test")) == [TEXTS[0]]
        with pytest.raises(UserError, match="named after the split 'validation'; there are test, train"):
            prepare(tmp_path / "data", output=tmp_path / "none", split="validation", **options)


def test_lines_become_documents_at_headings(tmp_path, words):
    lines = ["", " = One = ", "", " First. ", " = = Part = = ", " Second. ", " = Two = ", " Third. "]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    prepare(tmp_path / "train.jsonl", output=tmp_path / "out", tokenizer=str(words), document_start="^ = [^=]")
    found = decoded(Corpus(tmp_path / "out"))
    assert found == ["\n", "".join(f"{line}\n" for line in lines[1:6]), " = Two = \n Third. \n"]


def test_several_processes_make_the_same_files(tmp_path, words, monkeypatch):
    write_books(tmp_path / "books")
    monkeypatch.setattr(language_modeling, "_groups", by_threes)
    for processes in (1, 2):
        prepare(tmp_path / "books", output=tmp_path / str(processes), tokenizer=str(words), processes=processes)
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "12")
    assert (
        one["shards"] == two["shards"]
        and len(one["shards"]) == 4
        and one["tokens"] == Corpus(tmp_path / "1").sizes.sum()
    )


def test_without_a_tokenizer_one_is_trained_and_kept(tmp_path):
    write_books(tmp_path / "books")
    prepare(tmp_path / "books", output=tmp_path / "out", vocab_size=280, max_documents=3)
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

    options = dict(output=tmp_path / "out", tokenizer=str(words))
    monkeypatch.setattr(language_modeling, "make_shard", until(1))
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "books", **options)
    with pytest.raises(UserError, match="the preparation of .*out has not ended: run the command .* again"):
        Corpus(tmp_path / "out")
    damaged = tmp_path / "out" / "shards" / "00001.tokens.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(language_modeling, "make_shard", until(9))
    prepare(tmp_path / "books", **options)
    assert made == [0, 1, 1, 2, 3] and decoded(Corpus(tmp_path / "out", verify=True)) == TEXTS
    prepare(tmp_path / "books", **options)
    assert made == [0, 1, 1, 2, 3]


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
        prepare(tmp_path / "books", output=tmp_path / "out", tokenizer=str(words))
    assert decoded(Corpus(tmp_path / "out", verify=True)) == TEXTS * 30
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_bad_input_is_named(tmp_path, words, books, monkeypatch):
    write_books(tmp_path / "books")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": "text", "id": 3}) + "\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfd")

    def error(*inputs, **options):
        with pytest.raises(UserError) as error:
            prepare(*inputs, output=tmp_path / "out", tokenizer=str(words), **options)
        return str(error.value)

    assert "no column 'text'; its columns are body, id" in error(tmp_path / "rows.jsonl")
    assert "no column 'text'; its columns are body, id" in error(tmp_path / "rows.jsonl", streaming=True)
    assert "no regular expression" in error(tmp_path / "rows.jsonl", column="body", document_start="(")
    assert "no document with text" in error(tmp_path / "empty.txt")
    assert "begun with digest of the text" in error(tmp_path / "books")
    (tmp_path / "rows.jsonl").write_text('{"text": "abc"}\n{"text": ')
    assert "rows.jsonl: cut or damaged" in error(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="binary.txt: not UTF-8"):
        prepare(tmp_path / "binary.txt", output=tmp_path / "binary", tokenizer=str(words))
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
    prepare(tmp_path / "books", output=tmp_path / "out", tokenizer=str(words))
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


@pytest.mark.parametrize("segments", [1, 3, 8])
def test_every_token_but_a_documents_first_is_a_target_once_an_epoch(books, segments):
    dataset = PieceDataset(books, 16, segments)
    targets, borders = Counter(), {}
    for index in range(len(dataset)):
        places = dataset.order[dataset.borders[index] : dataset.borders[index + 1]]
        cost = 0
        for place, row in zip(places, dataset[index], strict=True):
            document, start = int(dataset.pieces.document[place]), int(dataset.pieces.start[place])
            assert np.array_equal(row, books.read(document, start, start + len(row)))
            targets.update((document, start + offset) for offset in range(1, len(row)))
            cost += -(-len(row) // 16)
        assert cost <= segments
        borders[index] = cost
    expected = {(document, place) for document, size in enumerate(books.sizes) for place in range(1, size)}
    assert targets == dict.fromkeys(expected, 1)
    assert sum(borders.values()) / (segments * len(borders)) > 0.8  # little is wasted


def test_packing_wastes_little_and_loses_nothing():
    costs = np.random.default_rng(0).integers(1, 9, 1000)
    order, borders = pack(costs, 8)
    assert sorted(order) == list(range(1000))
    sums = np.add.reduceat(costs[order], borders[:-1])
    assert sums.max() <= 8 and len(sums) <= 1.03 * costs.sum() / 8


def test_cutting_by_hand():
    pieces = cut(np.array([1, 2, 10, 5]), 5)
    assert [tuple(map(int, piece)) for piece in zip(pieces.document, pieces.start, pieces.stop)] == [
        (1, 0, 2), (2, 0, 5), (2, 4, 9), (2, 8, 10), (3, 0, 5)
    ]  # fmt: skip
    windows = whole_windows(np.array([1, 4, 5, 9]), 4)
    assert [tuple(map(int, piece)) for piece in zip(windows.document, windows.start, windows.stop)] == [
        (2, 0, 5), (3, 0, 5), (3, 4, 9)
    ]  # fmt: skip


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    made = ArmtForCausalLM.from_backbone(config, segment_size=16, num_mem_tokens=2, d_mem=4).eval()
    for layer in made.memory_layers.values():
        torch.nn.init.normal_(layer.W_v)
    return made


def test_packed_documents_are_read_as_each_alone(books):
    """Neither attention nor memory passes from one row of a sample to another."""
    dataset, reader = PieceDataset(books, 16, 8), model()
    packed = next(dataset[index] for index in range(len(dataset)) if len(dataset[index]) > 2)
    batch = collate_rows([packed], 0)
    logits = reader(batch["input_ids"], batch["attention_mask"]).logits
    for row, ids in enumerate(packed):
        alone = reader(torch.from_numpy(ids.astype(np.int64))[None]).logits
        close(logits[row, : len(ids)], alone[0])


def test_the_loss_is_that_of_the_whole_logits(books):
    dataset, reader = PieceDataset(books, 16, 4), model()
    batch = collate_rows([dataset[0], dataset[len(dataset) - 1]], 0)
    loss = reader(**batch, output_memory_state=False).loss
    rows = [row.astype(np.int64) for index in (0, len(dataset) - 1) for row in dataset[index]]
    nats = targets = 0
    for row in rows:
        ids = torch.from_numpy(row)[None]
        nats += torch.nn.functional.cross_entropy(reader(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        targets += len(row) - 1
    close(loss, nats / targets)


def test_varied_samples_are_parts_of_their_piece_and_keyed(books):
    whole, varied = PieceDataset(books, 16, 4), PieceDataset(books, 16, 4, vary=True, stream=(3, 0))
    sizes = Counter()
    for epoch in range(20):
        for index in range(len(whole)):
            rows, again = varied.sample(epoch, index), varied.sample(epoch, index)
            assert all(np.array_equal(*pair) for pair in zip(rows, again, strict=True))
            if len(rows) == 1 and len(whole[index][0]) == 64:
                sizes[len(rows[0])] += 1
                assert bytes(rows[0]) in bytes(whole[index][0])
            elif len(rows) > 1:
                assert [len(row) for row in rows] == [len(row) for row in whole[index]]
    assert sizes.keys() == {16, 32, 48, 64}


def test_a_mixture_reads_each_corpus_evenly_and_by_weight(books):
    parts = [PieceDataset(books.part(0, 5), 16, 2), PieceDataset(books.part(5, 10), 16, 2)]
    plain = Mixture(parts)
    assert len(plain) == sum(map(len, parts))
    mixture = Mixture(parts, [3.0, 1.0])
    assert abs(len(mixture) - len(plain)) <= 1
    tokens, seen = [0, 0], [Counter(), Counter()]
    epochs = 12
    for epoch in range(epochs):
        for index in range(len(mixture)):
            rows = mixture.sample(epoch, index)
            number = int(index >= mixture.starts[1])
            tokens[number] += sum(map(len, rows))
            seen[number][bytes(np.concatenate(rows))] += 1
    assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.03)
    for counts, part in zip(seen, parts):
        assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == len(part)


def test_an_even_step_visits_all_places():
    for size in (1, 2, 3, 10, 97, 100, 5040):
        assert {index * even_step(size) % size for index in range(size)} == set(range(size))


def test_the_stream_does_not_depend_on_workers_or_ranks(books):
    dataset = Mixture([PieceDataset(books, 16, 2, vary=True, stream=(5, 0))])

    def stream(ranks, workers, batch):
        loaders = []
        for rank in range(ranks):
            sampler = TrainSampler(len(dataset), batch, 7, rank, ranks, start=0)
            loaders.append(
                iter(DataLoader(KeyedDataset(dataset), batch_sampler=sampler, num_workers=workers, collate_fn=list))
            )
        samples = []
        while len(samples) < 40:
            for loader in loaders:
                samples += [b"|".join(bytes(row) for row in rows) for rows in next(loader)]
        return samples[:40]

    assert stream(1, 0, 4) == stream(1, 2, 4) == stream(2, 0, 2) == stream(4, 0, 1)


def test_held_samples_are_spread_and_all_where_there_are_few(books):
    dataset = Mixture([PieceDataset(books, 16, 1, packed=False)])
    assert len(Evenly(dataset, None)) == len(Evenly(dataset, 10**6)) == len(dataset)
    places = Evenly(dataset, 5).places
    assert len(places) == 5 and np.diff(places).min() >= len(dataset) // 5


def test_a_part_of_a_corpus_is_its_documents_in_any_process(books):
    import pickle

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
