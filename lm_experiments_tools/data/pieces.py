"""Samples of corpora for language modeling: documents cut into pieces of whole segments, short pieces packed.

A sample is one or several rows. Each row is a piece of one document, and every row of a batch has an attention and a
memory of its own: so nothing is read across the border of documents, without any masking. A model of segments computes
for a row what segments the row has, so that rows of different lengths cost no more than their tokens, filled up to the
longest of each segment. Hence short pieces are not padded to the size of a sample: as many of them as make
`n_segments` segments together are the rows of one sample, and an update reads about as much whatever the documents are.

Neighbouring pieces of a document share a token, the last of one and the first of the next: so every token but a
document's first is a target once an epoch, and no piece is longer than whole segments.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import UserError
from .babilong import collate
from .corpus import Corpus

GOLDEN = (math.sqrt(5) - 1) / 2

Rows = list[np.ndarray]


@dataclass(frozen=True)
class Pieces:
    """Document, first token and token behind the last of each piece; (n,) int64."""

    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each."""
        return self.stop - self.start

    def read(self, corpus: Corpus, place: int) -> np.ndarray:
        """Tokens of one."""
        return corpus.read(int(self.document[place]), int(self.start[place]), int(self.stop[place]))


def cut(sizes: np.ndarray, piece: int) -> Pieces:
    """All documents of `sizes` (D,) in pieces of `piece` tokens, the last of each shorter; one token is no document."""
    document, number = _numbered(-(-(sizes - 1) // (piece - 1)))
    start = number * (piece - 1)
    return Pieces(document, start, np.minimum(start + piece, sizes[document]))


def whole_windows(sizes: np.ndarray, window: int) -> Pieces:
    """Windows of exactly `window` targets, one token longer, from the start of each document; its end is left out."""
    document, number = _numbered((sizes - 1) // window)
    return Pieces(document, number * window, (number + 1) * window + 1)


def _numbered(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Document, and number in it, of each of `counts` (D,) pieces."""
    document = np.repeat(np.arange(len(counts)), counts)
    return document, np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)


def pack(costs: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Put items of 1 to `budget` into as few groups as a simple rule finds whose sum is at most `budget`.

    Each group takes the largest that is left and still fits, again and again; of equal ones the first.

    Returns:
        items in the order of their groups (n,), and where groups begin (groups + 1,).
    """
    by_cost = np.argsort(costs, kind="stable")
    edges = np.searchsorted(costs[by_cost], np.arange(budget + 2))
    queues = {cost: (int(edges[cost]), int(edges[cost + 1])) for cost in range(1, budget + 1)}
    order, borders = [], [0]
    while len(order) < len(costs):
        room = budget
        for cost in range(budget, 0, -1):
            first, stop = queues[cost]
            taken = min(room // cost, stop - first)
            order.extend(by_cost[first : first + taken])
            queues[cost] = (first + taken, stop)
            room -= taken * cost
        borders.append(len(order))
    return np.array(order, np.int64), np.array(borders, np.int64)


class PieceDataset(Dataset):
    """Samples of one corpus; `sample(epoch, index)` is a pure function.

    Args:
        n_segments: of the longest sample. packed: short pieces together make a sample; else a piece is a sample.
        vary: of a sample that is one piece, take a part: 1 to n_segments segments from a random place.
        stream: of random numbers, for `vary`.

    Raises:
        UserError: nothing to predict.
    """

    def __init__(
        self,
        corpus: Corpus,
        segment_size: int,
        n_segments: int,
        packed: bool = True,
        vary: bool = False,
        stream: tuple[int, ...] = (0,),
    ):
        self.corpus, self.segment_size, self.n_segments = corpus, segment_size, n_segments
        self.vary, self.stream = vary, stream
        self.pieces = cut(corpus.sizes, n_segments * segment_size)
        if not len(self.pieces):
            raise UserError(f"{corpus.folder} has nothing to predict: no document of two tokens in {len(corpus)}")
        costs = -(-self.pieces.sizes // segment_size)
        if packed:
            self.order, self.borders = pack(costs, n_segments)
        else:
            self.order, self.borders = np.arange(len(costs)), np.arange(len(costs) + 1)

    @property
    def num_tokens(self) -> int:
        """Of an epoch."""
        return int(self.pieces.sizes.sum())

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, index: int) -> Rows:
        return self.sample(0, index)

    def sample(self, epoch: int, index: int) -> Rows:
        """Token ids of each row."""
        places = self.order[self.borders[index] : self.borders[index + 1]]
        rows = [self.pieces.read(self.corpus, place) for place in places]
        if self.vary and len(rows) == 1:
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((*self.stream, epoch, index))))
            size = min(len(rows[0]), int(rng.integers(1, self.n_segments + 1)) * self.segment_size)
            start = int(rng.integers(len(rows[0]) - size + 1))
            rows = [rows[0][start : start + size]]
        return rows


class Mixture(Dataset):
    """Several datasets of pieces, each with a share of the tokens of an epoch.

    An epoch has as many samples as all of them together. A dataset that gets fewer than it has goes on in the next
    epoch where this one ended, and one that gets more begins anew: each is read evenly.

    Args:
        weights: of their tokens, to any sum; None: every sample once an epoch.
    """

    def __init__(self, datasets: Sequence[PieceDataset], weights: Sequence[float] | None = None):
        self.datasets = datasets
        counts = np.array([len(dataset) for dataset in datasets])
        if weights is not None:
            samples = np.array(weights) * counts / [dataset.num_tokens for dataset in datasets]
            counts = np.maximum(1, np.round(counts.sum() * samples / samples.sum()).astype(np.int64))
        self.starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Rows:
        return self.sample(0, index)

    def sample(self, epoch: int, index: int) -> Rows:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        dataset, count = self.datasets[number], int(self.starts[number + 1] - self.starts[number])
        size, place = len(dataset), index - int(self.starts[number])
        if count == size:
            return dataset.sample(epoch, place)
        turn, place = divmod(epoch * count + place, size)
        return dataset.sample(turn, place * even_step(size) % size)


def even_step(size: int) -> int:
    """A step that visits all of `size` places, and any few visits are spread over them."""
    step = max(1, round(GOLDEN * size))
    while math.gcd(step, size) > 1:
        step += 1
    return step


class Evenly(Dataset):
    """At most `size` samples of a dataset, spread over it; None: all."""

    def __init__(self, dataset: Mixture, size: int | None):
        self.dataset = dataset
        whole = len(dataset)
        self.places = np.arange(whole) if size is None or size >= whole else np.arange(size) * whole // size

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Rows:
        return self.dataset[int(self.places[index])]


def collate_rows(samples: list[Rows], pad_token_id: int) -> dict[str, torch.Tensor]:
    """All rows of some samples as a batch, padded on the right; every token is a label."""
    rows = [np.asarray(row, np.int64) for sample in samples for row in sample]
    return collate([{"input_ids": row, "labels": row} for row in rows], pad_token_id)
