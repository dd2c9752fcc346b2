"""Read a book once, keep its memory in a file, ask it questions in later processes.

    python scripts/read_once.py read runs/quickstart/stage-5/best --text book.txt --memory book.safetensors
    python scripts/read_once.py ask runs/quickstart/stage-5/best --memory book.safetensors \
        "Where is John? GEN" "Where is Mary? GEN"

The model is a folder with a tokenizer, such as a run's `best`. Memory and time of a question do not depend on the
length of the book. A memory is refused by any other model than the one that read it.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
import modeling_armt  # noqa: E402, F401 - registers the models

CHARACTERS = 1 << 16  # read from the text and tokenized at a time


def pieces(path: Path, tokenizer) -> Iterator[list[int]]:
    """Tokens of a text file, a few pages at a time; cut at white space, so that no word is torn."""
    with open(path, encoding="utf-8") as file:
        rest = ""
        while text := file.read(CHARACTERS):
            whole, space, last = (rest + text).rpartition(" ")
            rest = space + last
            yield tokenizer(whole, add_special_tokens=False)["input_ids"]
        yield tokenizer(rest, add_special_tokens=False)["input_ids"]


def read(model, tokenizer, args) -> None:
    if not Path(args.text).is_file():
        raise ValueError(f"no text file {args.text}")
    state = model.read(pieces(Path(args.text), tokenizer))
    state.save(args.memory, model)
    print(f"{int(state.segments_seen[0]):,} segments of {args.text} in {state.nbytes / 2**20:.1f} MiB: {args.memory}")


def ask(model, tokenizer, args) -> None:
    state = model.state_class.load(args.memory, model).to(model.device)
    batch = tokenizer(args.questions, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    batch = batch.to(model.device)
    answers = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        memory_state=state.repeat(len(args.questions)),
        max_new_tokens=args.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    for question, answer in zip(args.questions, answers[:, batch["input_ids"].shape[1] :]):
        print(f"{question} -> {' '.join(tokenizer.decode(answer, skip_special_tokens=True).split())}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    reader = commands.add_parser("read", help="read a text file into a memory")
    asker = commands.add_parser("ask", help="ask a memory a batch of questions")
    for command, action in ((reader, read), (asker, ask)):
        command.add_argument("model", help="folder of a model and its tokenizer")
        command.add_argument("--memory", required=True, help="safetensors file of the memory")
        command.set_defaults(action=action)
    reader.add_argument("--text", required=True, help="text file, UTF-8")
    asker.add_argument("questions", nargs="+")
    asker.add_argument("--max_new_tokens", type=int, default=10, help="longest answer in tokens; default: 10")
    args = parser.parse_args(argv)
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model).eval()
        args.action(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
