"""Reading one long sequence: sequential, diagonal, and the same decoder with full attention through Hugging Face.

    python benchmarks/long_context.py                                    # GPT-2 small sizes, 1k to 4k tokens, on a CPU
    python benchmarks/long_context.py --sizes toy --lengths 4096 16384 65536
    python benchmarks/long_context.py --device cuda --sizes gpt2-small llama-1b --segment_size 1008 --picture long.png

Random weights, batch 1, one forward pass with logits of the last token. Full attention is the backbone's own forward
pass with its key-value cache, which is what Hugging Face's `generate` does with a prompt; its memory grows with the
length, and lengths that would not fit are left out. All run on the same weights, in the same type and process, and take
turns (A B C C B A), with a matrix product timed in between. Before anything is timed, executors must agree with the
first one. Peak memory is above the weights. The share of the ceiling is that of the arithmetic that each needs.
"""

import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import (
    Ceiling,
    MachineArgs,
    finish,
    free_memory,
    freed_memory_returned,
    require_tests,
    there_and_back,
)
from sizes import check_way, choose, make_model, model_config
from torch import Tensor
from tqdm.auto import tqdm

from lm_experiments_tools import cli
from lm_experiments_tools.args import option
from lm_experiments_tools.evaluation.canvas import MARKERS, colour, line, panels, save
from lm_experiments_tools.peak_memory import PeakMemory
from modeling_armt import ArmtForCausalLM
from modeling_armt.flops import FlopCount

FULL = "full attention"
SPARE = 0.8  # of the free memory may be taken
AGREES = {"float32": 1e-4, "bfloat16": 0.1}  # of the largest logit
TESTS = ("tests/test_diagonal.py", "tests/test_flops.py", "-k", "float32 or decoder_alone")


@dataclass
class LongArgs(MachineArgs):
    """What to read."""

    sizes: list[str] | None = option(None, "of toy, gpt2-small, llama-1b, tiny; default: gpt2-small")
    lengths: list[int] | None = option(None, "tokens, ascending; default: 1k to 4k on a CPU, 4k to 128k on a GPU")
    segment_size: int = option(512, "text tokens of a segment")
    num_mem_tokens: int = option(16, "memory tokens of a segment")
    executors: list[str] | None = option(None, "orders of the recurrence, +compile; default: sequential diagonal")
    no_full: bool = option(False, "leave full attention out")
    pairs: int | None = option(None, "times that each is timed there and back; default: 1 on a CPU, 3 on a GPU")
    picture: str | None = option(None, "file for a picture of seconds by length")

    def __post_init__(self):
        super().__post_init__()
        self.sizes = self.sizes or ["gpt2-small"]
        self.executors = [check_way(name) for name in self.executors or ["sequential", "diagonal"]]
        self.lengths = sorted(self.lengths or [1024 << i for i in (range(3) if self.on_cpu else range(2, 8))])
        self.pairs = self.pairs or (1 if self.on_cpu else 3)

    @property
    def ways(self) -> list[str]:
        return [*self.executors, *([] if self.no_full else [FULL])]


class Readers:
    """The ways to read, on one model."""

    def __init__(self, args: LongArgs, size: str):
        self.args, longest = args, args.lengths[-1]
        config = model_config(size, args.segment_size, args.num_mem_tokens, positions=longest)
        self.model: ArmtForCausalLM = make_model(config, args.device, args.torch_dtype)
        self.count = FlopCount(self.model)

    def ids(self, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(length)
        return torch.randint(self.model.config.vocab_size, (1, length), generator=generator).to(self.args.device)

    @torch.no_grad()
    def read(self, way: str, ids: Tensor) -> Tensor:
        """Logits (1, 1, V) of the last token."""
        if way == FULL:
            return self.model.backbone(ids, use_cache=True, logits_to_keep=1).logits
        choose(self.model, way)
        return self.model(ids, logits_to_keep=1).logits

    def needed(self, way: str, length: int) -> float:
        """FLOPs."""
        count = self.count
        reading = count.decoder(length) if way == FULL else count.sequence(length, wanted=[length - 1])
        return (reading + count.head(1)).total


def disagreement(readers: Readers) -> dict[str, float]:
    """Of every executor's logits from the first one's, over the largest.

    Raises:
        SystemExit: they differ by more than rounding.
    """
    args, found = readers.args, {}
    first, *others = args.executors
    ids = readers.ids(args.lengths[0])
    expected = readers.read(first, ids).float()
    for way in others:
        apart = ((readers.read(way, ids).float() - expected).abs().max() / expected.abs().max()).item()
        found[way] = apart
        if not apart <= AGREES[args.dtype]:
            print(f"nothing is reported: logits of {way} and {first} differ by {apart:.1e}", file=sys.stderr)
            sys.exit(1)
    return found


def fitting(args: LongArgs, size: str) -> dict[int, dict[str, int]]:
    """By length: peak memory above the weights, of all ways that fit, judged by the length before."""
    found: dict[int, dict[str, int]] = {}
    with freed_memory_returned():
        readers = Readers(args, size)
        for way in args.ways:
            readers.read(way, readers.ids(args.segment_size))  # stacks are made
        for length in tqdm(args.lengths, desc=f"peak memory, {size}", leave=False, disable=None):
            shorter, ids, peaks = max(found, default=None), readers.ids(length), {}
            for way in args.ways:
                expected = 0 if shorter is None else found[shorter].get(way, float("inf")) * length / shorter
                if expected < SPARE * free_memory(args.device):
                    with PeakMemory(torch.device(args.device)) as memory:
                        readers.read(way, ids)
                    peaks[way] = memory.bytes
            found[length] = peaks
    return found


def measure(args: LongArgs, size: str, memory: dict[int, dict[str, int]], ceiling: Ceiling) -> tuple[list, dict]:
    """Rows of the table, and how far executors are apart."""
    readers = Readers(args, size)
    apart, rows = disagreement(readers), []
    for length, peaks in tqdm(memory.items(), desc=size, leave=False, disable=None):
        ids = readers.ids(length)
        for way in peaks:
            readers.read(way, ids)  # warms up
        seconds: dict[str, list[float]] = {way: [] for way in peaks}
        for _ in range(args.pairs):
            for way in there_and_back([*peaks]):
                ceiling.sample(repeats=1)
                seconds[way].append(args.timed(partial(readers.read, way, ids)))
        middle = {way: statistics.median(found) for way, found in seconds.items()}
        for way, peak in peaks.items():
            row = {"size": size, "tokens": length, "way": way, "seconds": middle[way], "peak_bytes": peak}
            row |= {"tokens_per_second": length / middle[way], "needed_flops": readers.needed(way, length)}
            row |= {f"times_faster_than_{other}": middle[other] / middle[way] for other in peaks if other != way}
            rows.append(row)
    return rows, apart


def show(args: LongArgs, rows: list[dict], ceiling: Ceiling) -> None:
    names = "".join(f"{'/ ' + way:>17}" for way in args.ways)
    print(
        f"{'size':<12}{'tokens':>9}  {'way':<16}{'seconds':>9}{'tokens/s':>12}{'peak, MB':>10}{'of ceiling':>12}{names}"
    )
    for row in rows:
        row["share_of_ceiling"] = row["needed_flops"] / row["seconds"] / ceiling.flops
        times = [row.get(f"times_faster_than_{way}") for way in args.ways]
        shown = "".join(f"{'' if ratio is None else f'{ratio:.2f}x':>17}" for ratio in times)
        rates = f"{row['seconds']:>9.3f}{row['tokens_per_second']:>12,.0f}{row['peak_bytes'] / 1e6:>10,.0f}"
        print(f"{row['size']:<12}{row['tokens']:>9}  {row['way']:<16}{rates}{row['share_of_ceiling']:>12.1%}{shown}")


def draw(args: LongArgs, rows: list[dict], where: str) -> None:
    """Seconds by length, a panel for each size."""
    from matplotlib.ticker import LogLocator

    figure, axes = panels(f"One sequence, batch 1, {where}", len(args.sizes), 4.6, 3.4, 0.8)
    handles: dict[str, Any] = {}
    for panel, size in zip(axes, args.sizes):
        for number, way in enumerate(args.ways):
            points = [(row["tokens"], row["seconds"]) for row in rows if (row["size"], row["way"]) == (size, way)]
            style = {"color": colour(number), "linestyle": line(number), "marker": MARKERS[number % len(MARKERS)]}
            (handles[way],) = panel.plot(*zip(*points), linewidth=1.4, ms=4.5, **style)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(args.lengths, [f"{n / 1024:g}k" for n in args.lengths], fontsize=8)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set(title=size, xlabel="tokens, log scale", ylabel="seconds, log scale")
        panel.grid(color="0.87", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    save(figure, [Path(args.picture)])


def main(argv: list[str] | None = None) -> None:
    (args,) = cli.parse(argv, LongArgs, description=__doc__)
    require_tests(*TESTS)
    memory = {size: fitting(args, size) for size in args.sizes}  # before a heap is there that hides what is freed
    ceiling, rows, apart = Ceiling(args), [], {}
    for size in args.sizes:
        found, apart[size] = measure(args, size, memory[size], ceiling)
        rows += found
    show(args, rows, ceiling)
    threads = torch.get_num_threads()
    where = f"{threads} CPU thread{'s' * (threads > 1)}" if args.on_cpu else torch.cuda.get_device_name()
    if args.picture:
        draw(args, rows, f"{args.dtype}, {where}")
    finish(args, ceiling, rows=rows, logits_differ_by=apart)


if __name__ == "__main__":
    cli.run(main)
