"""The picture of a curriculum: validation against updates over all stages."""

import json
from pathlib import Path
from typing import Any

NAME = "curriculum.png"
STYLES = ("-", "--", ":", "-.")  # of a stage and its retries
LABEL_POINTS = 8


def draw_curriculum(rows: list[dict[str, Any]], runs: Path) -> None:
    """Draw RUNS/curriculum.png from the completed attempts of a ledger; retries stand over the stage they repeat."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if row["metric"] is not None]
    metric = rows[-1]["metric"]
    figure, axes = plt.subplots(figsize=(9, 4.2), constrained_layout=True)
    begin, labels = 0, []
    for number in sorted({row["stage"] for row in rows}):
        attempts = [row for row in rows if row["stage"] == number]
        for row in attempts:
            _draw_attempt(axes, row, begin, *validations(runs / row["folder"], metric))
        end = begin + max(row["update"] for row in attempts)
        axes.axvspan(begin, end, color="1" if number % 2 else "0.93", zorder=0)
        axes.axvline(end, color="0.6", linewidth=0.8, zorder=1)
        labels.append(_label(axes, attempts[0]["name"], (begin + end) / 2))
        begin = end
    axes.set_xlim(0, begin)
    low, high = axes.get_ylim()
    if low >= -0.1 and high <= 1.1:  # a share
        axes.set_ylim(0, 1.03)
    axes.set_xlabel("updates, over all stages")
    axes.set_ylabel(f"validation {metric.replace('_', ' ')}")
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, axes)
    _pile_up(figure, labels)
    temporary = runs / f"{NAME}.tmp.png"
    figure.savefig(temporary, dpi=150)
    temporary.replace(runs / NAME)
    plt.close(figure)


def validations(folder: Path, metric: str) -> tuple[list[int], list[float]]:
    """Updates and values of all validations of a completed run."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "valid"]
    return [row["update"] for row in rows], [float(row[metric]) for row in rows]  # NaN is text in a file


def _draw_attempt(axes, row: dict[str, Any], begin: int, updates: list[int], values: list[float]) -> None:
    name = f"retry {row['attempt']}" if row["attempt"] else "first attempt"
    style = {"linestyle": STYLES[row["attempt"] % len(STYLES)], "color": "black" if row["taken"] else "0.45"}
    axes.plot([begin + update for update in updates], values, **style, linewidth=1.3, marker=".", ms=3, label=name)
    if row["best_update"] in updates:
        value = values[updates.index(row["best_update"])]
        name, colour = ("best, handed on", "black") if row["taken"] else ("best, fell back", "white")
        axes.plot(begin + row["best_update"], value, "o", mec="black", mfc=colour, zorder=3, label=name, clip_on=False)


def _label(axes, name: str, middle: float):
    """The name of a stage, above it."""
    place = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": LABEL_POINTS}
    return axes.annotate(name, (middle, 1), xycoords=("data", "axes fraction"), **place)


def _legend(figure, axes) -> None:
    shown = dict(zip(*reversed(axes.get_legend_handles_labels())))  # each label once
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown), frameon=False)


def _pile_up(figure, labels: list) -> None:
    """Move labels that would stand in each other up by rows."""
    figure.draw_without_rendering()
    ends: list[float] = []  # right ends of the rows, in pixels
    for label in labels:
        box = label.get_window_extent()
        row = next((row for row, end in enumerate(ends) if end + LABEL_POINTS < box.x0), len(ends))
        ends[row : row + 1] = [box.x1]
        label.set_position((0, 4 + row * 1.5 * LABEL_POINTS))
