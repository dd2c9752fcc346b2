"""Evaluate a model on BABILong: any task, any length, results in the files of the public harness.

    python -m lm_experiments_tools.evaluation.babilong --model runs/small-qa1/stage-7/best --tasks qa1 \
        --lengths 0k 1k 32k 1M --babi_path ~/data/babi/en-10k --noise_dataset ~/data/books --results_folder results

A length counts tokens of the model's own tokenizer, k = 1000; 300 of them are left for prompt and question, as in the
public sets; 0k are the facts alone. `--dataset RMT-team/babilong` takes the public sets themselves. `--ablate none zero
other` also answers with an empty memory and with that of another sample: the true score must be higher.

Killed, it goes on at the first missing sample when it is run again; under torchrun, ranks share the samples.
`python -m lm_experiments_tools.evaluation.report` makes tables of the results.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.utils import logging as transformers_logging

from .. import cli
from ..args import option
from ..distributed import Engine, make_engine
from ..errors import UserError
from ..loggers import progress_bar, say
from . import official_files, prompts, tables
from .ablation import TRUE, Ablation, parse_ablation
from .answering import Answerer, StreamingAnswerer
from .loading import fingerprint, load_model, trained_tokens
from .published_samples import PublishedCorpus, PublishedSamples
from .samples import Corpus, TaskSamples
from .scoring import labels_of

PROMPT_TOKENS = 300  # of a length, that the public sets leave for prompt and question
UNITS = {"k": 1_000, "M": 1_000_000}
KNOWN_LENGTHS = "0k, 1k, 2k, 4k, ..., 128k, 512k, 1M, 10M, 50M, or any other number with k or M"
PATIENCE = 30 * 24 * 3600.0  # seconds that a rank waits for the others, who may have long samples left


@dataclass
class EvaluationArgs:
    """Options of the evaluation."""

    model: str | None = option(None, "folder of a run, a checkpoint or a saved model, or a hub name")
    tasks: list[str] | None = option(None, "tasks, for example qa1 qa2; default: qa1 to qa5")
    lengths: list[str] | None = option(None, "lengths in tokens, for example 0k 1k 1M; default: 0k 1k 2k 4k 8k 16k 32k")
    num_samples: int = option(100, "samples of a task and a length; raise it later, and the missing ones are added")
    results_folder: str = option("babilong_evals", "results go to a folder of the model in this one")
    model_name: str | None = option(None, "folder of the model in results_folder; default: the last two parts of model")
    tokenizer: str | None = option(None, "tokenizer by name or folder; default: the model's own")
    model_package: str = option("modeling_armt", "package to import first: it registers its models")
    model_type: Literal["auto", "hf"] = option(
        "auto", "auto: models that have `read` read chunk by chunk; hf: plain generate, inputs cut to the model's limit"
    )
    executor: Literal["sequential", "diagonal", "auto"] | None = option(
        None, "order of layers and segments, where the model has the choice; default: as it was saved"
    )
    prompt_style: Literal["auto", "trained", "official"] = option(
        "auto",
        "trained: context, question, GEN; official: the public prompts; auto: trained for models that have `read`",
    )
    use_instruction: bool = option(True, "official prompts: with the instruction")
    use_examples: bool = option(True, "official prompts: with the examples")
    use_post_prompt: bool = option(True, "official prompts: with the text behind the examples")
    use_chat_template: bool = option(False, "official prompts: as a message in the tokenizer's chat template")
    system_prompt: str = option("", "official prompts: system message of the chat")
    ablate: list[str] | None = option(
        None,
        "memories to answer with: none (the true one), zero (empty), other (of the next sample), freeze:K (after K "
        "segments); default: none",
    )
    dataset: str | None = option(
        None, "published contexts: a hub name, RMT-team/babilong, or a folder; instead of babi_path and noise_dataset"
    )
    babi_path: str | None = option(None, "folder of bAbI files, for example en-10k; default: simulated files")
    noise_dataset: list[str] | None = option(
        None, "background: text files or folders, or one dataset; default: embedded sentences"
    )
    noise_dataset_split: str | None = option(None, "split of a Hugging Face noise_dataset; default: test")
    allow_repeat: bool = option(False, "read a background that is too short for one sample again and again")
    data_cache: str | None = option(None, "folder for prepared data; default: the user's cache folder")
    batch_size: int = option(1, "samples that advance together")
    max_new_tokens: int = option(20, "tokens of the longest answer")
    mixed_precision: Literal["no", "bf16"] = option("no", "compute type")
    seed: int = option(42, "seed of questions, background and places of facts")

    def __post_init__(self):
        self.tasks = self.tasks or ["qa1", "qa2", "qa3", "qa4", "qa5"]
        self.lengths = self.lengths or ["0k", "1k", "2k", "4k", "8k", "16k", "32k"]
        self.ablate = [name for word in self.ablate or ["none"] for name in word.split(",")]
        for name in self.ablate:
            if parse_ablation(name).from_next and self.num_samples < 2:
                raise UserError("ablate other takes the memory of another sample: num_samples must be at least 2")
        if self.dataset and (self.babi_path or self.noise_dataset):
            raise UserError("dataset holds whole contexts: leave out babi_path and noise_dataset")
        for task in self.tasks:
            labels_of(task)
        for length in self.lengths:
            context_size(length)
        for name in ("num_samples", "batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.model is None:
            raise UserError("give --model, the folder of a model")


def context_size(length: str) -> int | None:
    """Tokens of the context at a length; None: the facts alone.

    Raises:
        UserError: no such length.
    """
    match = re.fullmatch(r"(\d+)([kM])", length)
    if match is None:
        raise UserError(f"no length {length!r}; the lengths are {KNOWN_LENGTHS}")
    tokens = int(match[1]) * UNITS[match[2]]
    return tokens - PROMPT_TOKENS if tokens else None


Samples = TaskSamples | PublishedSamples


@dataclass(frozen=True)
class Job:
    """One task at one length with one memory. missing: samples of this rank that have no answer yet."""

    file: official_files.TaskFile
    samples: Samples
    ablation: Ablation
    missing: list[int]


def main(argv: list[str] | None = None) -> list[official_files.Result]:
    transformers_logging.disable_progress_bar()
    (args,) = cli.parse(argv, EvaluationArgs, description=__doc__)
    engine = make_engine("auto", PATIENCE)
    try:
        with ExitStack() as files:
            return evaluate(args, engine, files)
    finally:
        engine.close()


def evaluate(args: EvaluationArgs, engine: Engine, files: ExitStack) -> list[official_files.Result]:
    """Answer what has no answer yet. Returns the results in the model's folder, on rank 0; `files` keeps others off."""
    streams = args.model_type == "auto"
    model, tokenizer = load_model(args.model, args.model_package if streams else None, args.tokenizer)
    streams = streams and hasattr(model, "read")
    if not streams and args.ablate != [TRUE.name]:
        raise UserError("ablate is for models with a memory that is read chunk by chunk (`read`)")
    if args.executor is not None:
        if not hasattr(model.config, "executor"):
            raise UserError(f"executor: {type(model).__name__} has no choice of it; leave it out")
        model.config.executor = args.executor
    with engine.main_first():
        corpus = _corpus(args, tokenizer)
    generate_kwargs = _generate_kwargs(args, tokenizer)
    folder = Path(args.results_folder) / (args.model_name or "/".join(Path(args.model).absolute().parts[-2:]))
    about = {"segment_size": getattr(model.config, "segment_size", None), "trained_tokens": trained_tokens(args.model)}
    samples = list(_task_samples(args, corpus, streams))
    with engine.main_first():
        jobs = []
        for ablation in map(parse_ablation, args.ablate):
            place = folder / ablation.folder
            if engine.rank == 0:
                official_files.claim_folder(place, {"model": fingerprint(args.model)} | corpus.identity, about)
            jobs += [_job(place, one, ablation, generate_kwargs, engine, files) for one in samples]
    engine.barrier()  # before a rank appends, all must know what is missing
    answerer = (StreamingAnswerer if streams else Answerer)(model.to(engine.device), tokenizer, generate_kwargs)
    bf16 = args.mixed_precision == "bf16"
    with torch.autocast(engine.device.type, torch.bfloat16) if bf16 else nullcontext():
        run(jobs, answerer, args.batch_size, engine.rank)
    engine.barrier()
    if engine.rank:
        return []
    for job in jobs:
        job.file.merge()
    results = official_files.read_folder(folder)
    say(f"{tables.as_text(results)}\nresults: {folder}")
    return results


def _job(
    place: Path, samples: Samples, ablation: Ablation, generate_kwargs: dict[str, Any], engine: Engine, files: ExitStack
) -> Job:
    file = official_files.TaskFile(place, samples.task, samples.length, samples.prompt, generate_kwargs)
    if engine.rank == 0:
        files.enter_context(file.prepared())
        samples.write_places(file.csv.with_suffix(".jsonl"))
    return Job(file, samples, ablation, file.missing(len(samples))[engine.rank :: engine.world_size])


def _corpus(args: EvaluationArgs, tokenizer) -> Corpus | PublishedCorpus:
    if args.dataset:
        return PublishedCorpus(args.dataset, tokenizer, args.num_samples, held=args.batch_size + 1)
    return Corpus(args, tokenizer, needs_background=any(context_size(length) for length in args.lengths))


def _task_samples(args: EvaluationArgs, corpus: Corpus | PublishedCorpus, streams: bool) -> Iterator[Samples]:
    """The samples of each task and length."""
    style = args.prompt_style if args.prompt_style != "auto" else "trained" if streams else "official"
    for task in args.tasks:
        prompt = prompts.Prompt()
        if style == "official":
            parts = args.use_instruction, args.use_examples, args.use_post_prompt
            prompt = prompts.official_prompt(task, *parts, args.use_chat_template, args.system_prompt)
        for length in args.lengths:
            yield corpus.samples(task, length, context_size(length), prompt)


def _generate_kwargs(args: EvaluationArgs, tokenizer) -> dict[str, Any]:
    """Greedy, with the names and the order of the public harness."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    greedy = {"num_beams": 1, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"max_new_tokens": args.max_new_tokens, "max_length": None, **greedy, "pad_token_id": pad}


def run(jobs: list[Job], answerer: Answerer, batch_size: int, rank: int) -> None:
    """Answer the missing samples of all jobs and append them."""
    total = sum(job.samples.size(index) for job in jobs for index in job.missing)
    with progress_bar(rank == 0, total=total, unit=" tokens", unit_scale=True) as bar:
        for job in jobs:
            name = "" if job.ablation == TRUE else f" {job.ablation.name}"
            bar.set_description(f"{job.samples.task} {job.samples.length}{name}")
            for start in range(0, len(job.missing), batch_size):
                _answer(job, job.missing[start : start + batch_size], answerer, bar.update, rank)


def _answer(job: Job, indexes: list[int], answerer: Answerer, advance: Callable[[int], None], rank: int) -> None:
    samples, kwargs = job.samples, {}
    if job.ablation.from_next:
        kwargs["sources"] = [samples.sample((index + 1) % len(samples)) for index in indexes]
    if job.ablation.max_segments is not None:
        kwargs["max_segments"] = job.ablation.max_segments
    outputs = answerer.answer([samples.sample(index) for index in indexes], advance, **kwargs)
    for index, output in zip(indexes, outputs):
        question, answer = samples.asked(index)
        job.file.append(official_files.Row(index, answer, output, question), rank)


if __name__ == "__main__":
    cli.run(main)
