"""Run a list of stages, each from the best checkpoint of the one before.

    python -m lm_experiments_tools.curriculum configs/babilong/quickstart.yaml --runs runs/quickstart

The YAML file holds `runner` (a program with `main(argv)`), `stages`, a list of what differs, and the options that all
stages share: those of the runner and of `StageArgs`. Options behind the file go to every stage.

Stage N runs in RUNS/stage-N, retry K of it in RUNS/stage-N-retry-K. RUNS/curriculum.json tells what was done (see
`ledger.py`), RUNS/curriculum.png shows it. What to do next follows from the stages' metrics alone, which every rank
has: so all ranks of torchrun agree, and a curriculum that is started again goes on where it was.
"""

import importlib.util
import os
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from . import cli
from .args import option
from .distributed.single import SingleEngine
from .errors import UserError
from .evaluation.curriculum_plot import draw_curriculum
from .evaluation.report import length_table
from .ledger import Ledger, Metrics, is_main, merit, read_ledger, results, sign, valid_metric
from .loggers import say
from .run_folder import finished, locked
from .status import write_status

SEED_STEP = 1000  # between attempts at a stage


class FellBack(RuntimeError):
    """A stage ended below `min_metric`, retries included, and is not to be gone on from."""


@dataclass
class StageArgs:
    """What the curriculum itself reads, for one stage or for all."""

    target_metric: float | None = option(None, "the next stage begins once optimize_metric is this good")
    min_metric: float | None = option(None, "a stage whose best optimize_metric is worse fell back, and is retried")
    max_retries: int = option(0, "retries of a stage that fell back, each from the stage before with another seed")
    stop_on_failure: bool = option(False, "end when the last retry fell back; else the best attempt is taken")
    samples_per_update: int | None = option(None, "sets gradient_accumulation_steps by batch_size and the ranks")

    def __post_init__(self):
        if self.max_retries < 0:
            raise UserError(f"max_retries is {self.max_retries}; it must be at least 0")
        if self.samples_per_update is not None and self.samples_per_update < 1:
            raise UserError(f"samples_per_update is {self.samples_per_update}; it must be at least 1, or left out")


@dataclass(frozen=True)
class Stage:
    """`words`: the runner's command line, without folder and start; `options`: what the runner reads from it."""

    number: int
    rules: StageArgs
    words: list[str]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        unit = "pair" if "num_pairs" in self.options else "segment"
        number = self.options.get("num_pairs", self.options.get("max_n_segments"))
        return "facts only" if self.options.get("facts_only") else f"{number} {unit}{'s' * (number != 1)}"

    def folder(self, attempt: int = 0) -> str:
        """In RUNS."""
        return f"stage-{self.number}" + (f"-retry-{attempt}" if attempt else "")

    def is_enough(self, metrics: Metrics) -> bool:
        return self.rules.min_metric is None or merit(metrics) >= sign(metrics) * self.rules.min_metric


def plan(config: str, runs: str, overrides: list[str]) -> tuple[ModuleType, list[Stage]]:
    """The runner and all stages of a configuration; each stage's options are checked by the runner's own parser.

    Raises:
        UserError: no stages, no runner, or a stage's options are wrong (names the stage).
    """
    shared = cli.read_yaml(config)
    differing, runner = shared.pop("stages", None), shared.pop("runner", None)
    if not (isinstance(differing, list) and differing and runner):
        raise UserError(f"{config}: expected `runner: PROGRAM.py` and a list `stages`")
    program, stages = load_runner(Path(config), runner), []
    for number, stage in enumerate(differing, start=1):
        try:
            if not isinstance(stage, dict):
                raise UserError(f"expected options, as in {{iters: 1000}}, not {stage!r}")
            stages.append(make_stage(program, number, cli.to_arguments({**shared, **stage}) + overrides, runs))
        except UserError as error:
            raise UserError(f"{config}: stage {number}: {error}") from error
    if not any(stage.rules.min_metric is not None for stage in stages):
        for name in ("max_retries", "stop_on_failure"):
            if any(getattr(stage.rules, name) for stage in stages):
                raise UserError(f"{config}: {name} needs min_metric, below which a stage fell back")
    return program, stages


def make_stage(program: ModuleType, number: int, words: list[str], runs: str) -> Stage:
    rules, words = cli.split(words, StageArgs)
    if rules.target_metric is not None:
        words = _with(words, "desired_metric", rules.target_metric, "target_metric")
    placed = ["--model_path", str(Path(runs) / f"stage-{number}")]
    options = cli.options_of(program.main, words + placed)
    if options.get("validate_only"):
        raise UserError(f"validate_only: a curriculum trains; to score a model, run {Path(program.__file__).name}")
    if rules.samples_per_update is not None:
        steps = micro_batches(rules.samples_per_update, options["batch_size"])
        words = _with(words, "gradient_accumulation_steps", steps, "samples_per_update")
        options = cli.options_of(program.main, words + placed)
    if rules.min_metric is not None and not (options["save_best"] and options["valid_interval"]):
        raise UserError("min_metric judges the best checkpoint: set save_best and valid_interval")
    return Stage(number, rules, words, options)


def _with(words: list[str], name: str, value: Any, reason: str) -> list[str]:
    """The words and one option more, which they must not have."""
    if any(word.partition("=")[0].replace("-", "_") == f"__{name}" for word in words):
        raise UserError(f"{reason} sets {name}: give one of them")
    return [*words, f"--{name}", str(value)]


def micro_batches(samples: int, batch_size: int) -> int:
    """Of each rank, that make an update of `samples` over all ranks."""
    ranks = int(os.environ.get("WORLD_SIZE", os.environ.get("HOROVOD_SIZE", "1")))
    if samples % (batch_size * ranks):
        raise UserError(f"batch_size {batch_size} on {ranks} ranks does not divide samples_per_update {samples}")
    return samples // (batch_size * ranks)


def run_curriculum(config: str, runs: str, overrides: list[str]) -> Metrics | None:
    """Run what is left of a curriculum; returns the metrics of its last stage, or None after a dry run.

    Raises:
        UserError: see `plan`; or RUNS holds another task, or is in use.
        FellBack: with `stop_on_failure`.
    """
    program, stages = plan(config, runs, overrides)
    folder, task = Path(runs), stages[0].options.get("task_dataset")
    before = read_ledger(folder)
    if before is not None and before["task"] != task:
        raise UserError(f"{runs} holds a curriculum of {before['task']}, not {task}: give another --runs")
    if stages[0].options.get("dry_run"):
        for stage in stages:
            say(f"--- stage {stage.number}")
            program.main([*stage.words, "--model_path", str(folder / stage.folder())])
        return None
    taken, metrics = None, {}
    with locked(folder, SingleEngine()) if is_main() else nullcontext():
        ledger = Ledger(folder, {"config": config, "task": task})
        for stage, differing in zip(stages, differences(stages)):
            taken, metrics = run_stage(program, stage, differing, taken, ledger)
        for name in ("metrics.json", "accuracy.png") if is_main() else ():
            if (folder / taken / name).exists():
                shutil.copyfile(folder / taken / name, folder / name)
    return metrics


def differences(stages: list[Stage]) -> list[dict[str, Any]]:
    """Of each stage, the options that are not the same in all."""
    names = [n for n, value in stages[0].options.items() if any(stage.options[n] != value for stage in stages)]
    return [{name: stage.options[name] for name in names if name != "model_path"} for stage in stages]


def run_stage(
    program: ModuleType, stage: Stage, differing: dict[str, Any], start: str | None, ledger: Ledger
) -> tuple[str, Metrics]:
    """Attempts at a stage until one does not fall back; returns the folder in RUNS to go on from, and its metrics.

    Args:
        start: folder in RUNS that the stage before ended in.
    """
    attempts = []
    for attempt in range(stage.rules.max_retries + 1):
        attempts.append(run_attempt(program, stage, attempt, differing, start, ledger))
        if is_enough := stage.is_enough(attempts[-1]):
            break
    best = max(range(len(attempts)), key=lambda attempt: merit(attempts[attempt]))
    problem = None if is_enough else f"no attempt of {len(attempts)} reached min_metric {stage.rules.min_metric:g}"
    ends = problem is not None and stage.rules.stop_on_failure
    ledger.take(stage.number, None if ends else best, problem)
    if is_main():
        draw_curriculum(ledger.attempts(), ledger.runs)
    if ends:
        if is_main():  # else a scheduler would start the curriculum again
            write_status(ledger.runs / stage.folder(attempt), "failed", attempts[-1]["update"], problem)
        raise FellBack(f"stage {stage.number}: {problem}; the best reached {valid_metric(attempts[best]):.4g}")
    if problem:
        say(f"--- stage {stage.number}: {problem}; the best is taken, {stage.folder(best)}")
    return stage.folder(best), attempts[best]


def run_attempt(
    program: ModuleType, stage: Stage, attempt: int, differing: dict[str, Any], start: str | None, ledger: Ledger
) -> Metrics:
    folder, words = ledger.runs / stage.folder(attempt), list(stage.words)
    if attempt:
        differing = differing | {"seed": stage.options["seed"] + SEED_STEP * attempt}
        words += ["--seed", str(differing["seed"])]
    if start is not None:
        words += ["--model_cpt", str(ledger.runs / start)]
    words += ["--model_path", str(folder)]
    options = cli.options_of(program.main, words)
    metrics = finished(folder, options)
    is_new = metrics is None
    row = {
        "stage": stage.number, "attempt": attempt, "name": stage.name, "options": differing,
        "folder": folder.name, "started_from": start or options["model_cpt"],
    }  # fmt: skip
    title = f"stage {stage.number}" + (f", retry {attempt}" if attempt else "")
    with ledger.recorded(row, is_finished=not is_new) as row:
        if is_new:
            say(f"--- {title}: {', '.join(f'{name} {value}' for name, value in differing.items() if value)}")
            metrics = program.main(words)
        row |= results(metrics, folder) | {"status": "done" if stage.is_enough(metrics) else "fell back"}
    if is_new:
        say(f"{length_table(metrics)}\n--- {title}: {row['status']}, {row['stop_reason']}, {row['seconds']:.0f} s")
    return metrics


def load_runner(config: Path, runner: str) -> ModuleType:
    """The runner's module, by its path from the working directory, or from a folder above the configuration."""
    for folder in (Path(), *config.resolve().parents):
        path = folder / runner
        if path.is_file():
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            sys.path.insert(0, str(path.resolve().parent))
            spec.loader.exec_module(module)
            return module
    raise UserError(f"{config}: no runner {runner}")


def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if len(argv) < 3 or argv[1] != "--runs":
        raise UserError("usage: python -m lm_experiments_tools.curriculum CONFIG.yaml --runs FOLDER [--option ...]")
    try:
        metrics = run_curriculum(argv[0], argv[2], argv[3:])
    except FellBack as error:
        sys.exit(f"error: {error}" if is_main() else 1)  # exit code 1
    if metrics is not None:
        say(f"\n{metrics['task']}, exact match by length\n{length_table(metrics)}")


if __name__ == "__main__":
    cli.run(main)
