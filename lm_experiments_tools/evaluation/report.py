"""The result of a run by length: `metrics.json`, a table and a picture."""

import json
import math
from pathlib import Path
from typing import Any

from ..loggers import finite

Metrics = dict[str, Any]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; NaN and infinity become text."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 percent interval of a share observed on `count` samples (Wilson 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def length_table(metrics: Metrics) -> str:
    """Exact match by number of segments, as text."""
    trained = metrics["trained_n_segments"]
    lines = [f"{'segments':>10}  {'tokens':>8}  {'exact match':>11}  {'95% interval':>15}  samples"]
    for name, row in metrics["test"].items():
        low, high = wilson_interval(row["exact_match"], row["samples"])
        beyond = f"  {int(name) / trained:g}x the longest trained" if name.isdigit() and int(name) > trained else ""
        lines.append(
            f"{name:>10}  {row['tokens']:>8.0f}  {row['exact_match']:>11.3f}  {f'{low:.3f} to {high:.3f}':>15}"
            f"  {row['samples']:>7}{beyond}"
        )
    return "\n".join(lines)


def draw_lengths(metrics: Metrics, path: Path) -> None:
    """Exact match against number of segments, the trained lengths shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [(int(name), row) for name, row in metrics["test"].items() if name.isdigit()]
    if not rows:
        return
    segments = [number for number, _ in rows]
    shares = [row["exact_match"] for _, row in rows]
    bounds = [wilson_interval(row["exact_match"], row["samples"]) for _, row in rows]
    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    trained = metrics["trained_n_segments"]
    axes.axvspan(min(segments) * 0.85, trained * 1.06, color="0.9", zorder=0)
    axes.annotate(
        "trained lengths", (trained, 0.03), xytext=(-4, 0), textcoords="offset points", ha="right", color="0.35"
    )
    errors = [[max(0.0, side) for side in sides] for sides in (
        [share - low for share, (low, _) in zip(shares, bounds)],
        [high - share for share, (_, high) in zip(shares, bounds)],
    )]  # fmt: skip
    axes.errorbar(segments, shares, yerr=errors, marker="o", capsize=3, color="#1f4e79", clip_on=False)
    axes.set_xscale("log", base=2)
    axes.set_xticks(segments, [f"{number}\n{_short(row['tokens'])}" for number, row in rows])
    axes.set_xlim(min(segments) * 0.85, max(segments) * 1.15)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("segments (and tokens) of the test samples")
    axes.set_ylabel("exact match")
    axes.set_title(f"{metrics['task']}: {rows[0][1]['samples']} unseen questions a length, 95% intervals", fontsize=11)
    axes.grid(axis="y", color="0.85")
    axes.spines[["top", "right"]].set_visible(False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)
    plt.close(figure)


def _short(tokens: float) -> str:
    return f"{tokens / 1000:.1f}k" if tokens >= 1000 else f"{tokens:.0f}"
