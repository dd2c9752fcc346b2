"""Decoding after a long prompt: tokens a second, ours and the same decoder with full attention through Hugging Face.

    python benchmarks/generate.py                                       # GPT-2 small sizes, on a CPU
    python benchmarks/generate.py --device cuda --sizes llama-1b --prompts 4096 32768 131072 --segment_size 1008

Random weights, greedy, batch 1. Both decode by Hugging Face's `generate`; ours has a memory and the cache of the open
segment, the other the keys and values of all that came before. They take turns (A B B A) with a matrix product timed in
between; a token's time is the median between two tokens, the prompt's that until the first one. What is held is counted
behind the last token. One token of batch 1 reads all weights once: the ceiling is the copy, not the matrix product.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from machine import Ceiling, MachineArgs, finish, require_tests, there_and_back
from sizes import check_way, choose, make_model, model_config
from torch import Tensor
from tqdm.auto import tqdm
from transformers.generation.streamers import BaseStreamer

from lm_experiments_tools import cli
from lm_experiments_tools.args import option
from modeling_armt import ArmtForCausalLM

OURS, FULL = "ours", "full attention"
TESTS = ("tests/test_generation.py", "-k", "not beam")


@dataclass
class GenerateArgs(MachineArgs):
    """What to write."""

    sizes: list[str] | None = option(None, "of toy, gpt2-small, llama-1b, tiny; default: gpt2-small")
    prompts: list[int] | None = option(None, "tokens of a prompt; default: 512 and 2k on a CPU, 4k to 128k on a GPU")
    new_tokens: int = option(32, "tokens to decode")
    segment_size: int = option(512, "text tokens of a segment")
    num_mem_tokens: int = option(16, "memory tokens of a segment")
    executor: str = option("sequential", "order of the recurrence for the prompt, +compile")
    pairs: int = option(1, "times that both are timed there and back")

    def __post_init__(self):
        super().__post_init__()
        check_way(self.executor)
        self.sizes = self.sizes or ["gpt2-small"]
        self.prompts = sorted(self.prompts or ([512, 2048] if self.on_cpu else [4096, 32768, 131072]))


class Moments(BaseStreamer):
    """When each token came."""

    def __init__(self, now: Callable[[], float]):
        self.now, self.moments = now, list[float]()

    def put(self, value: Tensor) -> None:
        self.moments.append(self.now())  # the prompt first; `value` lies on the CPU, so the device is done

    def end(self) -> None:
        pass


def decode(args: GenerateArgs, model: ArmtForCausalLM, way: str, ids: Tensor) -> tuple[float, float, int]:
    """Seconds until the first token, seconds of a further one, and bytes that are held behind the last."""
    moments, start = Moments(args.now), args.now()
    generated = (model if way == OURS else model.backbone).generate(
        ids, streamer=moments, max_new_tokens=args.new_tokens, do_sample=False, return_dict_in_generate=True
    )
    cache = generated.cache if "cache" in generated else generated.past_key_values
    tokens = moments.moments[1:]
    between = [after - before for before, after in zip(tokens, tokens[1:])]
    return tokens[0] - start, statistics.median(between), _held(cache)


def _held(cache: Any) -> int:
    """Bytes of keys and values, and of the memory."""
    state = getattr(cache, "state", None)
    layers = getattr(cache, "keys_values", cache).layers
    keys_values = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    return keys_values + (0 if state is None else state.nbytes)


def measure(args: GenerateArgs, size: str, ceiling: Ceiling) -> list[dict]:
    positions = args.prompts[-1] + args.new_tokens
    config = model_config(size, args.segment_size, args.num_mem_tokens, positions=positions)
    model, rows = make_model(config, args.device, args.torch_dtype), []
    choose(model, args.executor)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    for length in tqdm(args.prompts, desc=size, leave=False, disable=None):
        ids = torch.randint(config.vocab_size, (1, length), device=args.device)
        found: dict[str, list[tuple[float, float, int]]] = {OURS: [], FULL: []}
        for _ in range(args.pairs):
            for way in there_and_back([OURS, FULL]):
                ceiling.sample(repeats=1)
                found[way].append(decode(args, model, way, ids))
        middle = {way: [statistics.median(values) for values in zip(*runs)] for way, runs in found.items()}
        for way, (first, between, held) in middle.items():
            row = {"size": size, "prompt": length, "way": way, "seconds_to_first_token": first, "held_bytes": held}
            row |= {"tokens_per_second": 1 / between, "times_faster": middle[FULL][1] / between}
            rows.append(row | {"weights_bytes": weights})
    return rows


def main(argv: list[str] | None = None) -> None:
    (args,) = cli.parse(argv, GenerateArgs, description=__doc__)
    require_tests(*TESTS)
    ceiling, rows = Ceiling(args), []
    for size in args.sizes:
        rows += measure(args, size, ceiling)
    titles = f"{'first token, s':>15}{'tokens/s':>11}{'held, MB':>10}{'of ceiling':>12}{'faster':>9}"
    print(f"{'size':<12}{'prompt':>9}  {'way':<16}{titles}")
    read = ceiling.report()["copy_gb_per_second"] * 1e9
    for row in rows:
        row["share_of_ceiling"] = row["tokens_per_second"] * (row["weights_bytes"] + row["held_bytes"]) / read
        print(f"{row['size']:<12}{row['prompt']:>9}  {row['way']:<16}{row['seconds_to_first_token']:>15.3f}"
              f"{row['tokens_per_second']:>11.1f}{row['held_bytes'] / 1e6:>10.1f}{row['share_of_ceiling']:>12.1%}"
              f"{row['times_faster']:>8.2f}x")  # fmt: skip
    finish(args, ceiling, rows=rows)


if __name__ == "__main__":
    cli.run(main)
