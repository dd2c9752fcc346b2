"""A text of any length in constant memory: tokens a second and resident memory at every tenth of it.

    python benchmarks/stream.py                                         # 1M tokens, the toy, a minute on two CPU cores
    python benchmarks/stream.py --device cuda --tokens 50000000 --size gpt2-small --segment_size 1008

Random tokens, made as they are read, go through `model.read`. Memory is the most that a tenth takes, in all: resident
memory of the process on a CPU, what tensors take on a GPU. No tenth should take 2 percent more than the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from machine import Ceiling, MachineArgs, finish, require_tests
from sizes import check_way, choose, make_model, model_config
from torch import Tensor
from tqdm.auto import tqdm

from lm_experiments_tools import cli
from lm_experiments_tools.args import option
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.peak_memory import PeakMemory
from modeling_armt.flops import FlopCount
from modeling_armt.reading import SEGMENTS_AT_ONCE

TENTHS = 10
WARM_UP = 4  # pieces that are read before: what the allocator keeps is there
FLAT = 1.02  # memory of any tenth over that of the first
TESTS = ("tests/test_memory_state.py", "tests/test_diagonal.py", "-k", "reading or not_held or float32")


@dataclass
class StreamArgs(MachineArgs):
    """What to read."""

    size: str = option("toy", "toy, gpt2-small, llama-1b or tiny")
    tokens: int | None = option(None, "of the text; default: 1M on a CPU, 50M on a GPU")
    batch_size: int = option(1, "texts at once, each of so many tokens")
    segment_size: int = option(512, "text tokens of a segment")
    num_mem_tokens: int = option(16, "memory tokens of a segment")
    executor: str = option("sequential", "order of the recurrence, +compile")
    max_seconds: float | None = option(None, "stop behind the tenth in which so many have passed")

    def __post_init__(self):
        super().__post_init__()
        check_way(self.executor)
        self.tokens = self.tokens or (1_000_000 if self.on_cpu else 50_000_000)
        if self.tokens < TENTHS * self.segment_size:
            raise UserError(
                f"tokens is {self.tokens}; ten tenths of a segment at least are {TENTHS * self.segment_size}"
            )

    @property
    def tenth(self) -> int:
        """Tokens, in whole segments."""
        return self.tokens // TENTHS // self.segment_size * self.segment_size


def text(args: StreamArgs, vocabulary: int, seed: int) -> Iterator[Tensor]:
    """A tenth, in pieces (B, n)."""
    generator, piece = torch.Generator().manual_seed(seed), SEGMENTS_AT_ONCE * args.segment_size
    for start in range(0, args.tenth, piece):
        yield torch.randint(vocabulary, (args.batch_size, min(piece, args.tenth - start)), generator=generator)


def measure(args: StreamArgs, ceiling: Ceiling) -> list[dict]:
    config = model_config(args.size, args.segment_size, args.num_mem_tokens)
    model = make_model(config, args.device, args.torch_dtype)
    choose(model, args.executor)
    needed = FlopCount(model).sequence(args.tenth, seen=True, wanted=()).total * args.batch_size
    state, rows = model.read(islice(text(args, config.vocab_size, TENTHS), WARM_UP)), []
    before = int(state.segments_seen[0])
    for number in tqdm(range(TENTHS), desc="tenths", leave=False, disable=None):
        ceiling.sample(repeats=1)

        def read(number: int = number) -> None:
            nonlocal state
            state = model.read(text(args, config.vocab_size, number), state, progress=False)

        with PeakMemory(torch.device(args.device)) as memory:
            seconds = args.timed(read)
        rate = args.tenth * args.batch_size / seconds
        row = {"tokens_read": (number + 1) * args.tenth, "seconds": seconds, "tokens_per_second": rate}
        rows.append(row | {"peak_bytes": memory.peak, "needed_flops_per_second": needed / seconds})
        if args.max_seconds and sum(row["seconds"] for row in rows) > args.max_seconds:
            break
    read_segments = state.segments_seen - before
    if bool((read_segments * args.segment_size != rows[-1]["tokens_read"]).any()):
        raise RuntimeError(f"{read_segments.tolist()} segments were read")
    return rows


def main(argv: list[str] | None = None) -> None:
    (args,) = cli.parse(argv, StreamArgs, description=__doc__)
    require_tests(*TESTS)
    ceiling = Ceiling(args)
    rows = measure(args, ceiling)
    print(f"{'tokens read':>13}{'seconds':>10}{'tokens/s':>13}{'peak, MB':>11}{'of ceiling':>12}")
    for row in rows:
        row["share_of_ceiling"] = row["needed_flops_per_second"] / ceiling.flops
        print(f"{row['tokens_read']:>13,}{row['seconds']:>10.2f}{row['tokens_per_second']:>13,.0f}"
              f"{row['peak_bytes'] / 1e6:>11,.1f}{row['share_of_ceiling']:>12.1%}")  # fmt: skip
    growth = max(row["peak_bytes"] for row in rows) / rows[0]["peak_bytes"]
    tokens, seconds = rows[-1]["tokens_read"] * args.batch_size, sum(row["seconds"] for row in rows)
    total = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "memory_growth": growth}
    total["is_flat"] = growth <= FLAT
    flat = "flat" if total["is_flat"] else "NOT flat"
    print(f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")
    print(f"memory of the largest tenth: {growth:.4f} of the first's, {flat} within 2 percent")
    finish(args, ceiling, rows=rows, total=total)


if __name__ == "__main__":
    cli.run(main)
