"""Writes bAbI tasks 1 to 10 from a small simulated world, in the published file format.

    python -m lm_experiments_tools.data.babi_simulator FOLDER --tasks qa1 qa2 --seed 0

Vocabulary, sentence forms and proportions follow the published tasks (arXiv 1502.05698): qa1 and qa2 were measured
on the published files (see `tests/test_babi_simulator.py`), the others follow the examples of the paper and the public
samples of BABILong, as far as those show (`tests/test_babi_simulator_6_to_10.py`). Answers and supporting facts come
from the simulated state, never from the text.
"""

import argparse
import random
from functools import partial
from pathlib import Path

from ...errors import UserError
from ..babi import full_task_name
from .events import EVENTS, event_story
from .relations import relation_story
from .told import TOLD, told_story
from .world import DROPS, GIVERS, GIVES, GRABS, MOVES, OBJECTS, PEOPLE, PLACES

__all__ = ["DROPS", "GIVERS", "GIVES", "GRABS", "MOVES", "OBJECTS", "PEOPLE", "PLACES", "SIMULATED", "write_task"]

STORIES = {  # by task: what yields the lines of one story, without their numbers
    **{task: partial(event_story, form) for task, form in EVENTS.items()},
    **{task: partial(told_story, form) for task, form in TOLD.items()},
    "qa4": relation_story,
}
SIMULATED = tuple(sorted(STORIES, key=lambda task: int(task[2:])))


def write_task(folder: str | Path, task: str, split: str, num_questions: int, seed: int) -> Path:
    """Write one file of `num_questions` questions; returns its path. The same arguments give the same file.

    Raises:
        UserError: the task is not simulated.
    """
    name = full_task_name(task)
    short = name.split("_")[0]
    if short not in SIMULATED:
        raise UserError(f"task {short} is not simulated ({', '.join(SIMULATED)} are); give --babi_path")
    rng = random.Random(f"{short} {split} {seed}")
    lines: list[str] = []
    asked = 0
    while asked < num_questions:
        for number, text in enumerate(STORIES[short](rng), start=1):
            lines.append(f"{number} {text}\n")
            asked += "\t" in text
    path = Path(folder) / f"{name}_{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the files go")
    parser.add_argument("--tasks", nargs="+", default=list(SIMULATED), help="tasks to write")
    parser.add_argument("--train_questions", type=int, default=10_000, help="questions in each training file")
    parser.add_argument("--test_questions", type=int, default=1_000, help="questions in each test file")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another world")
    args = parser.parse_args(argv)
    for task in args.tasks:
        for split, number in (("train", args.train_questions), ("test", args.test_questions)):
            print(write_task(args.folder, task, split, number, args.seed))
