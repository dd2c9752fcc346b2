"""Is the memory used? Reports what every layer's memory does with a text, and where a question's reads come from.

    python -m modeling_armt.inspect MODEL_FOLDER --text book.txt --question "Where is John? GEN" --output memory-report

The model is a folder with a tokenizer, such as a run's `best`. The question stands right behind the text, as in
training. Leaves memory.json and memory.png in the output folder.
"""

import argparse
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..modeling_base import RecurrentModel
from .figure import draw
from .inspection import WINDOW, check_model, inspect_memory
from .report import MemoryReport


def load(folder: str) -> tuple[RecurrentModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer.

    Raises:
        ValueError: it is no folder of an ARMT model. OSError: a file in it cannot be read.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"no config.json in {folder}: give the folder of a saved model, such as a run's best")
    model = AutoModelForCausalLM.from_pretrained(folder)
    check_model(model)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), AutoTokenizer.from_pretrained(folder)


def read_text(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"no text file {path}")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def check_output(output: Path) -> None:
    """Raise `ValueError` where no folder can be made."""
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file: give a folder as --output")


def inspect_text(args: argparse.Namespace) -> MemoryReport:
    """Report on a text, and perhaps a question behind it.

    Raises:
        ValueError: an argument does not fit. OSError: a file cannot be read.
    """
    if args.max_segments is not None and args.max_segments < 1:
        raise ValueError(f"max_segments is {args.max_segments}; it must be at least 1")
    check_output(Path(args.output))
    text = read_text(args.text)
    model, tokenizer = load(args.model)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    ids, question_tokens = encode(text), args.question_tokens
    if args.max_segments is not None:
        ids = ids[: args.max_segments * model.config.segment_size]
    if args.question is not None:
        question = encode(f" {args.question}")
        ids += question
        question_tokens = len(question) if question_tokens is None else question_tokens
    return inspect_memory(model, ids, question_tokens=question_tokens, window=args.window, progress=True)


def write(report: MemoryReport, output: Path) -> None:
    """Write picture and JSON; each is whole or not there."""
    output.mkdir(parents=True, exist_ok=True)
    temporary = [output / f"memory.{os.getpid()}.tmp.{kind}" for kind in ("png", "json")]
    try:
        draw(report, temporary[0])
        temporary[1].write_text(report.to_json(), encoding="utf-8")
        for path in temporary:
            path.replace(output / f"memory{path.suffix}")
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def parse(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_armt.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder of a model and its tokenizer")
    parser.add_argument("--text", required=True, help="text file, UTF-8")
    parser.add_argument("--question", help="stands behind the text")
    parser.add_argument(
        "--question_tokens",
        type=int,
        help="the question is the last so many tokens; default: all of --question, or without it the last segment",
    )
    parser.add_argument("--max_segments", type=int, help="read the first so many segments of the text; default: all")
    parser.add_argument(
        "--window",
        type=int,
        default=WINDOW,
        help=f"segments before the question that are told apart as sources; older ones are one; default: {WINDOW}",
    )
    parser.add_argument("--output", required=True, help="folder to write memory.json and memory.png to")
    return parser, parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv)
    transformers_logging.disable_progress_bar()  # of loading weights
    try:
        report = inspect_text(args)
        write(report, Path(args.output))
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    print(f"{report.table()}\nwritten to {args.output}: memory.json, memory.png")


if __name__ == "__main__":
    main()
