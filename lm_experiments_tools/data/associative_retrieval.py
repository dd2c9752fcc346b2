"""Associative retrieval (arXiv 2407.04841): key-value pairs, one a segment, then a key whose value is asked for.

A sample reads `key : value end` for each pair, then `key GEN value end`, where the last value and its end are the
targets. Keys and values are symbols of a 16-letter alphabet, a token each, so all segments have the same size.
remember: all keys differ. rewrite: keys come again, and the last value counts; each key that occurs is asked for with
the same probability.

Every sample is a function of (seed, split, epoch, index) alone. An epoch of training samples is drawn anew.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from ..args import option
from ..distributed import Engine
from ..errors import UserError
from ..evaluation.report import draw_lengths
from . import answers
from .babilong import IGNORED, collate
from .tokenizer import EOS, GEN, PAD

SYMBOLS = "0123456789abcdef"  # token ids 0 to 15
IS = ":"  # between a key and its value
VOCABULARY = (*SYMBOLS, IS, GEN, EOS, PAD)
IS_ID, GEN_ID, EOS_ID, PAD_ID = range(len(SYMBOLS), len(VOCABULARY))
TRAIN, VALID, TEST = range(3)  # keep the random streams of the splits apart
Task = Literal["remember", "rewrite"]


@dataclass
class AssociativeRetrievalArgs:
    """Options of the task and its data."""

    task_dataset: Task = option("remember", "remember: all keys differ; rewrite: keys repeat, the last value counts")
    key_size: int = option(2, "symbols of a key, each one of 16")
    value_size: int = option(1, "symbols of a value, each one of 16")
    num_pairs: int = option(1, "key-value pairs of the longest training sample, a segment each")
    vary_n_pairs: bool = option(False, "draw each training sample's number of pairs from 1 to num_pairs")
    num_valid_pairs: int | None = option(None, "pairs of the validation samples; default: num_pairs")
    num_test_pairs: list[int] | None = option(None, "pairs of the test samples, a test set each; default: num_pairs")
    train_size: int = option(1_000_000, "training samples of an epoch")
    valid_size: int = option(1000, "validation samples")
    test_size: int = option(2000, "samples of each test set")

    def __post_init__(self):
        pairs = [self.num_pairs, *(self.num_test_pairs or [])]
        pairs += [] if self.num_valid_pairs is None else [self.num_valid_pairs]
        for name in ("key_size", "value_size", "train_size", "valid_size", "test_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if min(pairs) < 1:
            raise UserError(f"{min(pairs)} pairs: num_pairs, num_valid_pairs and num_test_pairs must be at least 1")
        keys = len(SYMBOLS) ** self.key_size
        if self.task_dataset == "remember" and max(pairs) > keys:
            raise UserError(
                f"{max(pairs)} pairs need as many different keys, and key_size {self.key_size} gives {keys}: "
                "raise key_size, or take task_dataset rewrite"
            )

    @property
    def segment_size(self) -> int:
        """Tokens of a pair with its separator and end."""
        return self.key_size + self.value_size + 2


class RetrievalDataset(torch.utils.data.Dataset):
    """Samples of one split; `sample(epoch, index)` is a pure function.

    Args:
        stream: of random numbers: (seed, split). num_pairs: of each sample; with `vary`, of the longest.
    """

    def __init__(self, args: AssociativeRetrievalArgs, stream: tuple[int, int], size: int, num_pairs: int, vary=False):
        self.args, self.stream, self.size, self.num_pairs, self.vary = args, stream, size, num_pairs, vary

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.sample(0, index)

    def sample(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        """One sample: `input_ids` (N,) int32 and `labels` (N,) int64, -100 before the answer."""
        args = self.args
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((*self.stream, epoch, index))))
        pairs = int(rng.integers(1, self.num_pairs + 1)) if self.vary else self.num_pairs
        num_keys, num_values = (len(SYMBOLS) ** size for size in (args.key_size, args.value_size))
        if args.task_dataset == "remember":
            keys = rng.choice(num_keys, pairs, replace=False)
            asked = int(rng.integers(pairs))
        else:
            keys = rng.integers(num_keys, size=pairs)
            asked = int(np.flatnonzero(keys == rng.choice(np.unique(keys)))[-1])
        values = rng.integers(num_values, size=pairs)
        rows = np.full((pairs + 1, args.segment_size), EOS_ID, dtype=np.int32)
        rows[:, : args.key_size] = _symbols(np.append(keys, keys[asked]), args.key_size)
        rows[:, args.key_size] = [*pairs * [IS_ID], GEN_ID]
        rows[:, args.key_size + 1 : -1] = _symbols(np.append(values, values[asked]), args.value_size)
        labels = np.full(rows.size, IGNORED, dtype=np.int64)
        labels[-args.value_size - 1 :] = rows[-1, -args.value_size - 1 :]
        return {"input_ids": rows.ravel(), "labels": labels}


def _symbols(numbers: np.ndarray, size: int) -> np.ndarray:
    """Digits of numbers (n,) to the base 16: (n, size), the last one first."""
    return numbers[:, None] // len(SYMBOLS) ** np.arange(size) % len(SYMBOLS)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each symbol and sign; it reads what `decode` writes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(VOCABULARY)}, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS)


class AssociativeRetrievalTask:
    """Everything that a runner needs of the task.

    Attributes:
        tokenizer. train, valid: datasets. tests: datasets by their number of pairs.
    """

    def __init__(self, args: AssociativeRetrievalArgs, seed: int, engine: Engine, needs_train: bool = True):
        self.args, self.tokenizer = args, make_tokenizer()
        dataset = partial(RetrievalDataset, args)
        self.train = None
        if needs_train:
            self.train = dataset((seed, TRAIN), args.train_size, args.num_pairs, args.vary_n_pairs)
        self.valid = dataset((seed, VALID), args.valid_size, args.num_valid_pairs or args.num_pairs)
        numbers = args.num_test_pairs or [args.num_pairs]
        self.tests = {str(number): dataset((seed, TEST), args.test_size, number) for number in numbers}

    def trainer_options(self) -> dict[str, Any]:
        """Keyword arguments of the Trainer."""
        options = answers.trainer_options(self.tokenizer, self.args.value_size + 1)
        return options | {"collate_fn": partial(collate, pad_token_id=PAD_ID)}

    def about(self) -> dict[str, Any]:
        return {"task": self.args.task_dataset, "trained_n_pairs": self.args.num_pairs}

    def about_test(self, dataset: RetrievalDataset) -> dict[str, Any]:
        return {"tokens": (dataset.num_pairs + 1) * self.args.segment_size}

    def draw(self, metrics: dict[str, Any], run: Path) -> None:
        draw_lengths(metrics, run / "accuracy.png")
