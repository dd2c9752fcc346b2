"""BABILong samples that are never held whole: where facts stand is drawn first, tokens are read piece by piece.

A sample is `prefix context suffix`. Its context has exactly the asked number of tokens: the facts between sentences of
background, which stay in the memory-mapped file until they are read. Every sample is a function of its keys alone.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .babi import Question
from .background import Background


class Ring:
    """A background text as an endless one: the first sentence follows the last."""

    def __init__(self, background: Background):
        self.background = background
        self.starts = background.borders[:-1] - background.borders[0]  # of the sentences, in tokens

    def draw(self, num_tokens: int, count: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """`num_tokens` tokens from a random sentence on, and `count` places at sentence starts or at the end.

        Returns:
            The place of the first token in the text, and the places (count,) in order, counted from there.
        """
        last = len(self.starts)
        if num_tokens <= self.background.num_tokens:  # no need to run over the end
            last = int(np.searchsorted(self.starts, self.background.num_tokens - num_tokens, side="right"))
        first = int(rng.integers(last))
        start = int(self.starts[first])
        rounds, rest = divmod(start + num_tokens, self.background.num_tokens)
        end = rounds * len(self.starts) + int(np.searchsorted(self.starts, rest))
        sentences = np.sort(rng.integers(first, end, size=count, endpoint=True))
        rounds, sentences = np.divmod(sentences, len(self.starts))
        return start, np.minimum(rounds * self.background.num_tokens + self.starts[sentences] - start, num_tokens)

    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Views of the tokens from `start` to `stop`."""
        text, size = self.background, self.background.num_tokens
        while start < stop:
            place = start % size
            step = min(stop - start, size - place)
            yield text.slice(text.borders[0] + place, text.borders[0] + place + step)
            start += step


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        pieces: token arrays, and pairs (start, stop) of places in the ring. starts: of the pieces, in tokens.
        size: tokens of all. context: its (start, stop). supporting: (start, stop) of the supporting facts, counted
            from the start of the context.
    """

    ring: Ring | None
    pieces: list[np.ndarray | tuple[int, int]]
    starts: list[int]
    size: int
    context: tuple[int, int]
    supporting: list[tuple[int, int]]

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) tokens."""
        parts, index = [], bisect_right(self.starts, start) - 1
        while start < stop and index < len(self.pieces):
            piece, first = self.pieces[index], start - self.starts[index]
            length = min(stop, self.size if index + 1 == len(self.pieces) else self.starts[index + 1]) - start
            if isinstance(piece, tuple):
                parts += self.ring.read(piece[0] + first, piece[0] + first + length)
            else:
                parts.append(piece[first : first + length])
            start, index = start + length, index + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def make_sample(
    question: Question,
    facts: list[np.ndarray],
    prefix: np.ndarray,
    suffix: np.ndarray,
    ring: Ring | None,
    context_size: int | None,
    keys: tuple[int, ...],
) -> Sample:
    """Place the facts of a question (arrays of tokens) into a context.

    Args:
        ring, context_size: None: the facts alone. keys: what the sample is a function of, with the question.
    """
    facts_size = sum(map(len, facts))
    start, places = 0, np.zeros(len(facts), dtype=np.int64)
    if context_size is not None:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(keys)))
        start, places = ring.draw(context_size - facts_size, len(facts), rng)
    pieces, spans, read, size = [prefix], [], 0, len(prefix)
    for fact, place in zip(facts, places.tolist()):
        pieces += [(start + read, start + place), fact]
        size += place - read
        spans.append((size - len(prefix), size - len(prefix) + len(fact)))
        size, read = size + len(fact), place
    if context_size is not None:
        pieces.append((start + read, start + context_size - facts_size))
    pieces = [piece for piece in [*pieces, suffix] if _length(piece)]
    starts = np.cumsum([0, *map(_length, pieces)]).tolist()
    context = (len(prefix), starts[-1] - len(suffix))
    return Sample(ring, pieces, starts[:-1], starts[-1], context, [spans[index] for index in question.supporting])


def _length(piece: np.ndarray | tuple[int, int]) -> int:
    return piece[1] - piece[0] if isinstance(piece, tuple) else len(piece)
