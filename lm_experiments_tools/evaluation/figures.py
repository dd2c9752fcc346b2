"""Heat maps: the benchmark's, of tasks by lengths, and those of depths by lengths; models side by side.

Lightness grows with the score, from dark red to light green: the picture reads the same in grey.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import canvas
from .by_place import Axis, scores_by
from .formats import MISSING, percent
from .scoring import Kind
from .seeds import Group
from .tables import KINDS, Grid, with_average

COLOURS = ["#67001f", "#b2352c", "#de7a3c", "#efb84e", "#d3e37a", "#c9f5b0"]
WHITE_BELOW = 0.36  # of the scores: on these colours dark numbers are hard to read
CELL, CELL_HEIGHT, MARGIN, HEAD = 0.62, 0.465, 1.0, 0.95  # inches
MAX_WIDTH = 18.5  # inches: two models with all lengths of the benchmark


@dataclass(frozen=True)
class Panel:
    """One heat map: a share and a text for each row and column. line_above: a row that stands apart."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    shares: list[list[float | None]]
    texts: list[list[str]]
    line_above: int | None = None


def draw_heat_map(grids: Sequence[Grid], paths: Iterable[Path], kind: Kind = "official") -> None:
    """Tasks by lengths, a panel for each model; into each of the paths, in the format of its suffix."""

    def text(grid: Grid, task: str, length: str) -> str:
        share = grid.share(task, length, kind)
        return MISSING if share is None else f"{100 * share:.0f}"

    panels = [_task_panel(grid.name, grid, kind, text) for grid in grids]
    _draw(panels, f"BABILong, {KINDS[kind]}, %", "length in tokens", paths)


def draw_mean_heat_map(groups: Sequence[Group], paths: Iterable[Path], kind: Kind = "official") -> None:
    """The same of groups of seeds: mean, and below it the standard deviation."""

    def text(group: Group, task: str, length: str) -> str:
        deviation = group.deviation(task, length, kind)
        return percent(group.share(task, length, kind)) + ("" if deviation is None else f"\n±{percent(deviation)}")

    panels = [_task_panel(group.title, group, kind, text) for group in groups]
    _draw(panels, f"BABILong, {KINDS[kind]}, %, mean ± standard deviation over seeds", "length in tokens", paths)


def _task_panel(title: str, scored: Grid | Group, kind: Kind, text: Any) -> Panel:
    rows = with_average(scored.tasks)
    shares = [[scored.share(task, length, kind) for length in scored.lengths] for task in rows]
    texts = [[text(scored, task, length) for length in scored.lengths] for task in rows]
    return Panel(title, rows, scored.lengths, shares, texts, len(scored.tasks) if len(scored.tasks) > 1 else None)


def draw_depth_map(axis: Axis, groups: Sequence[Group], task: str, paths: Iterable[Path], kind: Kind) -> None:
    """Depths of the facts by lengths, for one task; a panel for each group of models that has places."""
    panels, counts = [], []
    for group in groups:
        columns = [scores_by(axis, group.results(task, [length])) for length in group.lengths]
        counts += [score.samples for column in columns for score in column.values()]
        if any(columns):
            scores = [[column.get(number) for column in columns] for number in axis.always]
            shares = [[None if score is None else score.share(kind) for score in line] for line in scores]
            texts = [[MISSING if share is None else f"{100 * share:.0f}" for share in line] for line in shares]
            panels.append(Panel(group.title, [*map(axis.label, axis.always)], group.lengths, shares, texts))
    title = f"{task}, {KINDS[kind]}, %, about {statistics.median(counts):.0f} samples a cell\nby {axis.title}"
    _draw(panels, title, "length in tokens", paths)


def _draw(panels: list[Panel], title: str, x_label: str, paths: Iterable[Path]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("score", COLOURS).with_extremes(bad="0.93")
    width = max(max(len(panels[0].columns), 4) * CELL + MARGIN, 0.4 + canvas.longest(panel.title for panel in panels))
    height = len(panels[0].rows) * CELL_HEIGHT + HEAD
    figure, axes = canvas.panels(title, len(panels), width, height, 0.3 + 0.2 * title.count("\n"), MAX_WIDTH)
    for place, panel in zip(axes, panels):
        _draw_panel(place, panel, colours)
        place.set_xlabel(x_label)
    canvas.save(figure, paths)


def _draw_panel(axes: Any, panel: Panel, colours: Any) -> None:
    axes.pcolormesh(
        [[math.nan if share is None else share for share in line] for line in panel.shares],
        cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.5,
    )  # fmt: skip
    for row, line in enumerate(panel.shares):
        for column, share in enumerate(line):
            colour = "white" if share is not None and share < WHITE_BELOW else "black"
            text = panel.texts[row][column]
            size = 8 if "\n" in text else 10
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=size)
    if panel.line_above is not None:
        axes.axhline(panel.line_above, color="black", linewidth=1.5)
    axes.set_xticks([number + 0.5 for number in range(len(panel.columns))], panel.columns)
    axes.set_yticks([number + 0.5 for number in range(len(panel.rows))], panel.rows)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(panel.title, fontsize=10)
