"""Scores by task and length: as text, Markdown, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .official_files import Result
from .scoring import Kind, Score

KINDS: dict[Kind, str] = {"official": "official score", "strict": "strict exact match"}
AVERAGE = "average"
MISSING = "–"


@dataclass(frozen=True)
class Grid:
    """Scores of one model with one prompt.

    Attributes:
        name: of the model, with the prompt where there are several.
    """

    name: str
    scores: dict[tuple[str, str], Score]
    tasks: tuple[str, ...]
    lengths: tuple[str, ...]

    def share(self, task: str, length: str, kind: Kind) -> float | None:
        """0 to 1; of the average only where all tasks have a score."""
        if task != AVERAGE:
            score = self.scores.get((task, length))
            return None if score is None else score.share(kind)
        shares = [self.share(one, length, kind) for one in self.tasks]
        return None if None in shares else sum(shares) / len(shares)

    def rows(self) -> tuple[str, ...]:
        return (*self.tasks, AVERAGE) if len(self.tasks) > 1 else self.tasks


def tokens(length: str) -> int:
    """Order of lengths."""
    return int(length[:-1]) * (1_000_000 if length.endswith("M") else 1_000)


def grids(results: Iterable[Result]) -> list[Grid]:
    """One grid for each model and prompt, all with the same tasks and lengths."""
    results = list(results)
    tasks = tuple(sorted({result.task for result in results}, key=lambda task: int(task[2:])))
    lengths = tuple(sorted({result.length for result in results}, key=tokens))
    groups: dict[tuple[str, str], dict[tuple[str, str], Score]] = {}
    for result in results:
        groups.setdefault((result.model, result.setting), {})[result.task, result.length] = result.score
    models = [model for model, _ in groups]
    return [
        Grid(model if models.count(model) == 1 else f"{model} ({prompt_parts(setting)})", scores, tasks, lengths)
        for (model, setting), scores in groups.items()
    ]


def prompt_parts(setting: str) -> str:
    """`instruction_yes_examples_no_post_prompt_yes` -> `instruction, post_prompt`."""
    parts, name = [], []
    for word in setting.split("_"):
        if word in ("yes", "no"):
            parts += [" ".join(name)] if word == "yes" else []
            name = []
        else:
            name.append(word)
    return ", ".join(parts) or "no prompt"


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def _interval(grid: Grid, task: str, length: str, kind: Kind) -> tuple[str, str] | None:
    """Of an average there is none: its tasks are not samples of one share."""
    score = grid.scores.get((task, length))
    return None if score is None else tuple(_percent(side) for side in score.interval(kind))


def _in_order(grid: Grid) -> list[tuple[str, str, Score]]:
    pairs = [(task, length) for task in grid.tasks for length in grid.lengths]
    return [(*pair, grid.scores[pair]) for pair in pairs if pair in grid.scores]


def as_text(results: Iterable[Result]) -> str:
    """A line for each task and length, for a terminal."""
    lines = []
    for grid in grids(results):
        lines.append(f"{grid.name}\n{'task':>5}  {'length':>6}  {'official, 95%':>20}  {'strict':>6}  samples")
        for task, length, score in _in_order(grid):
            low, high = _interval(grid, task, length, "official")
            official = f"{_percent(score.share('official'))} ({low} to {high})"
            strict = _percent(score.share("strict"))
            lines.append(f"{task:>5}  {length:>6}  {official:>20}  {strict:>6}  {score.samples:>7}")
    return "\n".join(lines)


def as_csv(results: Iterable[Result]) -> str:
    """A row for each model, prompt, task and length; shares from 0 to 1."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [f"{kind}{part}" for kind in KINDS for part in ("", "_low", "_high")]
    writer.writerow(["model", "prompt", "task", "length", "samples", *names])
    for result in results:
        shares = [value for kind in KINDS for value in (result.score.share(kind), *result.score.interval(kind))]
        row = [result.model, prompt_parts(result.setting), result.task, result.length, result.score.samples]
        writer.writerow(row + [f"{value:.6f}" for value in shares])
    return file.getvalue()


def as_markdown(results: Iterable[Result]) -> str:
    """For each model a table of each kind of score: percent, with the 95 percent interval in brackets."""
    lines = []
    for grid in grids(results):
        for kind, title in KINDS.items():
            lines += [f"## {grid.name}: {title}, %", "", f"| task | {' | '.join(grid.lengths)} |"]
            lines.append("|---|" + "---|" * len(grid.lengths))
            for task in grid.rows():
                cells = [_markdown_cell(grid, task, length, kind) for length in grid.lengths]
                lines.append(f"| {task} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def _markdown_cell(grid: Grid, task: str, length: str, kind: Kind) -> str:
    interval = _interval(grid, task, length, kind)
    return _percent(grid.share(task, length, kind)) + (f" ({interval[0]}–{interval[1]})" if interval else "")


def as_latex(results: Iterable[Result]) -> str:
    """For each kind of score a `tabular` of all models, for a document with `booktabs`."""
    blocks = []
    for kind, title in KINDS.items():
        all_grids = grids(results)
        lengths = all_grids[0].lengths
        lines = [f"% {title}, percent, with 95 percent intervals", rf"\begin{{tabular}}{{l{'c' * len(lengths)}}}"]
        lines += [r"\toprule", f"task & {' & '.join(lengths)} " + r"\\"]
        for grid in all_grids:
            lines += [r"\midrule", rf"\multicolumn{{{len(lengths) + 1}}}{{l}}{{{_escaped(grid.name)}}} \\"]
            for task in grid.rows():
                cells = [_latex_cell(grid, task, length, kind) for length in lengths]
                lines.append(f"{task} & {' & '.join(cells)} " + r"\\")
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""]))
    return "\n".join(blocks)


def _latex_cell(grid: Grid, task: str, length: str, kind: Kind) -> str:
    share = grid.share(task, length, kind)
    interval = _interval(grid, task, length, kind)
    small = rf" {{\scriptsize [{interval[0]}, {interval[1]}]}}" if interval else ""
    return "--" if share is None else _percent(share) + small


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
