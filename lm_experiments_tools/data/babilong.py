"""BABILong: the facts of a bAbI question dropped between sentences of background text, the question at the end.

A sample reads `context question GEN answer end-of-text`; the answer and the end are the targets. The context has
exactly the asked number of tokens. Every sample is a function of (seed, epoch, index) alone, so it does not depend on
workers, ranks or resumes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .babi import Question
from .background import Background
from .distractors import Distractors

IGNORED = -100
LongSamples = Literal["error", "skip", "truncate"]


@dataclass(frozen=True)
class Lengths:
    """How long a sample's context is.

    Attributes:
        sample_size: tokens of the longest context; None: the facts alone, without background.
        segment_size: tokens by which shorter contexts differ. max_n_segments: of the longest sample.
        vary_n_segments: the number of segments is uniform from 1 to max_n_segments.
        mixed_length_ratio: probability of a shorter sample, uniform from 1 to max_n_segments - 1 segments.
    """

    sample_size: int | None
    segment_size: int = 512
    max_n_segments: int = 1
    vary_n_segments: bool = False
    mixed_length_ratio: float = 0.0

    def draw(self, facts_size: int, rng: np.random.Generator) -> int:
        """Tokens of one context: the drawn length, or the next longer one that the facts fit into."""
        segments = self.max_n_segments
        if self.vary_n_segments:
            segments = int(rng.integers(1, self.max_n_segments + 1))
        elif self.mixed_length_ratio and self.max_n_segments > 1 and rng.random() < self.mixed_length_ratio:
            segments = int(rng.integers(1, self.max_n_segments))
        size = self.sample_size - (self.max_n_segments - segments) * self.segment_size
        missing = max(0, facts_size - size)
        return size + -(-missing // self.segment_size) * self.segment_size


class BabilongDataset(torch.utils.data.Dataset):
    """Samples of one task at given lengths; `sample(epoch, index)` is a pure function.

    Attributes:
        num_long: questions that were skipped or truncated.
    """

    def __init__(
        self,
        questions: list[Question],
        tokenizer: PreTrainedTokenizerBase,
        background: Background | None,
        lengths: Lengths,
        seed: int,
        task_start_pct: float = 0.0,
        task_end_pct: float = 1.0,
        vary_up_to_n_facts: int | None = None,
        long_samples: LongSamples = "error",
        distractor_ratio: float = 0.0,
    ):
        """Tokenise the questions.

        Args:
            background: None: contexts of facts alone.
            seed: of positions and background. task_start_pct, task_end_pct: part of the background (0 to 1) where
                facts may stand.
            vary_up_to_n_facts: every sample starts its story at a random fact, not behind the first supporting one,
                so that at most this many are left; None: whole stories.
            long_samples: what becomes of a question whose facts are longer than the longest context: an error, it is
                left out, or it loses its earliest facts.
            distractor_ratio: share of the background that pieces of facts replace.

        Raises:
            UserError: facts do not fit, no question is left, or the background is too short.
        """
        self.background, self.lengths, self.seed = background, lengths, seed
        self.start_pct, self.end_pct = task_start_pct, task_end_pct
        encode = _Encoder(tokenizer)
        facts = [[encode(f" {fact}") for fact in question.facts] for question in questions]
        starts = [_first_facts(question, vary_up_to_n_facts) for question in questions]
        self.num_long = 0
        if background is not None:
            fitted = _fit(questions, facts, starts, lengths.sample_size, long_samples)
            background.require(lengths.sample_size)
            self.num_long = len(fitted)
            starts = [fitted.get(index, start) for index, start in enumerate(starts)]
        kept = [index for index, start in enumerate(starts) if start is not None]
        self.questions, self.facts, self.first_facts = ([part[i] for i in kept] for part in (questions, facts, starts))
        generate, end = encode("GEN"), np.array([tokenizer.eos_token_id], dtype=np.int32)
        self.prompts = [np.concatenate((encode(f" {question.question}"), generate)) for question in self.questions]
        self.answers = [np.concatenate((encode(f" {question.answer}"), end)) for question in self.questions]
        self.distractors = None
        if background is not None and distractor_ratio:
            facts = {fact for question in questions for fact in question.facts}
            self.distractors = Distractors([encode(f" {fact}") for fact in sorted(facts)], distractor_ratio)

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def sample_lengths(self) -> list[int] | None:
        """Tokens of each sample, where contexts are facts alone; with background they hardly differ."""
        if self.background is not None:
            return None
        parts = zip(self.facts, self.prompts, self.answers)
        return [sum(map(len, facts)) + len(prompt) + len(answer) for facts, prompt, answer in parts]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.sample(0, index)

    def sample(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        """One sample: `input_ids` (N,) int32 and `labels` (N,) int64, -100 before the answer."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, epoch, index))))
        context = self._context(index, rng)
        answer = self.answers[index]
        input_ids = np.concatenate((*context, self.prompts[index], answer))
        labels = np.full(len(input_ids), IGNORED, dtype=np.int64)
        labels[-len(answer) :] = answer
        return {"input_ids": input_ids, "labels": labels}

    def _context(self, index: int, rng: np.random.Generator) -> list[np.ndarray]:
        facts = self.facts[index][rng.integers(*self.first_facts[index], endpoint=True) :]
        if self.background is None:
            return facts
        facts_size = sum(map(len, facts))
        size = self.lengths.draw(facts_size, rng)
        text, borders = self.background.draw(size - facts_size, rng)
        low, high = np.searchsorted(borders, (self.start_pct * len(text), self.end_pct * len(text)))
        high = max(int(high), int(low) + 1) if self.end_pct < 1 else len(borders)
        places = borders[np.sort(rng.integers(min(int(low), len(borders) - 1), high, size=len(facts)))]
        if self.distractors is not None:
            text = self.distractors(text, rng)
        pieces, start = [], 0
        for fact, place in zip(facts, places):
            pieces += (text[start:place], fact)
            start = place
        return [*pieces, text[start:]]


def _first_facts(question: Question, up_to: int | None) -> tuple[int, int]:
    """First and last index at which the story of a sample may start."""
    if up_to is None:
        return 0, 0
    return max(0, len(question.facts) - up_to), min(question.supporting)


Range = tuple[int, int]  # first and last index at which the story of a sample may start


def _fit(
    questions: list[Question], facts: list[list[np.ndarray]], starts: list[Range], limit: int, choice: LongSamples
) -> dict[int, Range | None]:
    """Where questions whose facts have more than `limit` tokens start instead, by their index; None: left out.

    Raises:
        UserError: there is one and the choice is `error`; none is left; the last fact alone is too long.
    """
    fitting = [_fitting_start(tokens, limit) for tokens in facts]
    long = [index for index, (first, _) in enumerate(starts) if first < fitting[index]]
    longer = "raise --sample_size or the number of segments"
    if long and choice == "error":
        sizes = {index: sum(map(len, facts[index][starts[index][0] :])) for index in long}
        longest = max(sizes, key=sizes.get)
        raise UserError(
            f"sample_size {limit} is smaller than the facts of sample {longest} ({questions[longest].where}: "
            f"{sizes[longest]} tokens, {len(facts[longest])} facts); {longer}, lower --max_n_facts, or choose "
            "--long_samples skip or truncate"
        )
    if choice == "skip":
        if len(long) == len(questions):
            raise UserError(
                f"long_samples skip leaves none of {len(questions)} questions ({questions[0].where}, ...): the facts "
                f"of all have more than {limit} tokens; {longer}"
            )
        return dict.fromkeys(long)
    for index in long:
        if fitting[index] == len(facts[index]):
            raise UserError(
                f"sample_size {limit} is smaller than the last fact of sample {index} ({questions[index].where}: "
                f"{len(facts[index][-1])} tokens); {longer}"
            )
    return {index: (fitting[index], max(fitting[index], starts[index][1])) for index in long}


def _fitting_start(facts: list[np.ndarray], limit: int) -> int:
    """Index of the earliest fact from which on all facts fit into `limit` tokens together."""
    sizes = np.cumsum([len(fact) for fact in reversed(facts)])  # of the last one, the last two, ...
    return len(facts) - int(np.searchsorted(sizes, limit, side="right"))


class _Encoder:
    """Token ids of a text without special tokens, each text tokenised once: tasks repeat few sentences."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, text: str) -> np.ndarray:
        if text not in self.known:
            self.known[text] = np.array(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)
        return self.known[text]


def question_size(questions: list[Question], tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens that stand behind a context: question, GEN, answer, end."""
    encode = _Encoder(tokenizer)
    longest = max(len(encode(f" {q.question}")) + len(encode(f" {q.answer}")) for q in questions)
    return longest + len(encode("GEN")) + 1


def select_questions(questions: list[Question], max_n_facts: int | None, shorten: bool = False) -> list[Question]:
    """Questions with at most `max_n_facts` facts before them; with `shorten`, from the first supporting one on.

    Raises:
        UserError: none is left.
    """
    needed = [len(q.facts) - (min(q.supporting, default=0) if shorten else 0) for q in questions]
    kept = [q for q, number in zip(questions, needed) if max_n_facts is None or number <= max_n_facts]
    if not kept:
        raise UserError(f"max_n_facts {max_n_facts} leaves no question: the shortest has {min(needed)} facts")
    return kept


def hold_out(questions: list[Question], num_held_out: int) -> tuple[list[Question], list[Question]]:
    """Part the questions of a training file by stories: the last stories, with at least `num_held_out` questions,
    are for validation.

    Raises:
        UserError: the file is too small.
    """
    if not 0 < num_held_out < len(questions):
        raise UserError(f"cannot hold out {num_held_out} of {len(questions)} training questions for validation")
    first_story = questions[-num_held_out].story
    train = [question for question in questions if question.story < first_story]
    if not train:
        raise UserError(f"holding out {num_held_out} questions leaves no story to train on")
    return train, questions[len(train) :]


def collate(samples: list[dict[str, np.ndarray]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad on the right: `input_ids`, `labels` (B, N) int64 and `attention_mask` (B, N), 0 on padding."""
    width = max(len(sample["input_ids"]) for sample in samples)
    input_ids = torch.full((len(samples), width), pad_token_id, dtype=torch.long)
    labels = torch.full((len(samples), width), IGNORED, dtype=torch.long)
    mask = torch.zeros(len(samples), width, dtype=torch.long)
    for row, sample in enumerate(samples):
        size = len(sample["input_ids"])
        input_ids[row, :size] = torch.from_numpy(sample["input_ids"])
        labels[row, :size] = torch.from_numpy(sample["labels"])
        mask[row, :size] = 1
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
