"""From samples to answers: a batch through a model.

A model that has `read` reads all but the last segment of its samples chunk by chunk into a memory, so that no length is
too long; any other model gets its whole input at once, cut at the length that it was made for.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.babilong_stream import Sample
from ..loggers import say

CHUNK = 1 << 15  # tokens of a sample that are read at a time
Advance = Callable[[int], None]  # called with the number of tokens that were read


class Answerer:
    """Any causal language model of Hugging Face."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generate_kwargs: dict[str, Any]):
        self.model, self.tokenizer, self.generate_kwargs = model, tokenizer, generate_kwargs
        limit = getattr(model.config, "max_position_embeddings", None)
        self.limit = limit and limit - generate_kwargs["max_new_tokens"]
        self.has_warned = False

    def answer(self, samples: list[Sample], advance: Advance) -> list[str]:
        inputs = [sample.read(self._first(sample), sample.size) for sample in samples]
        outputs = self.generate(inputs)
        advance(sum(sample.size for sample in samples))
        return outputs

    def _first(self, sample: Sample) -> int:
        if self.limit is None or sample.size <= self.limit:
            return 0
        if not self.has_warned:
            say(f"warning: inputs are cut on the left to the {self.limit} tokens that the model has positions for")
            self.has_warned = True
        return sample.size - self.limit

    @torch.no_grad()
    def generate(self, inputs: list[np.ndarray], **kwargs) -> list[str]:
        """Continuations of inputs of any lengths, as text."""
        width = max(map(len, inputs))
        ids = torch.full((len(inputs), width), self.generate_kwargs["pad_token_id"])
        mask = torch.zeros(len(inputs), width, dtype=torch.long)
        for row, tokens in enumerate(inputs):
            ids[row, width - len(tokens) :] = torch.from_numpy(tokens.astype(np.int64))
            mask[row, width - len(tokens) :] = 1
        device = self.model.device
        written = self.model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), **self.generate_kwargs, **kwargs
        )
        texts = self.tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
        return [text.strip() for text in texts]


class StreamingAnswerer(Answerer):
    """A recurrent model: `model.read(chunks)` gives a memory, with which `generate` goes on.

    The memory is that of whole segments, and `generate` opens a segment with what is left: the same cuts, and so the
    same answer, as if the model had got its input at once.
    """

    def answer(
        self,
        samples: list[Sample],
        advance: Advance,
        sources: list[Sample] | None = None,
        max_segments: int | None = None,
    ) -> list[str]:
        """Answers of samples, those with as many segments together.

        Args:
            sources: samples whose segments are read into the memory in place of the own ones; default: the own ones.
            max_segments: the first so many alone are read; default: all but the last of a sample.
        """
        segment = getattr(self.model.config, "segment_size", 1)
        heads = [(sample.size - 1) // segment * segment for sample in samples]
        outputs = [""] * len(samples)
        for head in sorted(set(heads)):
            rows = [row for row, own in enumerate(heads) if own == head]
            read = [(sources or samples)[row] for row in rows]
            stop = min(head, *(source.size // segment * segment for source in read))
            if max_segments is not None:
                stop = min(stop, max_segments * segment)
            kwargs = {"memory_state": self.model.read(_chunks(read, stop, advance), progress=False)} if stop else {}
            tails = [samples[row].read(head, samples[row].size) for row in rows]
            for row, output in zip(rows, self.generate(tails, **kwargs)):
                outputs[row] = output
            advance(sum(samples[row].size - stop for row in rows))
        return outputs


def _chunks(samples: list[Sample], stop: int, advance: Advance) -> Iterator[np.ndarray]:
    """The first `stop` tokens of all samples, (B, n) at a time."""
    for start in range(0, stop, CHUNK):
        chunk = np.stack([sample.read(start, min(start + CHUNK, stop)) for sample in samples])
        yield chunk
        advance(chunk.size)
