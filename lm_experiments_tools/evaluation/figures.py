"""The benchmark's heat map: tasks by lengths, the score in each cell, models side by side.

Lightness grows with the score, from dark red to light green: the picture reads the same in grey.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .official_files import Result
from .scoring import Kind
from .tables import KINDS, MISSING, Grid, grids

COLOURS = ["#67001f", "#b2352c", "#de7a3c", "#efb84e", "#d3e37a", "#c9f5b0"]
WHITE_BELOW = 0.36  # of the scores: on these colours dark numbers are hard to read
COLUMNS = 2  # models in a row, where they have many lengths
WIDE = 12  # lengths of all models together that fit into one row
CELL, MARGIN, HEAD = 0.62, 1.0, 0.95  # inches


def draw_heat_map(results: Iterable[Result], paths: Iterable[Path], kind: Kind = "official") -> None:
    """Draw into each of the paths, in the format of its suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("score", COLOURS).with_extremes(bad="0.93")
    all_grids = grids(results)
    lengths, rows = len(all_grids[0].lengths), len(all_grids[0].rows())
    columns = min(len(all_grids), COLUMNS if lengths * len(all_grids) > WIDE else len(all_grids))
    lines = math.ceil(len(all_grids) / columns)
    size = columns * (max(lengths, 4) * CELL + MARGIN), lines * (rows * CELL * 0.75 + HEAD) + 0.3
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for number, panel in enumerate(axes.flat):
        if number < len(all_grids):
            _draw_grid(panel, all_grids[number], kind, colours)
        else:
            panel.set_visible(False)
    figure.suptitle(f"BABILong, {KINDS[kind]}, %", fontsize=11)
    for path in paths:
        temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
        figure.savefig(temporary, dpi=150)
        temporary.replace(path)
    plt.close(figure)


def _draw_grid(axes: Any, grid: Grid, kind: Kind, colours: Any) -> None:
    rows = grid.rows()
    shares = [[grid.share(task, length, kind) for length in grid.lengths] for task in rows]
    axes.pcolormesh(
        [[math.nan if share is None else share for share in line] for line in shares],
        cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.5,
    )  # fmt: skip
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            text = MISSING if share is None else f"{100 * share:.0f}"
            colour = "white" if share is not None and share < WHITE_BELOW else "black"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=10)
    if len(rows) > len(grid.tasks):
        axes.axhline(len(grid.tasks), color="black", linewidth=1.5)
    axes.set_xticks([number + 0.5 for number in range(len(grid.lengths))], grid.lengths)
    axes.set_yticks([number + 0.5 for number in range(len(rows))], rows)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("length in tokens")
    axes.set_title(grid.name, fontsize=10)
