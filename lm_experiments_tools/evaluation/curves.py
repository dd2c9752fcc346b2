"""Pictures of curves: score against length, against the place of the facts, and with other memories.

Points have 95 percent intervals, or, over several seeds, one standard deviation around the mean and a band.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import ablation_report, by_place, canvas, formats
from .ablation_report import Ablated, Scores
from .by_place import Axis, bins, pooled_lengths, scores_by
from .canvas import Chart, Curve, Point, draw_curves
from .scoring import Kind, Score
from .seeds import Group
from .tables import KINDS, tokens, with_average

BEFORE_FIRST = 1.5  # doublings from 0k, which has no place on a logarithmic axis, to what comes next
NOTE = {"color": "0.3", "fontsize": 7, "ha": "center", "textcoords": "offset points"}


def draw_extrapolation(groups: list[Group], paths: Iterable[Path], kind: Kind) -> None:
    """Score against length, a panel for each task; the trained lengths are marked."""
    trained = {group.title: group.about.trained_tokens for group in groups}
    places = length_places(groups[0].lengths, [size for size in trained.values() if size])
    curves = {
        task: [curve for group in groups if (curve := _length_curve(group, task, places, kind)).points]
        for task in with_average(groups[0].tasks)
    }
    has_band = any(curve.has_band for shown in curves.values() for curve in shown)
    spread = "bars: 95% intervals" + ("; bands: standard deviation over seeds" if has_band else "")
    chart = Chart(
        f"BABILong by length\n{spread}", "length in tokens", f"{KINDS[kind]}, %", list(trained),
        [(place, length) for length, place in places.items()], lambda axes: _mark_trained(axes, places, groups),
    )  # fmt: skip
    draw_curves(chart, {task: shown for task, shown in curves.items() if shown}, paths)


def length_places(lengths: Iterable[str], trained: Iterable[int]) -> dict[str, float]:
    """Where lengths stand: at their base-2 logarithm, but 0k before all of them and before what was trained."""
    places = {length: math.log2(tokens(length)) for length in lengths if tokens(length)}
    first = min([*places.values(), *map(math.log2, trained)], default=BEFORE_FIRST)
    return {length: places.get(length, first - BEFORE_FIRST) for length in lengths}


def _length_curve(group: Group, task: str, places: dict[str, float], kind: Kind) -> Curve:
    points = []
    for length, place in places.items():
        share = group.share(task, length, kind)
        if share is None:
            continue
        deviation = group.deviation(task, length, kind)
        score = group.grids[0].score(task, length) if len(group.grids) == 1 else None
        if score:
            points.append(_point(place, score, kind))
        else:
            points.append(Point(place, share, max(0.0, share - (deviation or 0)), min(1.0, share + (deviation or 0))))
        if not tokens(length):  # the curve does not lead to what has no place on its axis
            points.append(Point(place, *[math.nan] * 3))
    return Curve(group.title, points, len(group.grids) > 1)


def _point(place: float, score: Score, kind: Kind) -> Point:
    return Point(place, score.share(kind), *score.interval(kind))


def _mark_trained(axes: Any, places: dict[str, float], groups: list[Group]) -> None:
    """Shade what models were trained on; where they differ, a line for each. Break the axis behind 0k."""
    marks = [(n, math.log2(group.about.trained_tokens)) for n, group in enumerate(groups) if group.about.trained_tokens]
    left, right = axes.get_xlim()
    left = min([left, *(mark - 0.6 for _, mark in marks)])
    axes.set_xlim(left, max([right, *(mark + 0.3 for _, mark in marks)]))
    if len({mark for _, mark in marks}) == 1:
        shade_trained(axes, left, marks[0][1], places)
    else:
        for number, mark in marks:
            axes.axvline(mark, color=canvas.colour(number), linestyle=canvas.line(number), linewidth=1, zorder=0)
            axes.annotate("trained", (mark, 0), xytext=(-5, 14), rotation=90, **NOTE)
    if "0k" in places and len(places) > 1:
        after = places["0k"] + BEFORE_FIRST / 2
        axes.annotate("//", (after, 0), xytext=(0, -4), **NOTE | {"color": "black", "fontsize": 9}, zorder=5)


def shade_trained(axes: Any, left: float, trained: float, places: dict[str, float], height: float = 0.0) -> None:
    """And say how far beyond it the longer lengths are; `height`: of the word, as a share of the panel's."""
    axes.axvspan(left, trained, color="0.91", zorder=0)
    axes.annotate(
        "trained", (trained, height), xytext=(-3, 9), xycoords=("data", "axes fraction"), **NOTE | {"ha": "right"}
    )
    axes.set_title(axes.get_title(), fontsize=10, pad=16)
    for place in places.values():
        if place > trained:
            times = formats.times(2 ** (place - trained))
            axes.annotate(
                times, (place, 1), xytext=(0, 4), xycoords=("data", "axes fraction"), **NOTE | {"fontsize": 6}
            )


def draw_by_place(axis: Axis, groups: list[Group], paths: Iterable[Path], kind: Kind) -> None:
    """Score against depth or distance, over all lengths; a panel for each task."""
    shown, lengths = bins(axis, groups), pooled_lengths(axis, groups)
    curves: dict[str, list[Curve]] = {}
    for task in groups[0].tasks:
        for group in groups:
            scores = scores_by(axis, group.results(task, lengths))
            points = [_point(number, score, kind) for number, score in scores.items()]
            if points:
                curves.setdefault(task, []).append(Curve(group.title, points))
    title = f"By {axis.title}\n{by_place.in_words(lengths)}; bars: 95% intervals over the samples{_pooled(groups)}"
    ticks = [(float(number), axis.label(number)) for number in shown]
    names = [group.title for group in groups]
    draw_curves(Chart(title, f"{axis.name}, {axis.unit}", f"{KINDS[kind]}, %", names, ticks), curves, paths)


def _pooled(groups: list[Group]) -> str:
    return " of all seeds" if any(len(group.grids) > 1 for group in groups) else ""


def draw_ablations(models: list[Ablated], paths: Iterable[Path], kind: Kind) -> None:
    """Score against length with each memory; a panel for each model and task."""
    lengths = sorted({length for model in models for _, length in model.pairs()}, key=tokens)
    curves: dict[str, list[Curve]] = {}
    for model in models:
        for task in dict.fromkeys(task for task, _ in model.pairs()):
            title = f"{model.name}\n{task}" if len(models) > 1 else task
            drawn = [_memory_curve(memory, scores, task, lengths, kind) for memory, scores in model.memories.items()]
            curves[title] = [curve for curve in drawn if curve.points]
    name = models[0].name if len(models) == 1 else "BABILong"
    title = f"{name}, with its own memory and with others\nbars: 95% intervals"
    ticks = [(float(number), length) for number, length in enumerate(lengths)]
    chart = Chart(title, "length in tokens", f"{KINDS[kind]}, %", ablation_report.memories(models), ticks)
    draw_curves(chart, curves, paths)


def _memory_curve(memory: str, scores: Scores, task: str, lengths: list[str], kind: Kind) -> Curve:
    places = [(place, scores.get((task, length))) for place, length in enumerate(lengths)]
    return Curve(memory, [_point(place, score, kind) for place, score in places if score is not None])
