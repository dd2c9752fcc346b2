"""Run a list of stages, each from the best checkpoint of the one before.

    python -m lm_experiments_tools.curriculum configs/babilong/quickstart.yaml --runs runs/quickstart

The YAML file holds the options that all stages share, `runner` (a program with `main(argv)`) and `stages`, a list of
what differs. Stage N runs in RUNS/stage-N; a finished stage is not run again, an interrupted one continues. Options
behind the file go to every stage. Works under torchrun.
"""

import importlib.util
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from . import cli
from .errors import UserError
from .evaluation.report import length_table
from .loggers import say


def run_curriculum(config: str, runs: str, overrides: list[str]) -> dict[str, Any]:
    """Run what is left of a curriculum; returns the metrics of its last stage.

    Raises:
        UserError: the file has no stages or no runner, or a stage's options are wrong.
    """
    shared = cli.read_yaml(config)
    stages, runner = shared.pop("stages", None), shared.pop("runner", None)
    if not (isinstance(stages, list) and stages and runner):
        raise UserError(f"{config}: expected `runner: PROGRAM.py` and a list `stages`")
    program = load_runner(Path(config), runner)
    metrics: dict[str, Any] = {}
    for number, stage in enumerate(stages, start=1):
        start, is_new = time.perf_counter(), not (stage_folder(runs, number) / "metrics.json").exists()
        if is_new:
            say(f"--- stage {number} of {len(stages)}: {', '.join(f'{k} {v}' for k, v in stage.items())}")
        metrics = program.main(stage_arguments(shared, stage, runs, number) + overrides)
        if is_new:
            seconds = time.perf_counter() - start
            say(f"{length_table(metrics)}\n--- stage {number}: {metrics['stop_reason']}, {seconds:.0f} s")
    return metrics


def stage_folder(runs: str, number: int) -> Path:
    return Path(runs) / f"stage-{number}"


def stage_arguments(shared: dict[str, Any], stage: dict[str, Any], runs: str, number: int) -> list[str]:
    """Command line of one stage: shared options, its own, its folder and the checkpoint that it starts from."""
    words = cli.to_arguments({**shared, **stage}) + ["--model_path", str(stage_folder(runs, number))]
    if number > 1:
        words += ["--model_cpt", str(stage_folder(runs, number - 1))]
    return words


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
        raise UserError(
            "usage: python -m lm_experiments_tools.curriculum CONFIG.yaml --runs FOLDER [--option value ...]"
        )
    config, runs, overrides = argv[0], argv[2], argv[3:]
    metrics = run_curriculum(config, runs, overrides)
    last = stage_folder(runs, len(cli.read_yaml(config)["stages"]))
    for name in ("metrics.json", "accuracy.png"):
        if (last / name).exists():
            shutil.copyfile(last / name, Path(runs) / name)
    say(f"\n{metrics['task']}, exact match by length\n{length_table(metrics)}")


if __name__ == "__main__":
    cli.run(main)
