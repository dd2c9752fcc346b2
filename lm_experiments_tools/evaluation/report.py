"""The result of a run by length: `metrics.json`, a table and a picture. As a program, tables of BABILong results:

    python -m lm_experiments_tools.evaluation.report babilong_evals --output report --models armt-3/best org/other

RESULTS are folders of the files that `evaluation.babilong` or the public harness writes, of one model or of many.
Leaves scores.md, scores.csv, scores.tex, and a heat map of the official and of the strict score.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import cli
from ..args import option
from ..errors import UserError
from ..loggers import finite, say
from . import tables
from .figures import draw_heat_map
from .official_files import Result, read_folder
from .scoring import wilson_interval

Metrics = dict[str, Any]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; NaN and infinity become text."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


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


@dataclass
class ReportArgs:
    """Options of the report."""

    output: str = option("report", "folder for tables and pictures")
    models: list[str] | None = option(None, "models to show, in this order; default: all")


def write_report(results: list[Result], folder: Path) -> None:
    """Tables and heat maps of all scores."""
    folder.mkdir(parents=True, exist_ok=True)
    writers = {".md": tables.as_markdown, ".csv": tables.as_csv, ".tex": tables.as_latex}
    for suffix, as_table in writers.items():
        (folder / f"scores{suffix}").write_text(as_table(results), encoding="utf-8")
    for kind in tables.KINDS:
        draw_heat_map(results, [folder / f"heat_map_{kind}{suffix}" for suffix in (".png", ".svg")], kind)


def main(argv: list[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    count = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    (args,) = cli.parse(words[count:], ReportArgs, description=__doc__)
    if not count:
        raise UserError("usage: python -m lm_experiments_tools.evaluation.report RESULTS... [--output FOLDER]")
    results = [result for folder in words[:count] for result in read_folder(Path(folder))]
    if args.models:
        known = {result.model for result in results}
        for model in args.models:
            if model not in known:
                raise UserError(f"no results of model {model!r}; there are some of {', '.join(sorted(known))}")
        results = [result for model in args.models for result in results if result.model == model]
    write_report(results, Path(args.output))
    say(f"{tables.as_text(results)}\ntables and heat maps: {args.output}")


if __name__ == "__main__":
    cli.run(main)
