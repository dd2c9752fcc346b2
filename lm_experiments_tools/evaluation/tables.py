"""Scores by task and length: as text, Markdown, CSV and LaTeX."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UserError
from . import formats
from .official_files import About, Result
from .scoring import Kind, Score

KINDS: dict[Kind, str] = {"official": "official score", "strict": "strict exact match"}
AVERAGE = "average"
SCORE_COLUMNS = [f"{kind}{part}" for kind in KINDS for part in ("", "_low", "_high")]


@dataclass(frozen=True)
class Grid:
    """Results of one model with one prompt.

    Attributes:
        name: of the model, with the prompt where there are several.
    """

    name: str
    model: str
    setting: str
    results: dict[tuple[str, str], Result]
    tasks: tuple[str, ...]
    lengths: tuple[str, ...]

    @property
    def about(self) -> About:
        return next(iter(self.results.values())).about

    def score(self, task: str, length: str) -> Score | None:
        """None: not evaluated; or an average, as its tasks are not samples of one share."""
        result = self.results.get((task, length))
        return None if result is None else result.score

    def share(self, task: str, length: str, kind: Kind) -> float | None:
        """0 to 1; of the average only where all tasks have a score."""
        if task != AVERAGE:
            score = self.score(task, length)
            return None if score is None else score.share(kind)
        shares = [self.share(one, length, kind) for one in self.tasks]
        return None if None in shares else sum(shares) / len(shares)

    def rows(self) -> tuple[str, ...]:
        return with_average(self.tasks)

    def in_order(self) -> list[Result]:
        pairs = [(task, length) for task in self.tasks for length in self.lengths]
        return [self.results[pair] for pair in pairs if pair in self.results]


def tokens(length: str) -> int:
    """Order of lengths."""
    return int(length[:-1]) * (1_000_000 if length.endswith("M") else 1_000)


def task_number(task: str) -> int:
    """Order of tasks."""
    return int(task[2:])


def with_average(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Rows of a table: of one task there is no average."""
    return (*tasks, AVERAGE) if len(tasks) > 1 else tasks


def grids(results: Iterable[Result]) -> list[Grid]:
    """One grid for each model and prompt, all with the same tasks and lengths.

    Raises:
        UserError: two results of the same.
    """
    results = list(results)
    tasks = tuple(sorted({result.task for result in results}, key=task_number))
    lengths = tuple(sorted({result.length for result in results}, key=tokens))
    groups: dict[tuple[str, str], dict[tuple[str, str], Result]] = {}
    for result in results:
        group = groups.setdefault((result.model, result.setting), {})
        if (result.task, result.length) in group:
            raise UserError(f"two results of model {result.model!r} at {result.task} {result.length}; rename a folder")
        group[result.task, result.length] = result
    models = [model for model, _ in groups]
    return [
        Grid(named(model, setting, models.count(model) > 1), model, setting, group, tasks, lengths)
        for (model, setting), group in groups.items()
    ]


def named(model: str, setting: str, with_prompt: bool) -> str:
    return f"{model} ({prompt_parts(setting)})" if with_prompt else model


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


def times_trained(length: str, about: About) -> float | None:
    """How many times the longest trained samples a length is."""
    return about.trained_tokens and tokens(length) / about.trained_tokens


def as_text(results: Iterable[Result]) -> str:
    """A line for each task and length, for a terminal."""
    lines = []
    for grid in grids(results):
        lines.append(f"{grid.name}\n{'task':>5}  {'length':>6}  {'official, 95%':>20}  {'strict':>6}  samples")
        for result in grid.in_order():
            score = result.score
            low, high = map(formats.percent, score.interval("official"))
            official = f"{formats.percent(score.share('official'))} ({low} to {high})"
            strict = formats.percent(score.share("strict"))
            lines.append(f"{result.task:>5}  {result.length:>6}  {official:>20}  {strict:>6}  {score.samples:>7}")
    return "\n".join(lines)


def score_cells(score: Score) -> list[str]:
    """Of the `SCORE_COLUMNS`."""
    return formats.shares(value for kind in KINDS for value in (score.share(kind), *score.interval(kind)))


def as_csv(results: Iterable[Result]) -> str:
    """A row for each model, prompt, task and length; shares from 0 to 1."""
    header = ["model", "prompt", "task", "length", "samples", *SCORE_COLUMNS, "tokens", "times_trained"]
    rows = []
    for result in results:
        times = times_trained(result.length, result.about)
        row = [result.model, prompt_parts(result.setting), result.task, result.length, result.score.samples]
        row += [*score_cells(result.score), tokens(result.length), "" if times is None else f"{times:g}"]
        rows.append(row)
    return formats.as_csv(header, rows)


def as_markdown(results: Iterable[Result], kinds: Iterable[Kind] = tuple(KINDS), heading: str = "##") -> str:
    """For each model a table of each kind of score: percent, with the 95 percent interval in brackets."""
    return "\n".join(
        f"{heading} {grid.name}: {KINDS[kind]}, %\n\n"
        + formats.as_markdown(("task", *grid.lengths), _rows(grid, kind, latex=False))
        for grid in grids(results)
        for kind in kinds
    )


def as_latex(results: Iterable[Result]) -> str:
    """For each kind of score a `tabular` of all models, for a document with `booktabs`."""
    all_grids = grids(results)
    return "\n".join(
        formats.as_latex(
            f"{title}, percent, with 95 percent intervals",
            ("task", *all_grids[0].lengths),
            [(grid.name, _rows(grid, kind, latex=True)) for grid in all_grids],
        )
        for kind, title in KINDS.items()
    )


def _rows(grid: Grid, kind: Kind, latex: bool) -> list[list[str]]:
    def cell(task: str, length: str) -> str:
        return formats.with_interval(grid.share(task, length, kind), grid.score(task, length), kind, latex)

    return [[task, *(cell(task, length) for length in grid.lengths)] for task in grid.rows()]
