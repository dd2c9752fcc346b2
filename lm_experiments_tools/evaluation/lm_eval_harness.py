"""lm-evaluation-harness with recurrent models: its command line, in which `--model armt` is a model that has `read`.

    python -m lm_experiments_tools.evaluation.lm_eval_harness --model armt --batch_size 4 \
        --model_args pretrained=runs/small-qa1/stage-7/best --include_path configs/lm_eval \
        --tasks babilong_official_qa1 --metadata '{"lengths": ["0k", "1k", "1M"], "prompt": "trained"}'

All options are those of lm_eval, and so are its tasks (`--tasks wikitext lambada_openai`); `configs/lm_eval` adds
BABILong (see `lm_eval_tasks.py`). In Python, `register()` comes before `lm_eval.simple_evaluate("armt", ...)`.

Nothing is cut at the positions of the backbone: whole segments are read into the memory, in constant memory whatever
the length, and requests of a batch that begin with the same segments share them. Segments are filled from the start, as
`model.read` does. `loglikelihood_rolling` scores a whole document with its memory, unless `max_length` cuts it.

lm_eval holds the text of all its prompts, and a tokenizer takes some 600 bytes a token while it works: 6 GB at 10M.

Needs lm_eval (the extra `eval`), and imports it only when it is asked for.
"""

import importlib
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import cli
from ..checkpoint import weights_folder
from ..errors import UserError
from ..loggers import progress_bar

Pair = tuple[list[int], list[int]]  # tokens of a context, tokens of its continuation
Answer = tuple[float, bool]  # log-likelihood of a continuation; it is what greedy decoding would write


class SegmentReading:
    """What `armt` does otherwise than lm_eval's model for Hugging Face, in front of which it stands."""

    def __init__(
        self,
        pretrained: str | torch.nn.Module,
        model_package: str = "modeling_armt",
        batch_size: int | str = 1,
        **options,
    ):
        """Load a model.

        Args:
            pretrained: a run, a checkpoint, a saved model, a hub name; or a model. model_package: is imported first, so
                that it can register its classes. options: those of `--model hf`.

        Raises:
            UserError: the model cannot be loaded, or is not a recurrent one; or a batch size of `auto`.
        """
        if str(batch_size).startswith("auto"):
            raise UserError("batch_size auto tries a batch at the longest context, and armt has none: give a number")
        if isinstance(pretrained, str) and Path(pretrained).is_dir():
            pretrained = str(weights_folder(pretrained))
        with cli.mendable(OSError, ValueError, ImportError):
            importlib.import_module(model_package)
            super().__init__(pretrained=pretrained, backend="causal", batch_size=batch_size, **options)
        if not hasattr(self.model, "read"):
            raise UserError(f"{type(self.model).__name__} has no `read`, which --model armt is for: give --model hf")

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor, **options
    ) -> Tensor:
        """Prompts (B, N), padded on the left -> prompts and continuations."""
        sizes, width = attention_mask.sum(1).tolist(), context.shape[1]
        rows = [row[width - size :] for row, size in zip(context.cpu(), sizes)]
        heads = [self._whole_segments(size - 1) for size in sizes]
        with torch.no_grad(), self._autocast():
            options["memory_state"] = self._read(rows, heads)
        tails = [row[head:] for row, head in zip(rows, heads)]
        ids, mask = _padded(tails, "left", self.tokenizer.pad_token_id)
        left = ids.shape[1]
        ids, options["attention_mask"] = ids.to(context.device), mask.to(context.device)
        written = super()._model_generate(ids, max_length - width + left, stop, **options)
        return torch.cat((context, written[:, left:]), dim=1)

    def _loglikelihood_tokens(
        self, requests: list[tuple], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """Answers to requests (texts or None, tokens of the context, tokens of the continuation)."""
        pairs = [(context, continuation) for _, context, continuation in requests]
        # the longest first; those that share a context stand together
        order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0]), pairs[i][0], -len(pairs[i][1])))
        answers: list[Answer] = [(0.0, False)] * len(pairs)
        size = override_bs or self.batch_size
        with progress_bar(not disable_tqdm and self.rank == 0, total=len(pairs), desc="loglikelihood") as bar:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                for index, answer in zip(batch, self._score([pairs[i] for i in batch])):
                    answers[index] = answer
                    if requests[index][0] is not None:  # a part of a document has no text
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                bar.update(len(batch))
        return answers

    @torch.no_grad()
    def _score(self, pairs: list[Pair]) -> list[Answer]:
        """Answers to one batch: contexts into the memory, then segment by segment with logits."""
        rows = [torch.tensor((context + continuation)[-(self.max_length + 1) :]) for context, continuation in pairs]
        firsts = [len(row) - len(continuation) for row, (_, continuation) in zip(rows, pairs)]  # tokens to be scored
        places = [self._whole_segments(first - 1) for first in firsts]
        sums, greedy, active = [0.0] * len(rows), [True] * len(rows), list(range(len(rows)))
        with self._autocast():
            state = self._read(rows, places)
            while active:
                pieces = [rows[i][:-1][places[i] : places[i] + self.model.config.segment_size] for i in active]
                ids, mask = _padded(pieces, "right", 0)
                output = self.model(ids.to(self.device), mask, memory_state=state)
                for i, piece, logits in zip(active, pieces, output.logits):
                    skipped = max(firsts[i] - 1 - places[i], 0)  # positions that predict tokens of the context
                    targets = rows[i][places[i] + 1 + skipped : places[i] + 1 + len(piece)].to(self.device)
                    scores = F.log_softmax(logits[skipped : len(piece)], -1, dtype=self.softmax_dtype or torch.float32)
                    sums[i] += scores.gather(1, targets.unsqueeze(1)).sum(dtype=torch.float64).item()
                    greedy[i] &= bool((scores.argmax(1) == targets).all())
                    places[i] += len(piece)
                left = [number for number, i in enumerate(active) if places[i] < len(rows[i]) - 1]
                active = [active[number] for number in left]
                state = output.memory_state.select(left) if output.memory_state and left else None
        return list(zip(sums, greedy))

    def _read(self, rows: list[Tensor], heads: list[int]):
        """The memory of the first `heads` tokens, whole segments, of each row; None: no row has any."""
        if not any(heads):
            return None
        beginnings = [row[:head] for row, head in zip(rows, heads)]
        keys = [part.numpy().tobytes() for part in beginnings]
        distinct = dict(zip(keys, beginnings))  # the same beginning is read once
        parts = list(distinct.values())
        state, start = self.model.empty_state(len(parts)), 0
        for stop in sorted({len(part) for part in parts} - {0}):
            reads = torch.tensor([len(part) >= stop for part in parts])
            tokens = torch.stack([part[start:stop] for part in parts if len(part) >= stop])
            read = self.model.read(tokens, state.select(reads.nonzero().squeeze(1)))
            state = state.where(reads, read.select((reads.cumsum(0) - 1).clamp(min=0)))
            start = stop
        return state.select([list(distinct).index(key) for key in keys])

    def _whole_segments(self, size: int) -> int:
        """Tokens of the whole segments in `size` tokens."""
        return size // self.model.config.segment_size * self.model.config.segment_size

    def _autocast(self) -> AbstractContextManager:
        dtype = self.mixed_precision_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def _padded(rows: list[Tensor], side: str, token: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, n) of rows of any lengths."""
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=token, padding_side=side)
    ones = [torch.ones_like(row) for row in rows]
    return ids, torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)


@lru_cache(maxsize=1)
def register() -> type:
    """Make `armt` known to lm_eval; the class.

    Raises:
        UserError: lm_eval is not installed.
    """
    try:
        from lm_eval.api.registry import register_model
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UserError(f"lm_eval cannot be imported ({error}): pip install 'lm_eval[hf]'") from error

    @register_model("armt")
    class ArmtLM(SegmentReading, HFLM):
        """`--model armt`."""

    return ArmtLM


def main() -> None:
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    cli.run(main)
