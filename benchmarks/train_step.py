"""A training step with answer-only labels: ours against a plain one, and executor against executor.

    python benchmarks/train_step.py                                     # the toy; minutes on two CPU cores
    python benchmarks/train_step.py --sizes gpt2-small --segments 2 8 --pairs 1
    python benchmarks/train_step.py --device cuda --sizes gpt2-small --segments 32 --batch_size 8 --replay

A step is forward pass, backward pass and AdamW. The plain step (plain_step.py) is the equations in their simplest form:
scores of attention, logits of all positions joined, everything saved. Before anything is timed, each step must give the
plain one's loss and gradients, to 1e-4 of the largest in a parameter, in float32. Steps take turns (A B C C B A), and a
matrix product is timed in between. Peak memory is that of a process of its own, above weights, gradients and optimizer.
A step whose memory would not fit, judged by one of fewer segments, is left out. Utilisation is what the step needs
(modeling_armt/flops.py) over the rate of the matrix product. bfloat16 is by autocast; weights are float32.
"""

import json
import statistics
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
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
from plain_step import plain_loss
from sizes import REPLAYED, check_way, choose, make_model, model_config
from torch import Tensor
from tqdm.auto import tqdm

from lm_experiments_tools import cli
from lm_experiments_tools.args import option
from lm_experiments_tools.cli import to_arguments
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.peak_memory import PeakMemory
from modeling_armt.flops import FlopCount

PLAIN = "plain"
ANSWER = 4  # labelled tokens at the end of a sample
AGREES = 1e-4  # of the largest gradient in a parameter
SPARE = 0.8  # of the free memory may be taken
TESTS = (
    "tests/test_flops.py",
    "tests/test_training_depth.py",
    "tests/test_diagonal.py",
    "-k",
    "float32 or gpt2 or replay",
)


@dataclass
class StepArgs(MachineArgs):
    """What to train."""

    sizes: list[str] | None = option(None, "of toy, gpt2-small, tiny; default: toy")
    segments: list[int] | None = option(None, "of a sample, ascending; default: 2 8 32")
    batch_size: int = option(1, "samples of a step")
    segment_size: int = option(512, "text tokens of a segment")
    num_mem_tokens: int = option(16, "memory tokens of a segment")
    executors: list[str] | None = option(None, "orders of the recurrence, +compile; default: sequential diagonal")
    replay: bool = option(False, "also steps that keep no activations of segments, but run them again")
    no_plain: bool = option(False, "leave the plain step out, of which everything is checked and compared")
    pairs: int = option(3, "times that all steps are timed there and back")
    only: str | None = option(None, "print the peak memory of this step alone, with one size and number of segments")

    def __post_init__(self):
        super().__post_init__()
        self.sizes, self.segments = self.sizes or ["toy"], sorted(self.segments or [2, 8, 32])
        self.executors = [check_way(name) for name in self.executors or ["sequential", "diagonal"]]
        if "llama-1b" in self.sizes:
            raise UserError("the plain step is GPT-2's: choose of toy, gpt2-small, tiny")

    @property
    def steps(self) -> list[str]:
        """Names of all that is compared."""
        mine = [executor + kind for executor in self.executors for kind in ([""] + [REPLAYED] * self.replay)]
        return mine if self.no_plain else [PLAIN, *mine]


class Steps:
    """The model of one size, and what trains it."""

    def __init__(self, args: StepArgs, size: str):
        self.args = args
        config = model_config(size, args.segment_size, args.num_mem_tokens)
        self.model = make_model(config, args.device, torch.float32).train()
        self.optimizers: dict[bool, torch.optim.Optimizer] = {}

    def batch(self, segments: int) -> dict[str, Tensor]:
        shape = self.args.batch_size, segments * self.args.segment_size
        ids = torch.randint(self.model.config.vocab_size, shape, device=self.args.device)
        labels = torch.full_like(ids, -100)
        labels[:, -ANSWER:] = ids[:, -ANSWER:]
        return {"input_ids": ids, "labels": labels}

    def loss(self, step: str, batch: dict[str, Tensor]) -> Tensor:
        if step == PLAIN:
            return plain_loss(self.model, batch["input_ids"], batch["labels"])
        choose(self.model, step)
        return self.model(**batch, output_memory_state=False).loss

    def update(self, step: str, batch: dict[str, Tensor]) -> None:
        """One step; gradients stay allocated."""
        fused = step != PLAIN
        if fused not in self.optimizers:
            self.optimizers[fused] = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=fused)
        with self._precision():
            loss = self.loss(step, batch)
        loss.backward()
        self.optimizers[fused].step()
        self.optimizers[fused].zero_grad(set_to_none=False)

    def _precision(self) -> Any:
        if self.args.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.args.device, self.args.torch_dtype)

    def gradients(self, step: str, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients in float32, which are forgotten here."""
        self.model.zero_grad(set_to_none=True)
        loss = self.loss(step, batch)
        loss.backward()
        found = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        self.model.zero_grad(set_to_none=True)
        return loss.item(), found


def disagreement(steps: Steps, batch: dict[str, Tensor]) -> dict[str, float]:
    """Of every step from the first: the largest difference of a gradient, over the largest gradient in its parameter.

    Raises:
        SystemExit: a loss or a gradient differs.
    """
    first, *others = steps.args.steps
    loss, expected = steps.gradients(first, batch)
    found = {}
    for step in others:
        other_loss, gradients = steps.gradients(step, batch)
        apart = {
            name: ((gradients[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-12)).item()
            for name, gradient in expected.items()
        }
        worst = max(apart, key=apart.get)
        found[step] = apart[worst]
        if not (apart[worst] <= AGREES and abs(other_loss - loss) <= AGREES * abs(loss)):
            print(f"nothing is reported: step {step} and step {first} differ: loss {other_loss} and {loss}, "
                  f"gradient of {worst} by {apart[worst]:.1e} of its largest", file=sys.stderr)  # fmt: skip
            sys.exit(1)
    return found


def peak_bytes(args: StepArgs, size: str, segments: int, step: str) -> int | None:
    """Of one step; None: it does not fit."""
    one = replace(args, sizes=[size], segments=[segments], only=step, output=None)
    if not args.on_cpu:
        with suppress(torch.OutOfMemoryError):
            return own_peak(one)
        return None
    words = to_arguments({name: _text(value) for name, value in asdict(one).items() if value not in (None, False)})
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"step {step} of {size}, {segments} segments, failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _text(value: Any) -> Any:
    return [str(each) for each in value] if isinstance(value, list) else str(value)


def own_peak(args: StepArgs) -> int:
    """Peak memory of the step `only`, above weights, gradients and optimizer state."""
    with freed_memory_returned():
        steps = Steps(args, args.sizes[0])
        steps.update(args.only, steps.batch(1))  # allocates gradients and optimizer state
        batch = steps.batch(args.segments[0])
        with PeakMemory(torch.device(args.device)) as memory:
            steps.update(args.only, batch)
    return memory.bytes


def fitting(args: StepArgs, size: str) -> dict[int, dict[str, int]]:
    """By number of segments: the peak memory of all steps that fit."""
    found: dict[int, dict[str, int]] = {}
    for segments in args.segments:
        fewer, peaks = max(found, default=None), {}
        for step in tqdm(args.steps, desc=f"peak memory, {size}, {segments} segments", leave=False, disable=None):
            expected = 0 if fewer is None else found[fewer].get(step, float("inf")) * segments / fewer
            if expected < SPARE * free_memory(args.device):
                peak = peak_bytes(args, size, segments, step)
                peaks |= {} if peak is None else {step: peak}
        found[segments] = peaks
    return found


def seconds_by_step(steps: Steps, names: list[str], segments: int, ceiling: Ceiling) -> dict[str, list[float]]:
    """Of an update, each a mean of two: there and back."""
    args, batch = steps.args, steps.batch(segments)
    for name in names:
        steps.update(name, batch)  # warms up
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in tqdm(range(args.pairs), desc=f"{segments} segments", leave=False, disable=None):
        turn: dict[str, list[float]] = {name: [] for name in names}
        for name in there_and_back(names):
            ceiling.sample(repeats=1)
            turn[name].append(args.timed(lambda step=name: steps.update(step, batch)))
        for name, seconds in turn.items():
            found[name].append(statistics.mean(seconds))
    return found


def measure(args: StepArgs, size: str, ceiling: Ceiling) -> tuple[list[dict], dict[str, float]]:
    memory = fitting(args, size)
    steps = Steps(args, size)
    apart = disagreement(steps, steps.batch(args.segments[0]))
    rows = []
    for segments, peaks in memory.items():
        seconds = seconds_by_step(steps, list(peaks), segments, ceiling)
        needed = FlopCount(steps.model).training(steps.batch(segments)).total
        for step, peak in peaks.items():
            middle = statistics.median(seconds[step])
            row = {"size": size, "segments": segments, "step": step, "seconds": middle, "peak_bytes": peak}
            row["tokens_per_second"] = args.batch_size * segments * args.segment_size / middle
            row["needed_flops_per_second"] = needed / middle
            if PLAIN in peaks:
                row["times_faster"] = statistics.median(a / b for a, b in zip(seconds[PLAIN], seconds[step]))
                row["share_of_memory"] = peak / peaks[PLAIN]
            rows.append(row)
    return rows, apart


def show(rows: list[dict], ceiling: Ceiling) -> None:
    titles = f"{'seconds':>9}{'tokens/s':>11}{'peak, MB':>10}{'utilisation':>13}{'faster':>9}{'memory':>9}"
    print(f"{'size':<12}{'segments':>9}  {'step':<20}{titles}")
    for row in rows:
        row["utilisation"] = row["needed_flops_per_second"] / ceiling.flops
        ratios = f"{row['times_faster']:>8.1f}x{row['share_of_memory']:>9.3f}" if "times_faster" in row else ""
        rates = f"{row['seconds']:>9.3f}{row['tokens_per_second']:>11,.0f}{row['peak_bytes'] / 1e6:>10,.0f}"
        name = f"{row['size']:<12}{row['segments']:>9}  {row['step']:<20}"
        print(f"{name}{rates}{row['utilisation']:>13.1%}{ratios}")


def main(argv: list[str] | None = None) -> None:
    (args,) = cli.parse(argv, StepArgs, description=__doc__)
    if args.only:
        print(own_peak(args))
        return
    require_tests(*TESTS)
    ceiling, rows, apart = Ceiling(args), [], {}
    for size in args.sizes:
        found, apart[size] = measure(args, size, ceiling)
        rows += found
    show(rows, ceiling)
    finish(args, ceiling, rows=rows, gradients_differ_by=apart)


if __name__ == "__main__":
    cli.run(main)
