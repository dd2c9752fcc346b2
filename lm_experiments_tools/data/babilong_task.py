"""The BABILong task of a runner: its options, and from them tokenizer, datasets and metrics."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ..args import option
from ..distributed import Engine
from ..errors import UserError
from ..evaluation.report import draw_lengths
from ..loggers import say
from . import answers, babi, babi_simulator, background, tokenizer
from .babilong import BabilongDataset, Lengths, LongSamples, collate, hold_out, question_size, select_questions
from .cache import default_cache_dir, digest, file_digest

FACTS_ONLY = "facts only"  # name of the test set without background
TOKENIZER_TEXT = 4_000_000  # characters of background that a tokenizer is trained on: enough for its size
HELD_OUT_SHARE = 0.1  # of the background, for validation and test, where none is named for them
VALID, TEST = 1, 2  # keep the random streams of the splits apart


@dataclass
class BabilongArgs:
    """Options of the task and its data."""

    task_dataset: str = option("qa1_single-supporting-fact", "bAbI task, by its short or full name")
    babi_path: str | None = option(None, "folder of bAbI files, such as en-10k; default: simulated files, qa1 to qa10")
    test_babi_path: str | None = option(None, "folder of bAbI files for the test alone; default: as for training")
    simulated_questions: int = option(10_000, "training questions of a simulated task")
    noise_dataset: list[str] | None = option(
        None, "background: text files or folders, or one dataset; default: embedded sentences"
    )
    noise_dataset_split: str | None = option(None, "split of a Hugging Face noise_dataset; default: train")
    test_noise_dataset: list[str] | None = option(
        None, "background of validation and test; default: the last tenth of noise_dataset"
    )
    test_noise_dataset_split: str | None = option(None, "split of a Hugging Face test_noise_dataset; default: test")
    facts_only: bool = option(False, "contexts of facts alone; noise_dataset then serves to train the tokenizer only")
    segment_size: int = option(512, "tokens of a segment, without memory tokens")
    max_n_segments: int = option(1, "segments of the longest training sample")
    vary_n_segments: bool = option(False, "draw each sample's number of segments from 1 to max_n_segments")
    mixed_length_ratio: float = option(0.0, "probability of a sample with fewer than max_n_segments segments")
    sample_size: int | None = option(None, "tokens of the longest context; default: what fits into max_n_segments")
    valid_n_segments: int | None = option(None, "segments of the validation samples; default: as trained")
    test_sample_size: int | None = option(None, "tokens of a test context, instead of test_n_segments")
    test_n_segments: list[int] | None = option(None, "segments of the test samples, by length; default: as trained")
    max_n_facts: int | None = option(None, "leave out questions with more facts than this")
    vary_n_facts: bool = option(
        False,
        "start each training story at a random fact; longer stories are then shortened to max_n_facts, not left out",
    )
    long_samples: LongSamples = option(
        "error",
        "questions whose facts exceed the context: error; skip: leave them out, at each length its own; truncate: drop "
        "their earliest facts, which may be the supporting ones",
    )
    distractor_ratio: float = option(
        0.0,
        "training: share of the background, 0 to 1, that pieces of facts replace, each at most half a fact, so that "
        "the model learns to tell facts from names and places in a novel",
    )
    repeat_background: bool = option(False, "read a background that is too short for one sample again and again")
    task_start_pct: float = option(0.0, "facts stand behind this share of the background, 0 to 1")
    task_end_pct: float = option(1.0, "facts stand before this share of the background, 0 to 1")
    valid_size: int = option(500, "training questions held out for validation, in whole stories")
    test_size: int | None = option(None, "test questions to use; default: all")
    tokenizer: str | None = option(None, "tokenizer by name or path; default: one trained on task and background")
    vocab_size: int = option(4096, "tokens of a trained tokenizer")
    data_cache: str | None = option(None, "folder for prepared data; default: the user's cache folder")

    def __post_init__(self):
        babi.full_task_name(self.task_dataset)
        if self.vary_n_segments and self.mixed_length_ratio:
            raise UserError("vary_n_segments and mixed_length_ratio exclude each other: give one")
        for name in ("mixed_length_ratio", "distractor_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it lies between 0 and 1")
        if not 0 <= self.task_start_pct < self.task_end_pct <= 1:
            raise UserError(f"need 0 <= task_start_pct {self.task_start_pct} < task_end_pct {self.task_end_pct} <= 1")
        if self.test_sample_size and self.test_n_segments:
            raise UserError("test_sample_size and test_n_segments exclude each other: give one")
        for name in ("segment_size", "max_n_segments", "valid_size", "simulated_questions", "vocab_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.test_size is not None and self.test_size < 1:
            raise UserError(f"test_size is {self.test_size}; it must be at least 1, or left out")


class BabilongTask:
    """Everything that a runner needs of the task.

    Attributes:
        tokenizer. train, valid: datasets. tests: datasets by their length's name, made and checked at the start.
    """

    def __init__(self, args: BabilongArgs, seed: int, engine: Engine, needs_train: bool = True):
        """Read or make all data; files are prepared by rank 0 first.

        Raises:
            UserError: a file is missing or malformed, a sample does not fit, none is left, the background is too
                short.
        """
        self.args, self.seed = args, seed
        self.cache = Path(args.data_cache) if args.data_cache else default_cache_dir()
        with engine.main_first():
            train_file, test_file = self._task_files()
            questions = babi.read_questions(train_file)
            self.source = background.find_source(args.noise_dataset, args.noise_dataset_split)
            self.tokenizer = self._tokenizer(train_file, questions)
            train_text, test_text = self._backgrounds()
        train, valid = hold_out(select_questions(questions, args.max_n_facts), args.valid_size)
        if args.vary_n_facts:
            train = [question for question in questions if question.story < valid[0].story]
            train = select_questions(train, args.max_n_facts, shorten=True)
        test = select_questions(babi.read_questions(test_file), args.max_n_facts)[: args.test_size]
        self.question_size = question_size(train + valid + test, self.tokenizer)
        answers = {question.answer for question in train + valid + test}  # few, of hundreds of thousands of questions
        self.answer_size = max(len(self.tokenizer.encode(f" {a}", add_special_tokens=False)) + 1 for a in answers)
        lengths = self._lengths()
        longest = max(len(question.facts) for question in questions)
        vary = (args.max_n_facts or longest) if args.vary_n_facts else None
        hard = {"vary_up_to_n_facts": vary, "distractor_ratio": args.distractor_ratio}
        self.train = self._dataset(train, train_text, lengths, 0, **hard) if needs_train else None
        if args.valid_n_segments:
            lengths = Lengths(self._context_size(args.valid_n_segments))
        self.valid = self._dataset(valid, test_text, replace(lengths, mixed_length_ratio=0.0), VALID)
        self.tests = {
            name: self._dataset(test, test_text, Lengths(size), TEST) for name, size in self._test_sizes().items()
        }
        self._say_long()

    def _say_long(self) -> None:
        datasets = {"training": self.train, "validation": self.valid}
        datasets |= {f"test {name}": dataset for name, dataset in self.tests.items()}
        long = [f"{dataset.num_long} {name}" for name, dataset in datasets.items() if dataset and dataset.num_long]
        if long:
            done = {"skip": "left out", "truncate": "cut to their last facts"}[self.args.long_samples]
            say(f"long_samples {self.args.long_samples}: questions {done}: {', '.join(long)}")

    def _test_sizes(self) -> dict[str, int | None]:
        """Tokens of the contexts of each test set, by its name."""
        if self.args.facts_only:
            return {FACTS_ONLY: None}
        if self.args.test_sample_size:
            return {f"{self.args.test_sample_size} tokens": self.args.test_sample_size}
        numbers = self.args.test_n_segments or [self.args.max_n_segments]
        return {str(number): self._context_size(number) for number in numbers}

    def trainer_options(self) -> dict[str, Any]:
        """Keyword arguments of the Trainer."""
        return answers.trainer_options(self.tokenizer, self.answer_size) | {"collate_fn": self.collate}

    def about(self) -> dict[str, Any]:
        return {"task": self.args.task_dataset, "trained_n_segments": self.args.max_n_segments}

    def about_test(self, dataset: BabilongDataset) -> dict[str, Any]:
        return {"tokens": len(dataset.sample(0, 0)["input_ids"])}

    def draw(self, metrics: dict[str, Any], run: Path) -> None:
        draw_lengths(metrics, run / "accuracy.png")

    def collate(self, samples: list) -> dict[str, torch.Tensor]:
        pad = self.tokenizer.pad_token_id
        return collate(samples, self.tokenizer.eos_token_id if pad is None else pad)

    def _dataset(self, questions, text, lengths: Lengths, stream: int, **options) -> BabilongDataset:
        args, seed = self.args, 3 * self.seed + stream
        places = args.task_start_pct, args.task_end_pct
        options["long_samples"] = args.long_samples
        return BabilongDataset(questions, self.tokenizer, text, lengths, seed, *places, **options)

    def _context_size(self, segments: int) -> int:
        """Tokens of a context that fills `segments` segments with its question and answer."""
        return segments * self.args.segment_size - self.question_size

    def _lengths(self) -> Lengths:
        args = self.args
        size, segments = args.sample_size, args.max_n_segments
        if size is None:
            size = self._context_size(segments)
        else:
            segments = max(segments, -(-(size + self.question_size) // args.segment_size))
        return Lengths(size, args.segment_size, segments, args.vary_n_segments, args.mixed_length_ratio)

    def _task_files(self) -> tuple[Path, Path]:
        args = self.args
        train_folder = args.babi_path or self._simulated()
        test_folder = args.test_babi_path or train_folder
        return tuple(
            babi.task_file(folder, args.task_dataset, split)
            for folder, split in ((train_folder, "train"), (test_folder, "test"))
        )

    def _simulated(self) -> Path:
        """Folder of simulated files, which are made once."""
        args = self.args
        questions = {"train": args.simulated_questions, "test": max(1000, args.test_size or 0)}
        code = sorted(Path(babi_simulator.__file__).parent.glob("*.py"))
        made_by = digest([*map(file_digest, code), str(questions), str(self.seed)])
        folder = self.cache / f"babi-simulated-{made_by}"
        name = babi.full_task_name(args.task_dataset)
        for split, number in questions.items():
            if not (folder / f"{name}_{split}.txt").exists():
                babi_simulator.write_task(folder, name, split, number, self.seed)
        return folder

    def _tokenizer(self, train_file: Path, questions: list[babi.Question]):
        if self.args.tokenizer:
            return tokenizer.load_tokenizer(self.args.tokenizer)
        identity = digest([train_file.name, train_file.read_bytes(), self.source.identity])
        texts = chain(_task_texts(questions), tokenizer.sample_texts(self.source.texts(), TOKENIZER_TEXT))
        return tokenizer.train_tokenizer(texts, identity, self.args.vocab_size, self.cache)

    def _backgrounds(self) -> tuple[Any, Any]:
        if self.args.facts_only:
            return None, None
        train = self._prepared(self.source)
        if self.args.test_noise_dataset is None:
            return train.part(0, 1 - HELD_OUT_SHARE), train.part(1 - HELD_OUT_SHARE, 1)
        source = background.find_source(self.args.test_noise_dataset, self.args.test_noise_dataset_split or "test")
        return train, self._prepared(source)

    def _prepared(self, source: background.Source) -> background.Background:
        identity = tokenizer.tokenizer_identity(self.tokenizer)
        repeat = self.args.repeat_background
        return background.prepare_background(source, self.tokenizer, identity, self.cache, repeat)


def _task_texts(questions: list[babi.Question]) -> Iterator[str]:
    for question in questions[::5]:  # as many facts as a story has, once each
        for text in (*question.facts, question.question, question.answer):
            yield f" {text}"
