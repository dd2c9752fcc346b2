"""Losses of language models by segment: does the loss fall as the memory fills, and is that the memory's doing?

    python -m lm_experiments_tools.evaluation.language_modeling --models armt=runs/armt none=runs/none full=runs/hf \
        --data corpora/test --segments 15 --ablate zero other --output runs/losses

All models read the same windows of the same text. `--ablate zero` empties the memory before each segment, so that the
same model goes without; `other` takes the memory of another window, `freeze:K` writes nothing after segment K. Leaves
index.md, losses.csv, and a picture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import cli
from ..args import option
from ..data.corpus import Corpus, check_vocabulary
from ..distributed.single import SingleEngine
from ..errors import UserError
from ..loggers import say
from .ablation import TRUE, parse_ablation
from .loading import load_model, trained_tokens
from .loss_report import Comparison, Measured, as_csv, as_markdown, draw_by_segment, overall_rows
from .segment_losses import Windows, segment_losses


@dataclass
class LossArgs:
    """Options of the evaluation."""

    models: list[str] | None = option(None, "NAME=MODEL, a run, a checkpoint, a saved model or a hub name; several")
    data: list[str] | None = option(None, "prepared corpora")
    segments: int = option(8, "segments of a window; the ends of documents that make no whole window are left out")
    segment_size: int | None = option(None, "tokens of a segment; default: that of the models that have segments")
    num_samples: int | None = option(None, "windows, spread over the corpora; default: all")
    ablate: list[str] | None = option(None, "other memories to read with, where a model has one: zero, other, freeze:K")
    batch_size: int = option(8, "windows at once; logits of a batch's segment are held, in float32")
    mixed_precision: Literal["no", "bf16"] = option("no", "compute type")
    model_package: str = option("modeling_armt", "package to import first: it registers its models")
    output: str = option("losses", "folder for tables and picture")

    def __post_init__(self):
        if not self.models or not self.data:
            raise UserError("give --models NAME=MODEL ..., and --data, a prepared corpus")
        for name in ("segments", "segment_size", "num_samples", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if any(parse_ablation(name).from_next for name in self.ablate or []) and self.batch_size < 2:
            raise UserError("ablate other takes the memory of another window: batch_size must be at least 2")


def main(argv: list[str] | None = None) -> Comparison:
    (args,) = cli.parse(argv, LossArgs, description=__doc__)
    compared = evaluate(args)
    names, folder = ", ".join(Path(name).name for name in args.data), Path(args.output)
    title = f"Losses by segment, {names}"
    with cli.mendable(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        draw_by_segment(compared, title, [folder / "loss.png", folder / "loss.svg"])
        (folder / "losses.csv").write_text(as_csv(compared), encoding="utf-8")
        (folder / "index.md").write_text(as_markdown(compared, title), encoding="utf-8")
    say("\n".join("  ".join(f"{cell:>20}" for cell in row) for row in overall_rows(compared)))
    say(f"tables and picture: {folder / 'index.md'}")
    return compared


def evaluate(args: LossArgs) -> Comparison:
    """All models on the same windows.

    Raises:
        UserError: a model or corpus is missing or damaged, tokenizers or segments differ, no document is long enough.
    """
    named = [split_name(word) for word in args.models]
    corpora = [Corpus(name, verify=True) for name in args.data]
    tokenizer = corpora[0].tokenizer()
    check_vocabulary(corpora, tokenizer)
    device, windows, results = SingleEngine().device, None, []
    size = args.segment_size or _segment_size(args, named)
    windows = Windows(corpora, args.segments, size, args.num_samples)
    for name, source in named:
        model, own = load_model(source, args.model_package)
        check_vocabulary(corpora, own)
        if getattr(model.config, "segment_size", size) != size:
            raise UserError(f"{name} has segments of {model.config.segment_size} tokens, not {size}: evaluate it alone")
        trained = trained_tokens(source)
        ablations = [parse_ablation(word) for word in args.ablate or []] if _has_memory(model) else []
        for ablation in dict.fromkeys([TRUE, *ablations]):
            if ablation.from_next and len(windows) < 2:
                raise UserError("ablate other takes the memory of another window, and there is one")
            title = name if ablation == TRUE else f"{name} {ablation.name}"
            bf16 = args.mixed_precision == "bf16"
            nats = segment_losses(model.to(device), windows, ablation, args.batch_size, bf16, title)
            results.append(Measured(name, ablation.name, nats, trained and trained / size))
    return Comparison(results, windows.num_bytes(tokenizer), size)


def _has_memory(model) -> bool:
    return hasattr(model, "read") and bool(model.config.num_mem_tokens)


def _segment_size(args: LossArgs, named: list[tuple[str, str]]) -> int:
    """That of the first model that has segments."""
    for _, source in named:
        config = load_model(source, args.model_package)[0].config
        if hasattr(config, "segment_size"):
            return config.segment_size
    raise UserError("none of the models has segments: give --segment_size")


def split_name(word: str) -> tuple[str, str]:
    """`NAME=MODEL`; of a bare MODEL the last part of its path is the name."""
    name, separator, model = word.partition("=")
    return (name, model) if separator else (Path(word).name, word)


if __name__ == "__main__":
    cli.run(main)
