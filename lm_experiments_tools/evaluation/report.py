"""The result of a run by length: `metrics.json`, a table and a picture. As a program, tables of BABILong results:

    python -m lm_experiments_tools.evaluation.report babilong_evals --output report --models armt-3/best org/other

RESULTS are folders of the files that `evaluation.babilong` or the public harness writes, of one model or of many.
Leaves index.md, which shows all of the rest: scores by task and length (Markdown, CSV, LaTeX, heat maps), models and
seeds side by side, curves by length with the trained one marked, by depth and distance of the facts and by whether
they are cut, and scores with another memory; pictures as PNG and SVG. Facts are known where the evaluation left its
.jsonl files.
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
from . import ablation_report, by_place, canvas, scoring, sections, seeds, tables, tensorboard_report
from .official_files import Result, read_folder
from .scoring import wilson_interval

Metrics = dict[str, Any]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; NaN and infinity become text."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def length_table(metrics: Metrics) -> str:
    """Exact match by number of segments, or of pairs, as text."""
    unit, trained = longest_trained(metrics)
    lines = [f"{unit:>10}  {'tokens':>8}  {'exact match':>11}  {'95% interval':>15}  samples"]
    for name, row in metrics["test"].items():
        low, high = wilson_interval(row["exact_match"], row["samples"])
        beyond = f"  {int(name) / trained:g}x the longest trained" if name.isdigit() and int(name) > trained else ""
        lines.append(
            f"{name:>10}  {row['tokens']:>8.0f}  {row['exact_match']:>11.3f}  {f'{low:.3f} to {high:.3f}':>15}"
            f"  {row['samples']:>7}{beyond}"
        )
    return "\n".join(lines)


def longest_trained(metrics: Metrics) -> tuple[str, int]:
    """What a run counts its lengths in, and the longest that it was trained on."""
    return next((unit, metrics[name]) for unit in ("segments", "pairs") if (name := f"trained_n_{unit}") in metrics)


def draw_lengths(metrics: Metrics, path: Path) -> None:
    """Exact match against number of segments, or of pairs, the trained lengths shaded."""
    rows = [(int(name), row) for name, row in metrics["test"].items() if name.isdigit()]
    if not rows:
        return
    segments = [number for number, _ in rows]
    shares = [row["exact_match"] for _, row in rows]
    bounds = [wilson_interval(row["exact_match"], row["samples"]) for _, row in rows]
    figure, axes = canvas.pyplot().subplots(figsize=(7, 4), constrained_layout=True)
    unit, trained = longest_trained(metrics)
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
    axes.set_xlabel(f"{unit} (and tokens) of the test samples")
    axes.set_ylabel("exact match")
    axes.set_title(f"{metrics['task']}: {rows[0][1]['samples']} unseen questions a length, 95% intervals", fontsize=11)
    axes.grid(axis="y", color="0.85")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.save(figure, [path])


def _short(tokens: float) -> str:
    return f"{tokens / 1000:.1f}k" if tokens >= 1000 else f"{tokens:.0f}"


@dataclass
class ReportArgs:
    """Options of the report."""

    output: str = option("report", "folder for tables and pictures")
    models: list[str] | None = option(None, "models to show, in this order, with their ablations; default: all")
    seeds: list[str] | None = option(
        None,
        "GROUP=NAME,NAME,... of models that differ in their seed; default: names equal but for `seed` and a number",
    )
    score: scoring.Kind = option("official", "the score that curves, depth maps and the overview show")
    facts: by_place.Facts = option("last", "supporting facts of a sample that count by depth: the last, or every one")
    tensorboard: str | None = option(None, "also write scores and pictures to this folder for TensorBoard")


def main(argv: list[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    count = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    (args,) = cli.parse(words[count:], ReportArgs, description=__doc__)
    if not count:
        raise UserError("usage: python -m lm_experiments_tools.evaluation.report RESULTS... [--output FOLDER]")
    results = [result for folder in words[:count] for result in read_folder(Path(folder))]
    if args.models:
        results = chosen(results, args.models)
    true, ablated = ablation_report.split(results)
    if not true:
        raise UserError("only ablated results; give the folder of their model, which has the true ones too")
    text = tables.as_text(true)
    with cli.mendable(OSError):
        path = write_report(true, ablated, args)
    say(f"{text}\nreport: {path}")


def chosen(results: list[Result], models: list[str]) -> list[Result]:
    """Results of some models, in their order.

    Raises:
        UserError: there are none of one of them.
    """
    known = {ablation_report.true_model(result) for result in results}
    for model in models:
        if model not in known:
            raise UserError(f"no results of model {model!r}; there are some of {', '.join(sorted(known))}")
    return [
        result for model in dict.fromkeys(models) for result in results if ablation_report.true_model(result) == model
    ]


def write_report(true: list[Result], ablated: list[Result], args: ReportArgs) -> Path:
    """Tables and pictures of true and ablated results. Returns the path of the overview."""
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    groups = seeds.group_results(true, args.seeds)
    axes = by_place.depth_axis(args.facts), by_place.distance_axis(true), by_place.wholeness_axis()
    parts = [sections.of_scores(folder, true, args.score)]
    if len(true_grids := tables.grids(true)) > 1:
        parts.append(sections.of_seeds(folder, groups, args.score))
    parts.append(sections.of_lengths(folder, groups, args.score))
    parts += [sections.of_places(folder, axis, groups, args.score) for axis in axes if by_place.bins(axis, groups)]
    if ablated:
        parts.append(sections.of_ablations(folder, ablation_report.side_by_side(true, ablated), args.score))
    path = folder / "index.md"
    path.write_text(sections.overview(groups, parts, args.score), encoding="utf-8")
    if args.tensorboard:
        tensorboard_report.write(Path(args.tensorboard), true_grids + tables.grids(ablated), parts)
    return path


if __name__ == "__main__":
    cli.run(main)
