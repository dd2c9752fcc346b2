"""The language-modeling task of a runner: its options, and from them tokenizer and datasets of prepared corpora."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..args import option
from ..distributed import Engine
from ..errors import UserError
from ..evaluation.loss_report import draw_by_length
from ..loggers import say
from . import pieces, tokenizer
from .corpus import Corpus, check_vocabulary
from .pieces import Evenly, Mixture, PieceDataset

HELD_OUT_SHARE = 0.02  # of the tokens, in the last documents of each corpus, where no valid_corpora are given


@dataclass
class LanguageModelingArgs:
    """Options of the task and its data."""

    corpora: list[str] | None = option(
        None, "prepared corpora to train on: FOLDER, or FOLDER=WEIGHT, its share of the tokens; without: by their sizes"
    )
    valid_corpora: list[str] | None = option(
        None,
        "prepared corpora for validation; default: the last documents of each of corpora, a fiftieth of the tokens",
    )
    test_corpora: list[str] | None = option(None, "prepared corpora for the test; default: those of the validation")
    segment_size: int = option(512, "tokens of a segment, without memory tokens")
    max_n_segments: int = option(8, "segments of a training sample; shorter documents are packed up to these")
    vary_n_segments: bool = option(False, "train on a random part of each long sample, 1 to max_n_segments segments")
    valid_n_segments: int | None = option(None, "segments of the validation samples; default: as trained")
    test_n_segments: list[int] | None = option(
        None, "segments of the test samples, a test each: documents are cut into so many; default: as trained"
    )
    valid_size: int = option(200, "validation samples, spread over their corpora")
    test_size: int | None = option(None, "samples of each test, spread over their corpora; default: all")
    tokenizer: str | None = option(
        None, "tokenizer by name or path, that of the corpora; default: the one kept in them"
    )

    def __post_init__(self):
        for name in ("segment_size", "max_n_segments", "valid_size", "valid_n_segments", "test_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.segment_size * min(self.max_n_segments, *self.test_n_segments or [self.max_n_segments]) < 2:
            raise UserError("a sample of one token has nothing to predict: raise segment_size or the segments")


class LanguageModelingTask:
    """Everything that a runner needs of the task.

    Attributes:
        tokenizer. train, valid: datasets. tests: datasets by their number of segments.
    """

    def __init__(self, args: LanguageModelingArgs, seed: int, engine: Engine, needs_train: bool = True):
        """Open all data; rank 0 compares it with its digests.

        Raises:
            UserError: a corpus is missing or damaged, or of another tokenizer, or has no document long enough.
        """
        self.args = args
        if not args.corpora:
            raise UserError("give --corpora, prepared by python -m lm_experiments_tools.data.language_modeling prepare")
        with engine.main_first():
            train, weights = self._training(engine.rank == 0)
            valid, test = (
                [Corpus(name, verify=engine.rank == 0) for name in names or ()]
                for names in (args.valid_corpora, args.test_corpora)
            )
        self.tokenizer = tokenizer.load_tokenizer(args.tokenizer) if args.tokenizer else train[0].tokenizer()
        or_else = ", or leave tokenizer out to take that of the first of corpora" if args.tokenizer else ""
        check_vocabulary([*train, *valid, *test], self.tokenizer, or_else)
        if not valid:
            train, valid = map(list, zip(*map(hold_out, train)))
        test = test or valid
        self.train = self._mixture(train, weights, seed) if needs_train else None
        self.valid = self._evaluated(valid, args.valid_n_segments or args.max_n_segments, args.valid_size)
        numbers = args.test_n_segments or [args.max_n_segments]
        self.tests = {str(number): self._evaluated(test, number, args.test_size) for number in numbers}

    def _training(self, verify: bool) -> tuple[list[Corpus], list[float] | None]:
        named = [split_weight(name) for name in self.args.corpora]
        weights = [weight for _, weight in named if weight is not None]
        if weights and len(weights) < len(named):
            raise UserError("corpora: give all of them a weight, or none")
        return [Corpus(name, verify=verify) for name, _ in named], weights or None

    def _mixture(self, corpora: list[Corpus], weights: list[float] | None, seed: int) -> Mixture:
        args = self.args
        require_long(corpora, args.segment_size, args.max_n_segments, "max_n_segments")
        datasets = [
            PieceDataset(corpus, args.segment_size, args.max_n_segments, True, args.vary_n_segments, (seed, number))
            for number, corpus in enumerate(corpora)
        ]
        mixture = Mixture(datasets, weights)
        tokens = sum(dataset.num_tokens for dataset in datasets)
        say(f"training: {tokens:,} tokens of {sum(map(len, corpora)):,} documents, {len(mixture):,} samples an epoch")
        return mixture

    def _evaluated(self, corpora: list[Corpus], number: int, size: int | None) -> Dataset:
        require_long(corpora, self.args.segment_size, number, "valid_n_segments and test_n_segments")
        datasets = [PieceDataset(corpus, self.args.segment_size, number, packed=False) for corpus in corpora]
        return Evenly(Mixture(datasets), size)

    def trainer_options(self) -> dict[str, Any]:
        """Keyword arguments of the Trainer."""
        return {"collate_fn": self.collate, "forward_kwargs": {"output_memory_state": False}}

    def collate(self, samples: list[pieces.Rows]) -> dict[str, torch.Tensor]:
        pad = self.tokenizer.pad_token_id
        return pieces.collate_rows(samples, self.tokenizer.eos_token_id if pad is None else pad)

    def about(self) -> dict[str, Any]:
        return {"task": "language modeling", "trained_n_segments": self.args.max_n_segments}

    def about_test(self, dataset: Dataset) -> dict[str, Any]:
        return {"tokens": sum(len(row) for index in range(len(dataset)) for row in dataset[index])}

    def draw(self, metrics: dict[str, Any], run: Path) -> None:
        draw_by_length(metrics, run / "loss.png")


def split_weight(name: str) -> tuple[str, float | None]:
    """`FOLDER=WEIGHT` or `FOLDER`.

    Raises:
        UserError: the weight is no number above 0.
    """
    folder, separator, weight = name.rpartition("=")
    if not separator:
        return name, None
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"corpora: {name}: the weight {weight!r} is not a number above 0")
    return folder, value


def hold_out(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """The first documents of a corpus, for training, and the last, with about `HELD_OUT_SHARE` of the tokens.

    Raises:
        UserError: it has one document.
    """
    if len(corpus) < 2:
        raise UserError(
            f"{corpus.folder} has {len(corpus)} document, and validation needs another: give --valid_corpora, prepared "
            f"with --tokenizer {corpus.folder / 'tokenizer'}"
        )
    from_end = corpus.sizes[::-1].cumsum()
    held = int((from_end <= HELD_OUT_SHARE * from_end[-1]).sum())
    border = len(corpus) - min(max(held, 1), len(corpus) - 1)
    return corpus.part(0, border), corpus.part(border, len(corpus))


def require_long(corpora: list[Corpus], segment_size: int, number: int, what: str) -> None:
    """Raise `UserError` unless a document reaches the last of `number` segments."""
    longest = max(corpus.longest for corpus in corpora)
    if longest <= (number - 1) * segment_size:
        names = ", ".join(str(corpus.folder) for corpus in corpora)
        raise UserError(
            f"no document in {names} has {number} segments of {segment_size} tokens, the longest has {longest} tokens: "
            f"lower {what} or segment_size, or prepare longer documents"
        )
