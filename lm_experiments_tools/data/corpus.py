"""A corpus: documents that were tokenised once, in memory-mapped shards that training processes and workers share.

    CORPUS/manifest.json              counts, tokenizer, and of each shard counts and SHA-256; written last of all
    CORPUS/plan.json                  what it is made from: an interrupted preparation goes on with the same
    CORPUS/tokenizer/
    CORPUS/shards/00000.tokens.npy    (tokens,) uint16 or uint32, documents end to end
    CORPUS/shards/00000.borders.npy   (2, documents + 1) int64: where documents begin, in tokens and in bytes of text
    CORPUS/shards/00000.json          the shard's part of the manifest; written last of the shard

A document is what the tokenizer makes of its text, with its special tokens if any, and an end-of-text token behind it.
What spells a special token in the text is text.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..evaluation.report import write_json
from ..loggers import progress_bar
from .cache import sha256
from .tokenizer import load_tokenizer, vocabulary_digest

FORMAT = "corpus-1"  # change it when the layout changes
MANIFEST, PLAN, TOKENIZER, SHARDS = "manifest.json", "plan.json", "tokenizer", "shards"
PARTS = ("tokens", "borders")  # files of a shard
BATCH = 1 << 20  # characters that are tokenised together: a tokenizer takes a hundred bytes for each
AGAIN = "run the command that prepared it again: whole shards are kept"

Shard = dict[str, Any]  # name, read (documents of the source), documents (those with text), tokens, bytes, sha256


def part_path(folder: Path, name: str, part: str) -> Path:
    return folder / SHARDS / f"{name}.{part}.npy"


def write_shard(folder: Path, number: int, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Shard:
    """Tokenise documents into one shard; texts without a character are left out."""
    written = [text for text in texts if text]
    parts = [np.empty(0, token_type(tokenizer))]
    sizes = []
    for batch in _batches(written):
        # split: `<eos>` in a text is five letters. verbose: it warns of texts longer than its model
        for ids in tokenizer(batch, split_special_tokens=True, verbose=False)["input_ids"]:
            if not ids or ids[-1] != tokenizer.eos_token_id:
                ids.append(tokenizer.eos_token_id)
            parts.append(np.array(ids, parts[0].dtype))
            sizes.append(len(ids))
    borders = np.zeros((2, len(sizes) + 1), np.int64)
    borders[:, 1:] = np.cumsum([sizes, [len(text.encode()) for text in written]], axis=1)
    shard = {"name": f"{number:05d}", "read": len(texts), "documents": len(sizes)}
    shard |= {"tokens": int(borders[0, -1]), "bytes": int(borders[1, -1]), "sha256": {}}
    (folder / SHARDS).mkdir(exist_ok=True)
    for part, array in zip(PARTS, (np.concatenate(parts), borders)):
        path = part_path(folder, shard["name"], part)
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
        shard["sha256"][part] = sha256(temporary)
        temporary.replace(path)
    write_json(folder / SHARDS / f"{shard['name']}.json", shard)
    return shard


def _batches(texts: list[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        if batch and size + len(text) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def token_type(tokenizer: PreTrainedTokenizerBase) -> type:
    return np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32


def problem_of(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's files, or None."""
    for part in PARTS:
        path = part_path(folder, shard["name"], part)
        if not path.is_file():
            return f"{path} is missing"
        found, expected = sha256(path), shard["sha256"][part]
        if found != expected:
            return f"{path} is damaged: its SHA-256 is {found[:16]}..., the manifest has {expected[:16]}..."
    return None


def write_manifest(folder: Path, shards: list[Shard], source: str) -> dict[str, Any]:
    """The end of a preparation."""
    tokenizer = load_tokenizer(str(folder / TOKENIZER))
    totals = {name: sum(shard[name] for shard in shards) for name in ("read", "documents", "tokens", "bytes")}
    words = {"vocabulary": vocabulary_digest(tokenizer), "size": len(tokenizer)}
    manifest = {"format": FORMAT, "source": source} | totals | {"tokenizer": words, "shards": shards}
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared corpus.

    Raises:
        UserError: there is none, or its preparation has not ended.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(f"{folder} was prepared by another version ({manifest['format']}): prepare it again")
        return manifest
    except (FileNotFoundError, NotADirectoryError) as error:
        if (folder / PLAN).exists():
            raise UserError(f"the preparation of {folder} has not ended: {AGAIN}") from error
        raise UserError(
            f"{folder} is no prepared corpus; make one: python -m lm_experiments_tools.data.language_modeling prepare "
            f"--input {folder} --output CORPUS"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be read ({error}); {AGAIN}") from error


class Corpus:
    """The documents of a prepared folder, or some of them.

    Attributes:
        folder. vocabulary: digest of what its tokens mean. sizes: (documents,) tokens of each. bytes: (documents,) of
            their texts, in UTF-8.
    """

    def __init__(self, folder: str | Path, first: int = 0, stop: int | None = None, verify: bool = False):
        """Open documents `first` to `stop`.

        Args:
            verify: read everything once and compare the digests; about 1 GB/s.

        Raises:
            UserError: no corpus, or a damaged shard, which is named.
        """
        self.folder, self.first = Path(folder), first
        manifest = read_manifest(self.folder)
        self.vocabulary = manifest["tokenizer"]["vocabulary"]
        shards = [shard for shard in manifest["shards"] if shard["documents"]]
        if verify:
            self._verify(shards)
        self.tokens, self.borders = ([self._open(shard, part) for shard in shards] for part in PARTS)
        self.shard_starts = np.cumsum([0, *(borders.shape[1] - 1 for borders in self.borders)])
        steps = [np.diff(borders, axis=1) for borders in self.borders]
        sizes = np.concatenate([np.empty((2, 0), np.int64), *steps], axis=1)[:, first:stop]
        self.sizes, self.bytes = sizes
        self.stop = first + len(self.sizes)

    def _verify(self, shards: list[Shard]) -> None:
        is_long, title = len(shards) > 10, f"checking {self.folder}"
        for shard in progress_bar(is_long, shards, desc=title, unit=" shards", leave=False):
            problem = problem_of(self.folder, shard)
            if problem:
                raise UserError(f"{problem}; {AGAIN}")

    def _open(self, shard: Shard, part: str) -> np.ndarray:
        path = part_path(self.folder, shard["name"], part)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); {AGAIN}") from error

    def __reduce__(self):  # workers open the files themselves and share their pages
        return Corpus, (self.folder, self.first, self.stop)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(self.sizes.max(initial=0))

    def part(self, first: int, stop: int) -> "Corpus":
        """Documents `first` to `stop` of these."""
        return Corpus(self.folder, self.first + first, self.first + stop)

    def read(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens `start` to `stop` of a document; a view of the file."""
        place = self.first + document
        shard = int(np.searchsorted(self.shard_starts, place, side="right")) - 1
        begin, end = self.borders[shard][0, place - self.shard_starts[shard] :][:2]
        return self.tokens[shard][begin:end][start:stop]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(str(self.folder / TOKENIZER))


def check_vocabulary(corpora: Iterable[Corpus], tokenizer: PreTrainedTokenizerBase, or_else: str = "") -> None:
    """Raise `UserError` for the first corpus whose tokens mean something else to this tokenizer.

    Args:
        or_else: what may be done in place of preparing the corpus again.
    """
    vocabulary, name = vocabulary_digest(tokenizer), tokenizer.name_or_path
    for corpus in corpora:
        if corpus.vocabulary != vocabulary:
            raise UserError(
                f"{corpus.folder} was tokenised by another tokenizer than {name}: prepare it again with "
                f"--tokenizer {name}{or_else}"
            )
