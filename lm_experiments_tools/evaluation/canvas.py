"""What all pictures share: matplotlib without a screen, files that are whole or not there, curves in panels."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#7a5c00")  # for colour-blind readers too
LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "os^DvP"  # with LINES, 30 curves are told apart in grey
DODGE = 0.07  # in ticks: curves stand a little beside each other, so that all intervals are seen
MAX_TICKS = 16  # between which labels have room
FEW = 6  # panels that may be wide
MAX_WIDTH, LETTER = 15.0, 0.09  # inches of a picture, and of a letter of its names


def colour(number: int) -> str:
    """Of a curve."""
    return COLOURS[number % len(COLOURS)]


def line(number: int) -> Any:
    """The style of a curve."""
    return LINES[number % len(LINES)]


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, paths: Iterable[Path]) -> None:
    """Into each of the paths, in the format of its suffix; closes the figure."""
    for path in paths:
        temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
        figure.savefig(temporary, dpi=150)
        temporary.replace(path)
    pyplot().close(figure)


def panels(
    title: str, count: int, width: float, height: float, extra_height: float, max_width: float = MAX_WIDTH
) -> tuple[Any, list[Any]]:
    """A figure and `count` axes of a size in inches, in as many rows as `max_width` asks for."""
    columns = max(1, min(count, int(max_width / width)))
    rows = math.ceil(count / columns)
    columns = math.ceil(count / rows)
    size = max(columns * width, longest(title.splitlines()) * 1.15), rows * height + extra_height
    figure, axes = pyplot().subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=11)
    for unused in axes.flat[count:]:
        unused.set_visible(False)
    return figure, list(axes.flat[:count])


def longest(names: Iterable[str]) -> float:
    """Inches that the longest of some names takes, in letters of ten points."""
    return LETTER * max(map(len, names))


class Point(NamedTuple):
    """y: a share from 0 to 1, or a number. low, high: where they are y, there is no interval. NaN: the curve is cut."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """has_band: low to high is shaded from point to point."""

    name: str
    points: list[Point]
    has_band: bool = False


@dataclass(frozen=True)
class Chart:
    """What curve panels have in common.

    Attributes:
        names: of curves, in the order of the legend: they look the same in all panels. ticks: place and label of each.
        decorate: draws what else is in a panel.
        y_max: y are numbers up to this; None: shares, which are shown as percent.
    """

    title: str
    x_label: str
    y_label: str
    names: list[str]
    ticks: list[tuple[float, str]]
    decorate: Callable[[Any], None] | None = None
    y_max: float | None = None


def draw_curves(chart: Chart, curves: dict[str, list[Curve]], paths: Iterable[Path]) -> None:
    """A panel for each title in `curves`."""
    places = [place for place, _ in chart.ticks]
    reach = places[-1] - places[0]
    gap = max(min((after - before for before, after in zip(places, places[1:])), default=1.0), reach / MAX_TICKS)
    width = min(max(3.4, 0.9 + 0.36 * (reach / gap + 1)), MAX_WIDTH / (2 if len(curves) <= FEW else 3))
    width = max(width, 0.4 + longest(line for title in curves for line in title.splitlines()))
    in_a_row = max(1, int(min(width * len(curves), MAX_WIDTH) / (0.8 + longest(chart.names))))
    figure, axes = panels(chart.title, len(curves), width, 2.9, 0.8 + 0.2 * math.ceil(len(chart.names) / in_a_row))
    handles = {}
    for panel, (title, shown) in zip(axes, curves.items()):
        for curve in shown:
            number = chart.names.index(curve.name)
            shift = (number - (len(chart.names) - 1) / 2) * min(DODGE, 0.6 / len(chart.names)) * gap
            handles[curve.name] = _draw_curve(panel, curve, number, shift, 100 if chart.y_max is None else 1)
        _finish_panel(panel, chart, title, gap)
        place = panel.get_subplotspec()
        if place.is_first_col():
            panel.set_ylabel(chart.y_label, fontsize=9)
        if panel in axes[-place.get_gridspec().ncols :]:  # nothing is below it
            panel.set_xlabel(chart.x_label, fontsize=9)
    shown = [name for name in chart.names if name in handles]
    figure.legend(
        [handles[name] for name in shown], shown, loc="outside lower center", ncols=in_a_row, frameon=False, fontsize=9,
        handlelength=3.2,
    )  # fmt: skip
    save(figure, paths)


def _draw_curve(axes: Any, curve: Curve, number: int, shift: float, scale: float) -> Any:
    xs = [point.x + shift for point in curve.points]
    ys, lows, highs = ([scale * point[side] for point in curve.points] for side in (1, 2, 3))
    style = {
        "color": colour(number), "linestyle": line(number), "linewidth": 1.4,
        "marker": MARKERS[number % len(MARKERS)], "ms": 4.5, "clip_on": False, "zorder": 3,
    }  # fmt: skip
    if curve.has_band:
        axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.15, linewidth=0, zorder=1)
    errors = [[max(0.0, y - low) for y, low in zip(ys, lows)], [max(0.0, high - y) for y, high in zip(ys, highs)]]
    return axes.errorbar(xs, ys, yerr=errors, capsize=2, elinewidth=0.9, **style)


def _finish_panel(axes: Any, chart: Chart, title: str, gap: float) -> None:
    labels = [label for _, label in chart.ticks]
    steep = max(map(len, labels)) > 4
    axes.set_xticks([place for place, _ in chart.ticks], labels, fontsize=7.5, rotation=45 if steep else 0)
    if steep:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_xlim(chart.ticks[0][0] - 0.6 * gap, chart.ticks[-1][0] + 0.6 * gap)
    axes.set_ylim(0, 1.02 * (chart.y_max or 100))
    if chart.y_max is None:
        axes.set_yticks(range(0, 101, 20))
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", color="0.87", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10)
    if chart.decorate:
        chart.decorate(axes)
