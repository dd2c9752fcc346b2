"""Background text: cut into sentences and tokenised once, kept on disk as Arrow, memory-mapped and shared by workers.

Sources: files or folders of plain text, a Hugging Face dataset (hub name, or a local folder of Arrow or Parquet), or
the sentences embedded in this package.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from . import embedded_text
from .cache import default_cache_dir, digest, file_digest
from .rows import load_rows, read_text, require_column, texts_of

FORMAT = "background-2"  # part of every cache name: change it when the sentences or the file layout change
MIN_SENTENCE_TOKENS = 10  # as in the published benchmark: shorter ones are mostly headings and exclamations
EMBEDDED_SENTENCES = 40_000  # about 700,000 tokens
BATCH_SENTENCES = 10_000
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)_]*\s+(?=[\"'“‘(_]*[A-Z0-9])")


@dataclass(frozen=True)
class Source:
    """Where text comes from: `identity` names the content, `texts` reads it again on each call."""

    name: str
    identity: str
    texts: Callable[[], Iterable[str]]


def split_sentences(text: str) -> list[str]:
    """Cut plain text at sentence ends; line breaks inside a sentence become spaces, blank lines end one."""
    paragraphs = re.split(r"\n\s*\n", text)
    return [
        sentence for paragraph in paragraphs for sentence in SENTENCE_END.split(" ".join(paragraph.split())) if sentence
    ]


def find_source(names: Sequence[str] | None, split: str | None = None) -> Source:
    """The source behind `--noise_dataset` and its split.

    Args:
        names: None: the embedded sentences. One or more files or folders, or one hub name.
        split: of a Hugging Face dataset.

    Raises:
        UserError: nothing is found under a name.
    """
    if not names:
        identity = f"embedded {EMBEDDED_SENTENCES} {file_digest(Path(embedded_text.__file__))}"
        return Source("embedded sentences", identity, _embedded)
    files = texts_of(names)
    if files:
        return Source(" ".join(names), digest(file_digest(file) for file in files), lambda: map(read_text, files))
    return _hugging_face_source(names[0], split or "train")


def _embedded() -> Iterator[str]:
    return islice(embedded_text.sentences(), EMBEDDED_SENTENCES)


def _hugging_face_source(name: str, split: str) -> Source:
    data = load_rows(name, split)
    require_column(data, name, "text")
    return Source(f"{name} {split}", digest([data._fingerprint]), lambda: (row["text"] for row in data))


class Background:
    """Tokenised sentences, end to end, in memory-mapped Arrow.

    Attributes:
        name: of the source. num_tokens: in all sentences. repeat: whether a sample may need more than these.
    """

    def __init__(self, name: str, path: Path, first_share: float = 0.0, last_share: float = 1.0, repeat: bool = False):
        """Open a prepared file; `first_share` and `last_share` bound the part of its sentences that is used.

        Raises:
            UserError: the file is damaged.
        """
        self.name, self.path, self.shares, self.repeat = name, path, (first_share, last_share), repeat
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            self.columns = [file.get_batch(number).column(0) for number in range(file.num_record_batches)]
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: cut or damaged ({error}); remove it, and it is made again") from error
        self.tokens = [column.values.to_numpy() for column in self.columns]
        starts = np.concatenate([[0], np.cumsum([len(tokens) for tokens in self.tokens])])
        borders = [column.offsets.to_numpy()[:-1] + start for column, start in zip(self.columns, starts)]
        self.chunk_starts = starts
        borders = np.concatenate([*borders, starts[-1:]]).astype(np.int64)
        count = len(borders) - 1
        self.borders = borders[round(first_share * count) : round(last_share * count) + 1]

    def __reduce__(self):  # workers open the file themselves and share its pages
        return Background, (self.name, self.path, *self.shares, self.repeat)

    @property
    def num_tokens(self) -> int:
        return int(self.borders[-1] - self.borders[0])

    def part(self, first_share: float, last_share: float) -> "Background":
        """The sentences between two shares (0 to 1) of the file."""
        return Background(self.name, self.path, first_share, last_share, self.repeat)

    def require(self, num_tokens: int) -> None:
        """Raise `UserError` if one sample would need more tokens than there are, and they are not to be repeated."""
        if num_tokens > self.num_tokens and not (self.repeat and self.num_tokens):
            raise UserError(
                f"background text too short: {self.name} has {self.num_tokens} tokens, a sample needs {num_tokens}; "
                "give more text or a smaller sample size, or read it again and again with --repeat_background"
            )

    def draw(self, num_tokens: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Consecutive sentences from a random start, the last one cut to size.

        Returns:
            num_tokens token ids, and the places in them where a sentence starts, with `num_tokens` at the end.
        """
        if num_tokens > self.num_tokens:
            return self._draw_cycle(num_tokens, rng)
        last = int(np.searchsorted(self.borders, self.borders[-1] - num_tokens, side="right"))
        first = int(rng.integers(last))
        start = int(self.borders[first])
        stop = start + num_tokens
        inside = int(np.searchsorted(self.borders, stop))
        return self.slice(start, stop), np.append(self.borders[first:inside] - start, num_tokens)

    def _draw_cycle(self, num_tokens: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """As `draw`, from a text that is too short: the first sentence follows the last."""
        starts = self.borders[:-1] - self.borders[0]
        start = int(rng.choice(starts))
        rounds = np.arange(0, start + num_tokens, self.num_tokens)
        places = np.add.outer(rounds, starts).ravel() - start
        text = np.roll(self.slice(*self.borders[[0, -1]]), -start)
        return np.resize(text, num_tokens), np.append(places[(places >= 0) & (places < num_tokens)], num_tokens)

    def slice(self, start: int, stop: int) -> np.ndarray:
        chunk = int(np.searchsorted(self.chunk_starts, start, side="right")) - 1
        pieces = []
        while start < stop:
            offset = self.chunk_starts[chunk]
            piece = self.tokens[chunk][start - offset : stop - offset]
            pieces.append(piece)
            start, chunk = start + len(piece), chunk + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.empty(0, np.int32)])


def prepare_background(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_identity: str,
    cache_dir: Path | None = None,
    repeat: bool = False,
) -> Background:
    """Tokenise a source, or open what an earlier run made of the same text with the same tokenizer."""
    name = digest([FORMAT, str(MIN_SENTENCE_TOKENS), source.identity, tokenizer_identity])
    path = Path(cache_dir or default_cache_dir()) / f"background-{name}.arrow"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        _write(temporary, source, tokenizer)
        temporary.replace(path)
    return Background(source.name, path, repeat=repeat)


def _write(path: Path, source: Source, tokenizer: PreTrainedTokenizerBase) -> None:
    schema = pa.schema([("tokens", pa.list_(pa.int32()))])
    total = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        progress = tqdm(desc=f"tokenising {source.name}", unit=" sentences", leave=False)
        for batch in _batches(sentence for text in source.texts() for sentence in split_sentences(text)):
            texts = [f" {sentence}" for sentence in batch]  # split: the GEN of GENERAL is three letters
            ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids = [row for row in ids if len(row) >= MIN_SENTENCE_TOKENS]
            if ids:
                writer.write_batch(pa.record_batch([pa.array(ids, type=schema.field(0).type)], schema=schema))
            total += sum(map(len, ids))
            progress.update(len(batch))
        progress.close()
    if not total:
        path.unlink()
        raise UserError(f"no sentence of at least {MIN_SENTENCE_TOKENS} tokens in {source.name}")


def _batches(items: Iterable[str]) -> Iterator[list[str]]:
    items = iter(items)
    while batch := list(islice(items, BATCH_SENTENCES)):
        yield batch
