"""Samples whose contexts are those of the published BABILong sets, instead of being made here."""

from functools import lru_cache
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.babilong_sets import OfficialSet
from ..data.babilong_stream import Sample
from ..data.tokenizer import tokenizer_identity
from .prompts import TRAINED_TEMPLATE, Prompt
from .samples import Encoder

PIECE = 1 << 20  # characters that are tokenised at a time: a tokenizer takes a hundred bytes for each


class PublishedCorpus(Encoder):
    """The published sets of a hub name or a folder; `identity` as that of `Corpus`."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, num_samples: int, held: int):
        """held: samples that are kept in memory."""
        super().__init__(tokenizer)
        self.name, self.num_samples, self.held = name, num_samples, held
        self.identity = {"dataset": name, "tokenizer": tokenizer_identity(tokenizer)}

    def samples(self, task: str, length: str, context_size: int | None, prompt: Prompt) -> "PublishedSamples":
        """The samples of a task at a length.

        Raises:
            UserError: there is no such set, or it is malformed; or no chat template.
        """
        self.check(prompt)
        return PublishedSamples(self, task, length, context_size or 0, prompt)

    def encode_long(self, text: str) -> np.ndarray:
        """Tokens of a text of any length, cut before spaces behind sentences."""
        parts, start = [], 0
        while start < len(text):
            border = text.find(". ", start + PIECE)
            stop = len(text) if border < 0 else border + 1
            parts.append(self._encode(text[start:stop]))
            start = stop
        return np.concatenate([np.empty(0, np.int32), *parts])


class PublishedSamples:
    """The samples of one task at one length; rows are read in order, and again from the start to go back."""

    def __init__(self, corpus: PublishedCorpus, task: str, length: str, context_size: int, prompt: Prompt):
        self.corpus, self.task, self.length, self.context_size = corpus, task, length, context_size
        self.prompt, self.rows = prompt, OfficialSet(corpus.name, length, task)
        self.count = min(corpus.num_samples, len(self.rows))
        self.row = lru_cache(corpus.held)(self._row)
        self.next, self.position = iter(()), self.count

    def __len__(self) -> int:
        return self.count

    def _row(self, index: int) -> tuple[str, str, Sample]:
        """Question, answer, sample."""
        if index < self.position:
            self.next, self.position = iter(self.rows), 0
        row = next(islice(self.next, index - self.position, None))
        self.position = index + 1
        question, context = row["question"], row["input"]
        if self.prompt.template == TRAINED_TEMPLATE:  # spaces where the training data has them
            prefix, suffix = self.corpus.around(self.prompt, question.strip())
            context = f" {context.strip()}"
        else:
            prefix, suffix = self.corpus.around(self.prompt, question)
        pieces = [piece for piece in (prefix, self.corpus.encode_long(context), suffix) if len(piece)]
        starts = np.cumsum([0, *map(len, pieces)]).tolist()
        context = len(prefix), starts[-1] - len(suffix)
        return question, row["target"], Sample(None, pieces, starts[:-1], starts[-1], context, [])

    def asked(self, index: int) -> tuple[str, str]:
        """Question and answer."""
        return self.row(index)[:2]

    def sample(self, index: int) -> Sample:
        return self.row(index)[2]

    def size(self, index: int) -> int:
        """Tokens of a sample as its length says, for the progress bar."""
        return self.context_size

    def write_places(self, path) -> None:
        """The sets do not tell where facts stand."""
