"""Models side by side; those that differ in their seed alone as one, with mean and sample standard deviation.

Names with a seed number at the end of a part, such as `armt-seed1` or `qa1_seed_2/best`, belong together when they are
equal but for that number: `armt-seed*`. `--seeds GROUP=NAME,NAME,...` says so of any names.
"""

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UserError
from . import formats
from .official_files import About, Result
from .scoring import Kind
from .tables import KINDS, Grid, grids, named, prompt_parts, times_trained, tokens, with_average

SEED = re.compile(r"(?<![A-Za-z])seed([-_=.]?)\d+(?=/|$)")


@dataclass(frozen=True)
class Group:
    """Models that differ in their seed alone, or one model; all with the same prompt.

    Attributes:
        model: its name, or that of the group. name: the same, with the prompt where there are several. grids: one for
            each seed.
    """

    model: str
    name: str
    grids: tuple[Grid, ...]

    @property
    def title(self) -> str:
        return self.name if len(self.grids) == 1 else f"{self.name} ({len(self.grids)} seeds)"

    @property
    def about(self) -> About:
        return self.grids[0].about

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.grids[0].tasks

    @property
    def lengths(self) -> tuple[str, ...]:
        return self.grids[0].lengths

    def results(self, task: str, lengths: Iterable[str] | None = None) -> list[Result]:
        """Of all seeds, at some lengths or at all."""
        results = [grid.results.get((task, length)) for grid in self.grids for length in lengths or self.lengths]
        return [result for result in results if result is not None]

    def shares(self, task: str, length: str, kind: Kind) -> list[float]:
        """Of the seeds that have one."""
        shares = [grid.share(task, length, kind) for grid in self.grids]
        return [share for share in shares if share is not None]

    def share(self, task: str, length: str, kind: Kind) -> float | None:
        """Mean over the seeds."""
        shares = self.shares(task, length, kind)
        return statistics.fmean(shares) if shares else None

    def deviation(self, task: str, length: str, kind: Kind) -> float | None:
        """Sample standard deviation over the seeds (n - 1); of one alone there is none."""
        shares = self.shares(task, length, kind)
        return statistics.stdev(shares) if len(shares) > 1 else None

    def cell(self, task: str, length: str, kind: Kind, latex: bool = False) -> str:
        """`98.5±1.0`; of one seed, percent with its 95 percent interval."""
        deviation = self.deviation(task, length, kind)
        if deviation is not None:
            return f"{formats.percent(self.share(task, length, kind))}±{formats.percent(deviation)}"
        score = self.grids[0].score(task, length) if len(self.grids) == 1 else None
        return formats.with_interval(self.share(task, length, kind), score, kind, latex)


def group_names(models: Iterable[str], seeds: list[str] | None) -> dict[str, str]:
    """The group of each model.

    Args:
        seeds: words GROUP=NAME,NAME,... of the command line.

    Raises:
        UserError: no such word, a name that is no model's or in two groups, or a group that is called like a model.
    """
    models = list(dict.fromkeys(models))
    groups: dict[str, str] = {}
    for word in seeds or ():
        group, equals, names = word.partition("=")
        if not (group and equals and names):
            raise UserError(f"seeds {word!r} is not of the form GROUP=NAME,NAME,...")
        if group in groups.values() or (group in models and group not in names.split(",")):
            raise UserError(f"seeds {word!r}: {group!r} is the name of something else; give the group another one")
        for name in names.split(","):
            if name not in models:
                raise UserError(f"seeds {word!r}: no results of model {name!r}; there are some of {', '.join(models)}")
            if name in groups:
                raise UserError(f"seeds {word!r}: model {name!r} is in another group already")
            groups[name] = group
    rest = [model for model in models if model not in groups]
    patterns = {model: SEED.sub(r"seed\1*", model) for model in rest}
    together = [pattern for pattern in patterns.values() if list(patterns.values()).count(pattern) > 1]
    return groups | {model: pattern if pattern in together else model for model, pattern in patterns.items()}


def group_results(results: Iterable[Result], seeds: list[str] | None = None) -> list[Group]:
    """One group for each group of models and prompt, in the order of their first model."""
    all_grids = grids(results)
    names = group_names([grid.model for grid in all_grids], seeds)
    members: dict[tuple[str, str], list[Grid]] = {}
    for grid in all_grids:
        members.setdefault((names[grid.model], grid.setting), []).append(grid)
    keys = [name for name, _ in members]
    return [
        Group(name, named(name, setting, keys.count(name) > 1), tuple(seeds_))
        for (name, setting), seeds_ in members.items()
    ]


def as_csv(groups: list[Group]) -> str:
    """A row for each group, prompt, task and length; shares from 0 to 1. seeds: how many have a score there."""
    header = ["model", "prompt", "task", "length", "seeds"]
    header += [f"{kind}_{part}" for kind in KINDS for part in ("mean", "deviation")] + ["tokens", "times_trained"]
    rows = []
    for group in groups:
        for task in with_average(group.tasks):
            for length in group.lengths:
                count = len(group.shares(task, length, "official"))
                values = [f(task, length, kind) for kind in KINDS for f in (group.share, group.deviation)]
                times = times_trained(length, group.about)
                row = [group.model, prompt_parts(group.grids[0].setting), task, length, count, *formats.shares(values)]
                rows += [[*row, tokens(length), "" if times is None else f"{times:g}"]] if count else []
    return formats.as_csv(header, rows)


def as_markdown(groups: list[Group], kinds: Iterable[Kind] = tuple(KINDS), heading: str = "##") -> str:
    """For each kind of score a table: tasks, and in each the groups."""
    return "\n".join(
        f"{heading} {KINDS[kind].capitalize()}, %\n\n"
        + formats.as_markdown(_header(groups), [row for rows in _blocks(groups, kind) for row in rows])
        for kind in kinds
    )


def lengths_markdown(groups: list[Group], kind: Kind) -> str:
    """The averages of all groups by length; lengths beyond the trained ones say how far."""

    def cell(group: Group, length: str) -> str:
        text, times = group.cell(with_average(group.tasks)[-1], length, kind), times_trained(length, group.about)
        return f"{text} at {formats.times(times)}" if times and times > 1 and text != formats.MISSING else text

    rows = [[group.title, *(cell(group, length) for length in group.lengths)] for group in groups]
    return formats.as_markdown(("model", *groups[0].lengths), rows)


def as_latex(groups: list[Group]) -> str:
    """For each kind of score a `tabular`, for a document with `booktabs`."""
    return "\n".join(
        formats.as_latex(
            f"{title}, percent, mean and sample standard deviation over seeds; of one seed, 95 percent intervals",
            _header(groups),
            [("", [[task, formats.escaped(name), *cells] for task, name, *cells in rows]) for rows in blocks],
            labels=2,
        )
        for title, blocks in ((title, _blocks(groups, kind, latex=True)) for kind, title in KINDS.items())
    )


def _header(groups: list[Group]) -> tuple[str, ...]:
    return ("task", "model", *groups[0].lengths)


def _blocks(groups: list[Group], kind: Kind, latex: bool = False) -> list[list[list[str]]]:
    """For each task the rows of all groups."""
    return [
        [[task, group.title, *(group.cell(task, one, kind, latex) for one in group.lengths)] for group in groups]
        for task in with_average(groups[0].tasks)
    ]
