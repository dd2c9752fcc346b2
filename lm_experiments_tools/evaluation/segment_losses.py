"""Losses of every segment of long texts, with a model's own memory or another one.

Shapes: W windows of text, B of them at once, S segments of a window, T tokens of a segment, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.corpus import Corpus
from ..data.pieces import even_step, whole_windows
from ..errors import UserError
from ..loggers import progress_bar, say
from .ablation import Ablation


class Windows:
    """Windows of S * T + 1 tokens of some corpora: every segment has T targets, the first of the next among them.

    Windows that follow each other here stand far from each other in the text.

    Args:
        number: at most so many, spread over the corpora; None: all.

    Raises:
        UserError: no document is long enough.
    """

    def __init__(self, corpora: list[Corpus], segments: int, segment_size: int, number: int | None = None):
        self.corpora, self.segments, self.segment_size = corpora, segments, segment_size
        self.pieces = [whole_windows(corpus.sizes, segments * segment_size) for corpus in corpora]
        places = [(which, place) for which, pieces in enumerate(self.pieces) for place in range(len(pieces))]
        if not places:
            longest = max(corpus.longest for corpus in corpora)
            raise UserError(
                f"no document has {segments} segments of {segment_size} tokens and one more, the longest has {longest} "
                "tokens: lower --segments, or give longer documents"
            )
        step = even_step(len(places))
        self.places = [places[index * step % len(places)] for index in range(min(number or len(places), len(places)))]

    def __len__(self) -> int:
        return len(self.places)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All windows, (B, S * T + 1) at a time, at least `size` where there are as many."""
        for part in np.array_split(np.arange(len(self)), max(1, len(self) // size)):
            yield np.stack([self._read(index) for index in part]).astype(np.int64)

    def _read(self, index: int) -> np.ndarray:
        which, place = self.places[index]
        return self.pieces[which].read(self.corpora[which], place)

    def num_bytes(self, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
        """(W, S): bytes of text of the targets; over a whole document they add up to those of its text."""
        table, scales = token_bytes(tokenizer), {}
        counts = np.empty((len(self), self.segments))
        for index, (which, place) in enumerate(self.places):
            corpus, document = self.corpora[which], int(self.pieces[which].document[place])
            if (which, document) not in scales:
                scales[which, document] = corpus.bytes[document] / table[corpus.read(document)].sum()
            targets = table[self._read(index)[1:]].reshape(self.segments, self.segment_size)
            counts[index] = targets.sum(1) * scales[which, document]
        return counts


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(V,) bytes of text that each token stands for; of special tokens none.

    Exact where tokens are pieces of bytes (GPT-2 and most since), or of text with `▁` for a space.
    """
    is_bytes = tokenizer.is_fast and "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    sizes = np.zeros(len(tokenizer))
    for token, number in tokenizer.get_vocab().items():
        is_byte = len(token) == 6 and token.startswith("<0x")
        sizes[number] = len(token) if is_bytes else 1 if is_byte else len(token.replace("▁", " ").encode())
    sizes[tokenizer.all_special_ids] = 0
    return sizes


@torch.no_grad()
def segment_losses(
    model: PreTrainedModel, windows: Windows, ablation: Ablation, batch_size: int, bf16: bool, name: str
) -> np.ndarray:
    """(W, S): summed loss of each segment, in nats.

    A model of segments, which has `read`, goes segment by segment: no more logits are held than B * T * V. Any other
    reads windows whole, with logits of all positions; what it has no positions for is NaN.
    """
    size = windows.segment_size
    fitting = windows.segments
    if not hasattr(model, "read"):
        limit = getattr(model.config, "max_position_embeddings", None) or windows.segments * size
        fitting = min(windows.segments, limit // size)
        if fitting < windows.segments:
            say(f"warning: {name} has positions for {fitting} of {windows.segments} segments; the others are left out")
    rows = []
    with progress_bar(True, total=len(windows), unit=" windows", desc=name) as bar:
        for batch in windows.batches(batch_size):
            ids = torch.from_numpy(batch).to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext():
                if hasattr(model, "read"):
                    nats = _by_segment(model, ids, size, ablation)
                else:
                    ids = ids[:, : fitting * size + 1]
                    nats = _sums(model(input_ids=ids[:, :-1]).logits, ids[:, 1:], size)
                    nats = F.pad(nats, (0, windows.segments - fitting), value=torch.nan)
            rows.append(nats.double().cpu().numpy())
            bar.update(len(batch))
    return np.concatenate(rows)


def _by_segment(model: PreTrainedModel, ids: Tensor, size: int, ablation: Ablation) -> Tensor:
    """(B, S) of windows (B, S * T + 1)."""
    state, columns = None, []
    following = torch.arange(len(ids)).roll(-1)
    for index, start in enumerate(range(0, ids.shape[1] - 1, size)):
        part, targets = ids[:, start : start + size], ids[:, start + 1 : start + size + 1]
        output = model(input_ids=part, memory_state=state)
        logits = output.logits
        if ablation.from_next and state is not None:
            logits = model(input_ids=part, memory_state=state.select(following), output_memory_state=False).logits
        if ablation.max_segments is None or index < ablation.max_segments:
            state = output.memory_state
        columns.append(_sums(logits, targets, size))
    return torch.cat(columns, 1)


def _sums(logits: Tensor, targets: Tensor, size: int) -> Tensor:
    """Cross-entropy of logits (B, n * T, V) summed over each segment: (B, n)."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(len(targets), -1, size).sum(2)
