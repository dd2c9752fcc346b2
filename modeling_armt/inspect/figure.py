"""The picture of a report: a panel a quantity over the segments, and a map of where the question's reads come from.

Few layers are lines, many are rows of a map. Both differ in lightness, so that the picture reads the same in grey.
"""

from pathlib import Path
from typing import Any

from .report import LayerReport, MemoryReport

COLUMNS = 400  # points of a line and columns of a map, at most: neighbouring segments share one
LINES = 6  # layers, at most, that are drawn as lines
COLOURS = ("#440154", "#3f4788", "#2a788e", "#22a884", "#7ad151", "#c2df23")  # viridis: dark to light
BANDED = 2  # layers, at most, whose range over memory tokens is shaded
STYLES = ("-", "--", ":", "-.")
ROW, LEAST = 0.16, 1.1  # inches: a layer of the map of sources; all of them, at least
MAP = "Blues"  # light to dark

PANELS = {
    "beta_mean": "beta, strength of a write",
    "gamma_mean": "gamma, new share of a key",
    "norm_A": "norm of A",
    "read_share": "what is read / hidden state",
    "effective_rank": "effective rank of all keys (K = {features})",
    "features_used": "share of features used",
}
BANDS = {"beta_mean": ("beta_min", "beta_max"), "gamma_mean": ("gamma_min", "gamma_max")}
SHARES = ("beta_mean", "gamma_mean", "features_used")


def draw(report: MemoryReport, path: Path) -> None:
    """Write the picture, in the format of the suffix of `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    height = max(LEAST, ROW * len(report.layers))
    figure = plt.figure(figsize=(10, 7.2 + height), layout="constrained")
    grid = figure.add_gridspec(4, 2, height_ratios=[2, 2, 2, height])
    for place, (name, title) in enumerate(PANELS.items()):
        axes = figure.add_subplot(grid[divmod(place, 2)])
        if len(report.layers) <= LINES:
            _draw_lines(axes, report, name)
        else:
            rows = [_neighbours(getattr(layer, name), len(report.numbers), mean=True) for layer in report.layers]
            limits = (0, 1) if name in SHARES else (0, max(max(row) for row in rows) or 1)
            mesh = _draw_map(axes, report.layers, rows, report.numbers, limits)
            figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.01)
        shaded = " (shade: least to most)" if name in BANDS and len(report.layers) <= BANDED else ""
        _finish(axes, title.format(features=report.features) + shaded, report.numbers)
    if len(report.layers) <= LINES:
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=LINES, frameon=False
        )
    _draw_sources(figure, figure.add_subplot(grid[3, :]), report)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _neighbours(values: list[float], number: int, mean: bool = False) -> list[float]:
    """Sums or means of neighbouring values, so that `number` of them become at most COLUMNS."""
    size = -(-number // COLUMNS)
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(part) / (len(part) if mean else 1) for part in parts]


def _draw_lines(axes: Any, report: MemoryReport, name: str) -> None:
    number = len(report.numbers)
    numbers = _neighbours(report.numbers, number, mean=True)
    mark = {"marker": "o", "markersize": 3} if number <= 40 else {}
    for index, layer in enumerate(report.layers):
        colour = COLOURS[index * len(COLOURS) // len(report.layers)]
        values = _neighbours(getattr(layer, name), number, mean=True)
        label = f"layer {layer.layer}"
        axes.plot(numbers, values, STYLES[index % 4], color=colour, linewidth=1.2, label=label, **mark)
        if name in BANDS and len(report.layers) <= BANDED:
            sides = [_neighbours(getattr(layer, side), number, mean=True) for side in BANDS[name]]
            axes.fill_between(numbers, *sides, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(0, 1.05 if name in SHARES else None)
    axes.set_xlim(report.numbers[0] - 0.5, report.numbers[-1] + 0.5)


def _draw_map(
    axes: Any, layers: list[LayerReport], rows: list[list[float]], numbers: list[int], limits: tuple[float, float]
) -> Any:
    """A cell for each layer and each segment, or group of neighbouring segments."""
    size = -(-len(numbers) // COLUMNS)
    edges = [numbers[0] - 0.5 + size * column for column in range(len(rows[0]))] + [numbers[-1] + 0.5]
    mesh = axes.pcolormesh(edges, range(len(layers) + 1), rows, cmap=MAP, vmin=limits[0], vmax=limits[1])
    axes.set_ylim(len(layers), 0)
    step = -(-len(layers) // 12)
    axes.set_yticks([index + 0.5 for index in range(0, len(layers), step)], [x.layer for x in layers[::step]])
    axes.set_ylabel("layer", fontsize=9)
    return mesh


def _draw_sources(figure: Any, axes: Any, report: MemoryReport) -> None:
    """Layers by source segments; what is older than the first of them stands apart on the left."""
    layers, numbers = report.layers, report.numbers[-len(report.layers[0].sources) :]
    shares = [_neighbours(layer.sources, len(numbers)) for layer in layers]
    before = [[layer.source_before] for layer in layers]
    everything = [share for row in (*shares, *before) for share in row]
    limits = min(0, *everything), max(*everything, 0.01)
    mesh = _draw_map(axes, layers, shares, numbers, limits)
    if report.first_source > 1:
        width = 0.04 * len(numbers)
        left = numbers[0] - 0.5 - 1.5 * width
        axes.pcolormesh([left, left + width], range(len(layers) + 1), before, cmap=MAP, vmin=limits[0], vmax=limits[1])
        below = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "va": "top"}
        axes.annotate("before", (left + width / 2, 0), (0, -7), fontsize=9, **below)
    _finish(axes, f"share of each segment in what {report.asking} read", numbers)
    figure.colorbar(mesh, ax=axes, fraction=0.03, pad=0.01, aspect=12 * max(LEAST, ROW * len(layers)))


def _finish(axes: Any, title: str, numbers: list[int]) -> None:
    size = -(-len(numbers) // COLUMNS)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("segment" if size == 1 else f"segment ({size} together)", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.spines[["top", "right"]].set_visible(False)
