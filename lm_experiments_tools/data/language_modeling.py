"""Prepare documents for pre-training: tokenise them once into memory-mapped shards.

    python -m lm_experiments_tools.data.language_modeling prepare --input ~/data/books --output corpora/books
    python -m lm_experiments_tools.data.language_modeling prepare --input emozilla/pg19 --streaming \
        --tokenizer gpt2 --output corpora/pg19

Killed, it goes on when it is run again: whole shards are kept. `corpus.py` describes what it leaves. A document is
tokenised in one piece, which takes some hundred bytes of memory a character.
"""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .. import cli
from ..args import option
from ..distributed.single import SingleEngine
from ..errors import UserError
from ..evaluation.report import write_json
from ..loggers import progress_bar, say
from ..run_folder import locked
from . import corpus, tokenizer
from .background import Source
from .corpus import Shard
from .documents import find_documents

TOKENIZER_TEXT = 20_000_000  # characters of the first documents that a tokenizer is trained on


@dataclass
class PrepareArgs:
    """Options of the preparation."""

    input: list[str] | None = option(
        None, "text files or folders of them, a file a document; or Arrow, Parquet or JSON lines; or a hub name"
    )
    output: str | None = option(None, "folder of the corpus")
    split: str = option("train", "split of a dataset, or of a folder with names like train/ and test.txt")
    config_name: str | None = option(None, "configuration of a hub dataset")
    column: str = option("text", "column of a dataset that holds the text")
    streaming: bool = option(False, "read a dataset as it comes, without a copy in the cache of `datasets`")
    document_start: str | None = option(
        None,
        "rows are lines, and one that this regular expression is found in begins a document; default: a row is one",
    )
    max_documents: int | None = option(None, "take the first so many; default: all")
    tokenizer: str | None = option(None, "tokenizer by name or folder; default: one trained on the first documents")
    vocab_size: int = option(4096, "tokens of a trained tokenizer")
    processes: int | None = option(None, "processes that tokenise; default: one for each CPU core")
    shard_mb: int = option(32, "text of a shard, in millions of characters; a process holds some ten times as much")

    def __post_init__(self):
        if not self.input or self.output is None:
            raise UserError("give --input, the text, and --output, the folder of the corpus")
        for name in ("max_documents", "processes", "vocab_size", "shard_mb"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")


def prepare(args: PrepareArgs) -> dict[str, Any]:
    """Make what is missing of a corpus; returns its manifest.

    Raises:
        UserError: nothing to read, nothing in it, a folder made from something else or in use, no memory left.
    """
    folder = Path(args.output)
    source = find_documents(args.input, args.split, args.config_name, args.column, args.streaming, args.document_start)
    with locked(folder, SingleEngine()):
        _begin(folder, args, source)
        found = _whole_shards(folder)
        if (folder / corpus.MANIFEST).exists():
            manifest = corpus.read_manifest(folder)
            if len(found) == len(manifest["shards"]):
                say(f"{folder} is done")
                return manifest
        shards = _make_shards(folder, source, found, args)
        if not sum(shard["documents"] for shard in shards):
            raise UserError(f"no document with text in {source.name}")
        return corpus.write_manifest(folder, shards, source.name)


def _begin(folder: Path, args: PrepareArgs, source: Source) -> None:
    """Write what the corpus is made from, and its tokenizer; a tokenizer that was trained by an earlier call stays.

    Raises:
        UserError: an earlier call made documents from something else.
    """
    plan = {
        "format": corpus.FORMAT, "split": args.split, "config_name": args.config_name, "column": args.column,
        "document_start": args.document_start, "max_documents": args.max_documents, "tokenizer": args.tokenizer,
        "vocab_size": None if args.tokenizer else args.vocab_size, "shard_mb": args.shard_mb,
        "digest of the text": source.identity,
    }  # fmt: skip
    path, kept = folder / corpus.PLAN, folder / corpus.TOKENIZER
    before = _read_json(path) or {}
    differing = [f"{n} {before.get(n)!r}, now {value!r}" for n, value in plan.items() if before.get(n) != value]
    if differing:
        shards = [_read_json(shard) for shard in (folder / corpus.SHARDS).glob("*.json")]
        if not all(shard and shard["documents"] == 0 for shard in shards):
            raise UserError(f"{folder} was begun with {'; '.join(differing)}: give another --output, or remove it")
        for path_made in (folder / corpus.SHARDS, kept):  # a call that failed before its first document binds nobody
            shutil.rmtree(path_made, ignore_errors=True)
    words = None if kept.exists() else _make_tokenizer(args, source)
    write_json(path, plan)
    if words:
        temporary = kept.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        words.save_pretrained(temporary)
        temporary.rename(kept)


def _make_tokenizer(args: PrepareArgs, source: Source) -> PreTrainedTokenizerBase:
    if args.tokenizer:
        return tokenizer.load_tokenizer(args.tokenizer)
    texts = tokenizer.sample_texts(islice(source.texts(), args.max_documents), TOKENIZER_TEXT)
    return tokenizer.train_tokenizer(texts, f"{source.identity} {args.max_documents}", args.vocab_size)


def _read_json(path: Path) -> dict[str, Any] | None:
    """None where there is none, or a cut one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _whole_shards(folder: Path) -> dict[int, Shard]:
    """Shards of an earlier call, by their number; damaged ones are made again, with a warning."""
    found = {}
    for path in sorted((folder / corpus.SHARDS).glob("*.json")):
        shard = _read_json(path)
        problem = corpus.problem_of(folder, shard) if shard else f"{path} is damaged"
        if problem is None:
            found[int(shard["name"])] = shard
        else:
            say(f"warning: {problem}; it is made again")
    return found


def _make_shards(folder: Path, source: Source, found: dict[int, Shard], args: PrepareArgs) -> list[Shard]:
    """All shards, in order; those of `found` are not made again."""
    shards, processes = dict(found), args.processes or os.cpu_count() or 1
    _tokenizer_of.cache_clear()  # an earlier call may have had the same folder
    with progress_bar(True, unit=" documents", desc=f"preparing {folder}") as bar:

        def missing() -> Iterator[tuple[int, list[str]]]:
            groups = _groups(islice(source.texts(), args.max_documents), args.shard_mb * 1_000_000)
            for number, texts in enumerate(groups):
                if number in found:
                    bar.update(len(texts))
                else:
                    yield number, texts

        def keep(shard: Shard) -> None:
            shards[int(shard["name"])] = shard
            bar.update(shard["read"])

        jobs = missing()
        first = list(islice(jobs, 2))
        if processes == 1 or len(first) < 2:  # one shard is made before a process has started
            for number, texts in chain(first, jobs):
                keep(make_shard(folder, number, texts))
        else:
            _in_parallel(folder, chain(first, jobs), keep, processes)
    return [shards[number] for number in sorted(shards)]


def _groups(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Documents of about `size` characters together."""
    group, total = [], 0
    for text in texts:
        group.append(text)
        total += len(text)
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


def _in_parallel(
    folder: Path, jobs: Iterable[tuple[int, list[str]]], keep: Callable[[Shard], None], processes: int
) -> None:
    """`make_shard` of all jobs; two for each process are held at a time."""
    waiting: set[Future] = set()
    with ProcessPoolExecutor(processes, get_context("spawn"), _in_worker) as pool:
        try:
            for number, texts in jobs:
                waiting.add(pool.submit(make_shard, folder, number, texts))
                if len(waiting) >= 2 * processes:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for job in done:
                        keep(job.result())
            for job in as_completed(waiting):
                keep(job.result())
        except BrokenProcessPool as error:
            raise UserError(
                f"a process that tokenised was killed, perhaps for want of memory: lower processes {processes} or "
                f"shard_mb, with an --output of its own; or {corpus.AGAIN}"
            ) from error


def _in_worker() -> None:
    """Processes share the cores, and none outlives the one that started it, however that ends."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def make_shard(folder: Path, number: int, texts: list[str]) -> Shard:
    """One shard of a corpus, in any process."""
    return corpus.write_shard(folder, number, texts, _tokenizer_of(folder))


@lru_cache(1)
def _tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    return tokenizer.load_tokenizer(str(folder / corpus.TOKENIZER))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != ["prepare"] and "--help" not in words:
        raise UserError(f"usage: python -m {__spec__.name} prepare --input TEXT --output CORPUS [--option value ...]")
    (args,) = cli.parse(words[1:] if words[:1] == ["prepare"] else words, PrepareArgs, description=__doc__)
    with cli.mendable(OSError):  # a full disk
        manifest = prepare(args)
    say(
        f"{args.output}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens of {manifest['bytes']:,} "
        f"bytes, {len(manifest['shards'])} shards"
    )
    return manifest


if __name__ == "__main__":
    cli.run(main)
