"""The pre-training scripts, shortened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_corpora import make_shared

from lm_experiments_tools.data.corpus import Corpus

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return make_shared(tmp_path_factory.mktemp("shared"))


def run_script(name, *arguments, **environment):
    """A script with the interpreter of these tests first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", f"scripts/pretraining/{name}", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in environment.items()},
    )  # fmt: skip


SHORT = (
    "--iters 1 --batch_size 1 --segment_size 16 --max_n_segments 2 --test_n_segments 2 --test_size 1 --valid_size 1 "
    "--valid_interval 1 --d_mem 4 --num_mem_tokens 2 --data_n_workers 0 --gradient_accumulation_steps 1"
).split()


def test_the_small_script_prepares_trains_and_compares(shared, tmp_path):
    done = run_script(
        "small.sh", shared / "train", tmp_path / "runs", *SHORT, "--model_cfg", shared / "llama",
        CORPORA=tmp_path / "corpora", VOCAB_SIZE=270, SEGMENTS=3, MODELS="armt full",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        len(Corpus(tmp_path / "corpora" / "small-train")) == 5 and len(Corpus(tmp_path / "corpora" / "small-test")) == 1
    )
    page = (tmp_path / "runs" / "losses" / "index.md").read_text()
    assert "armt, memory zero" in page and "armt, memory other" in page and "| full |" in page


def test_the_wikitext_script_makes_documents_of_lines(shared, tmp_path):
    import datasets

    lines = []
    for number, content in enumerate((shared / "train" / f"{n}.txt").read_text() for n in range(3)):
        lines += ["", f" = Title {number} = \n", "", *(f" {line}. \n" for line in content.split(". "))]
    folder = tmp_path / "wikitext" / "wikitext-103-raw-v1"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_dict({"text": lines}).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    done = run_script(
        "wikitext103.sh", tmp_path / "runs", *SHORT, "--from_pretrained", shared / "gpt2",
        CORPORA=tmp_path / "corpora", WIKITEXT=tmp_path / "wikitext", TOKENIZER=shared / "tokenizer", SEGMENTS=3,
        MODELS="armt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    corpus = Corpus(tmp_path / "corpora" / "wikitext103-train")
    assert len(corpus) == 4 and corpus.bytes.max() > 500  # the empty line before the first title is the fourth
    assert (tmp_path / "runs" / "losses" / "loss.png").exists()


def splits(folder, shared, rows=False):
    """Books in a folder for each split, as the original PG-19 has them, or as rows."""
    import datasets

    for split, name in (("train", "train"), ("validation", "test"), ("test", "test")):
        texts = [path.read_text() for path in sorted((shared / name).iterdir())]
        (folder / split).mkdir(parents=True)
        if rows:
            datasets.Dataset.from_dict({"text": texts}).to_parquet(str(folder / split / "0000.parquet"))
        for number, content in enumerate([] if rows else texts):
            (folder / split / f"{number}.txt").write_text(content)
    return folder


def test_the_pg19_script_keeps_the_splits_of_a_local_copy_apart(shared, tmp_path):
    done = run_script(
        "pg19.sh", tmp_path / "runs", *SHORT, "--from_pretrained", shared / "gpt2", CORPORA=tmp_path / "corpora",
        PG19=splits(tmp_path / "pg19", shared), TOKENIZER=shared / "tokenizer", SEGMENTS=3, MODELS="none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = {split: len(Corpus(tmp_path / "corpora" / f"pg19-{split}")) for split in ("train", "validation", "test")}
    assert sizes == {"train": 6, "validation": 2, "test": 2}
    assert "| none |" in (tmp_path / "runs" / "losses" / "index.md").read_text()


def test_the_llama_script_trains_lora_beside_the_memory(shared, tmp_path):
    done = run_script(
        "llama_lora.sh", tmp_path / "runs", *SHORT, CORPORA=tmp_path / "corpora",
        PG19=splits(tmp_path / "pg19", shared, rows=True), BACKBONE=shared / "llama-weights", SEGMENTS=3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(Corpus(tmp_path / "corpora" / "pg19-llama-weights-train")) == 6
    assert (tmp_path / "runs" / "armt" / "adapter" / "adapter_model.safetensors").exists()
    assert "armt, memory other" in (tmp_path / "runs" / "losses" / "index.md").read_text()
