"""The samples of an evaluation: which questions, in which background, with what around them."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data import babi, babi_simulator, background
from ..data.babilong_stream import Ring, Sample, make_sample
from ..data.cache import default_cache_dir, digest, file_digest
from ..data.tokenizer import GEN, tokenizer_identity
from ..errors import UserError
from ..loggers import say
from .prompts import TRAINED_TEMPLATE, Prompt

SIMULATED_QUESTIONS = 1000
CONTEXT_MARK = "<<<context>>>"  # stands for the context in a chat

Encode = Callable[[str], np.ndarray]


class DataOptions(Protocol):
    """What the data needs of the options."""

    babi_path: str | None
    noise_dataset: list[str] | None
    noise_dataset_split: str | None
    allow_repeat: bool
    data_cache: str | None
    num_samples: int
    seed: int


class Encoder:
    """Tokens of texts, and of what stands around a context."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.encode = lru_cache(maxsize=None)(self._encode)

    def _encode(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` for a chat that the tokenizer has no template for."""
        if prompt.chat_template and not self.tokenizer.chat_template:
            raise UserError("the tokenizer has no chat_template; leave out --use_chat_template")

    def around(self, prompt: Prompt, question: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens before the context and behind it."""
        if prompt.template == TRAINED_TEMPLATE:  # tokenised in the parts of the training data
            return self.encode(""), np.concatenate((self.encode(f" {question}"), self.encode(GEN)))
        before, after = prompt.around_context(question)
        if prompt.chat_template:
            before, after = self._chat(prompt, before, after)
            return self.encode(before), self.encode(after)
        first = [token for token in self.tokenizer.encode("") if token == self.tokenizer.bos_token_id]
        return np.concatenate((np.array(first[:1], dtype=np.int32), self.encode(before))), self.encode(after)

    def _chat(self, prompt: Prompt, before: str, after: str) -> tuple[str, str]:
        messages: list[dict[str, Any]] = [{"role": "user", "content": before + CONTEXT_MARK + after}]
        if prompt.system_prompt:
            messages.insert(0, {"role": "system", "content": prompt.system_prompt})
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        before, _, after = text.partition(CONTEXT_MARK)
        return before, after


class Corpus(Encoder):
    """Questions and background text.

    Attributes:
        identity: what the samples depend on, for the results folder.
    """

    def __init__(self, options: DataOptions, tokenizer: PreTrainedTokenizerBase, needs_background: bool):
        super().__init__(tokenizer)
        self.options = options
        self.cache = Path(options.data_cache) if options.data_cache else default_cache_dir()
        source = background.find_source(options.noise_dataset, options.noise_dataset_split or "test")
        tokens = tokenizer_identity(tokenizer)
        self.background = None
        if needs_background:
            repeat = options.allow_repeat
            self.background = background.prepare_background(source, tokenizer, tokens, self.cache, repeat)
        self.ring = self.background and Ring(self.background)
        self.babi_folder = self._babi_folder()
        self.identity = {
            "seed": options.seed, "tokenizer": tokens, "background": source.identity, "babi": self.babi_folder.name,
        }  # fmt: skip

    def samples(self, task: str, length: str, context_size: int | None, prompt: Prompt) -> "TaskSamples":
        """The samples of a task at a length (its name, and the tokens of a context).

        Raises:
            UserError: there are no questions, none fits, the background is too short, or no chat template.
        """
        self.check(prompt)
        number = int(task[2:])
        questions = babi.read_questions(self._task_file(task))
        order = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.options.seed, number))))
        questions = [questions[index] for index in order.permutation(len(questions))]
        if context_size is not None:
            questions = self._fitting(questions, task, length, context_size)
        keys = (self.options.seed, number, context_size or 0)
        return TaskSamples(self, task, length, context_size, questions[: self.options.num_samples], prompt, keys)

    def facts(self, question: babi.Question) -> list[np.ndarray]:
        return [self.encode(f" {fact}") for fact in question.facts]

    def _fitting(self, questions: list[babi.Question], task: str, length: str, size: int) -> list[babi.Question]:
        """Questions whose facts leave room in the context, as there are none other in the public sets."""
        text = self.background
        if size > text.num_tokens and not (text.repeat and text.num_tokens):
            raise UserError(
                f"background text too short for {length}: {text.name} has {text.num_tokens:,} tokens, a sample needs "
                f"{size:,}; give more text, or read it again and again with --allow_repeat"
            )
        kept = [question for question in questions if sum(map(len, self.facts(question))) <= size]
        if not kept:
            raise UserError(f"{task} at {length}: the facts of every question have more than {size} tokens")
        if len(kept) < min(self.options.num_samples, len(questions)):
            say(f"{task} at {length}: {len(kept)} samples; the facts of other questions are longer")
        return kept

    def _babi_folder(self) -> Path:
        """Of the task files: the given ones, or those of a simulator with this code and seed."""
        if self.options.babi_path:
            return Path(self.options.babi_path)
        code = sorted(Path(babi_simulator.__file__).parent.glob("*.py"))
        made_by = digest([*map(file_digest, code), str(SIMULATED_QUESTIONS), str(self.options.seed)])
        return self.cache / f"babi-simulated-test-{made_by}"

    def _task_file(self, task: str) -> Path:
        path = self.babi_folder / f"{babi.full_task_name(task)}_test.txt"
        if not self.options.babi_path and not path.exists():
            babi_simulator.write_task(self.babi_folder, task, "test", SIMULATED_QUESTIONS, self.options.seed)
        return babi.task_file(self.babi_folder, task, "test")


class TaskSamples:
    """The samples of one task at one length."""

    def __init__(
        self,
        corpus: Corpus,
        task: str,
        length: str,
        context_size: int | None,
        questions: list[babi.Question],
        prompt: Prompt,
        keys: tuple[int, ...],
    ):
        self.corpus, self.task, self.length, self.context_size = corpus, task, length, context_size
        self.questions, self.prompt, self.keys = questions, prompt, keys

    def __len__(self) -> int:
        return len(self.questions)

    def asked(self, index: int) -> tuple[str, str]:
        """Question and answer."""
        return self.questions[index].question, self.questions[index].answer

    def sample(self, index: int) -> Sample:
        question = self.questions[index]
        around = self.corpus.around(self.prompt, question.question)
        facts, ring = self.corpus.facts(question), self.corpus.ring
        return make_sample(question, facts, *around, ring, self.context_size, (*self.keys, index))

    def size(self, index: int) -> int:
        """Tokens of a sample, for the progress bar."""
        question = self.questions[index]
        context = self.context_size or sum(map(len, self.corpus.facts(question)))
        return context + sum(map(len, self.corpus.around(self.prompt, question.question)))

    def write_places(self, path: Path) -> None:
        """One JSON line a sample: tokens of the context, (start, stop) of each supporting fact in it."""
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            for index in range(len(self)):
                sample = self.sample(index)
                start, stop = sample.context
                line = {"index": index, "context_tokens": stop - start, "tokens_before_context": start}
                file.write(json.dumps(line | {"supporting_facts": sample.supporting}) + "\n")
        temporary.replace(path)
