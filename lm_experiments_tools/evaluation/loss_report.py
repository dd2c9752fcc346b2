"""Losses of language models as tables and pictures: of a run by length, and of several models by segment."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import formats
from .canvas import Chart, Curve, Point, draw_curves

Metrics = dict[str, Any]
Z95 = 1.959964
FAR = 1.15  # times the highest point of the lowest curve, from where on points are left out of the picture


def loss_table(metrics: Metrics) -> str:
    """Test loss and perplexity by number of segments, as text."""
    lines = [f"{'segments':>10}  {'loss, nats':>10}  {'perplexity':>10}  {'samples':>8}  {'tokens':>11}"]
    for name, row in metrics["test"].items():
        trained = metrics["trained_n_segments"]
        beyond = f"  {formats.times(int(name) / trained)} the longest trained" if int(name) > trained else ""
        lines.append(
            f"{name:>10}  {row['loss']:>10.4f}  {math.exp(row['loss']):>10.3f}  {row['samples']:>8,}"
            f"  {row['tokens']:>11,}{beyond}"
        )
    return "\n".join(lines)


def draw_by_length(metrics: Metrics, path: Path) -> None:
    """Test loss against the number of segments that documents are cut into; of one length there is no picture."""
    rows = [(int(name), row["loss"]) for name, row in metrics["test"].items()]
    if len(rows) < 2:
        return
    points = [Point(math.log2(number), loss, loss, loss) for number, loss in rows]
    chart = Chart(
        "Loss of documents that are cut into samples of so many segments", "segments of a sample", "loss, nats a token",
        ["test"], [(math.log2(number), str(number)) for number, _ in rows],
        lambda axes: _fit(axes, points, math.log2(metrics["trained_n_segments"])), y_max=1.0,
    )  # fmt: skip
    draw_curves(chart, {"test": [Curve("test", points)]}, [path])


class Estimate(NamedTuple):
    """A mean over windows, and half of its 95 percent interval."""

    mean: float
    half: float


@dataclass(frozen=True)
class Measured:
    """One model with one memory.

    Attributes:
        model. memory: `none` for its own, see `ablation.py`. nats: (W, S), summed loss of each segment; NaN: not read.
        trained_segments: of its longest training sample; None: not known.
    """

    model: str
    memory: str
    nats: np.ndarray
    trained_segments: float | None = None

    @property
    def name(self) -> str:
        return self.model if self.memory == "none" else f"{self.model}, memory {self.memory}"


@dataclass(frozen=True)
class Comparison:
    """Several models on the same windows; their own memory is before the others of a model.

    Attributes:
        num_bytes: (W, S), of the targets. segment_size: targets of a segment.
    """

    results: Sequence[Measured]
    num_bytes: np.ndarray
    segment_size: int

    @property
    def segments(self) -> int:
        return self.num_bytes.shape[1]

    def bits(self, result: Measured, part: slice) -> Estimate:
        """Bits per byte over some segments."""
        return self._ratio(result.nats, part)

    def lost(self, result: Measured, part: slice) -> Estimate:
        """Bits per byte more than with the model's own memory, window by window: the spread of texts drops out."""
        own = next(one for one in self.results if one.model == result.model)
        return self._ratio(result.nats - own.nats, part)

    def _ratio(self, nats: np.ndarray, part: slice) -> Estimate:
        """Bits over bytes; the interval is that of a ratio of means, with windows as independent."""
        bits, size = nats[:, part].sum(1) / math.log(2), self.num_bytes[:, part].sum(1)
        ratio, count = bits.sum() / size.sum(), len(bits)
        spread = np.std(bits - ratio * size, ddof=1) / math.sqrt(count) / size.mean() if count > 1 else math.nan
        return Estimate(float(ratio), float(Z95 * spread))

    def loss(self, result: Measured, part: slice) -> float:
        """Nats a token over some segments."""
        return float(result.nats[:, part].mean() / self.segment_size)

    def parts(self) -> dict[str, slice]:
        """All segments, and where some are longer than trained, both parts."""
        whole = {f"1–{self.segments}": slice(None)}
        trained = {result.trained_segments for result in self.results if result.trained_segments}
        for number in sorted(int(n) for n in trained if 1 <= n < self.segments):
            whole |= {f"1–{number}": slice(number), f"{number + 1}–{self.segments}": slice(number, None)}
        return whole


OVERALL = ("model", "segments", "loss, nats a token", "perplexity", "bits per byte", "more than with own memory")


def overall_rows(compared: Comparison) -> list[list[str]]:
    """Cells of a table, see `OVERALL`."""
    rows = []
    for name, part in compared.parts().items():
        for result in compared.results:
            loss, lost = compared.loss(result, part), compared.lost(result, part)
            row = [result.name, name, _number(loss, 4), _number(math.exp(loss), 3)]
            row.append(_with_half(compared.bits(result, part)))
            rows.append([*row, formats.MISSING if result.memory == "none" else _with_half(lost, "+")])
    return rows


def segment_rows(compared: Comparison) -> list[list[str]]:
    """For each segment, bits per byte of each model, and behind it the perplexity."""
    return [
        [
            str(index + 1),
            *(
                f"{_number(compared.bits(result, one).mean, 4)} / {_number(math.exp(compared.loss(result, one)), 2)}"
                for result in compared.results
            ),
        ]
        for index, one in enumerate(_each(compared))
    ]


def _each(compared: Comparison) -> list[slice]:
    return [slice(index, index + 1) for index in range(compared.segments)]


def _number(value: float, digits: int) -> str:
    return formats.MISSING if math.isnan(value) else f"{value:.{digits}f}"


def _with_half(estimate: Estimate, sign: str = "") -> str:
    if math.isnan(estimate.mean):
        return formats.MISSING
    return f"{estimate.mean:{sign}.4f}" + ("" if math.isnan(estimate.half) else f" ± {estimate.half:.4f}")


def as_markdown(compared: Comparison, title: str) -> str:
    """All tables and the picture on one page."""
    names = [result.name for result in compared.results]
    return (
        f"# {title}\n\n{len(compared.num_bytes):,} windows of {compared.segments} segments of {compared.segment_size} "
        f"tokens, {compared.num_bytes.sum():,.0f} bytes. ±: half of a 95% interval over windows.\n\n"
        f"{formats.as_markdown(OVERALL, overall_rows(compared))}\n![bits per byte by segment](loss.png)\n\n"
        f"Bits per byte / perplexity, by segment\n\n{formats.as_markdown(('segment', *names), segment_rows(compared))}"
    )


def as_csv(compared: Comparison) -> str:
    """A row for each model, memory and segment."""
    rows = [
        [
            result.model, result.memory, index + 1, *(f"{value:.6f}" for value in compared.bits(result, one)),
            f"{compared.loss(result, one):.6f}", *(f"{value:.6f}" for value in compared.lost(result, one)),
        ]
        for result in compared.results
        for index, one in enumerate(_each(compared))
    ]  # fmt: skip
    header = ["model", "memory", "segment", "bits_per_byte", "half_interval", "nats_per_token", "more_than_own"]
    return formats.as_csv([*header, "more_half_interval"], rows)


def draw_by_segment(compared: Comparison, title: str, paths: Iterable[Path]) -> None:
    """Bits per byte by segment; beside it, where memories were taken away, what that costs."""

    def curve(result: Measured, value: Callable[[Measured, slice], Estimate], has_interval: bool) -> Curve:
        points = []
        for index, one in enumerate(_each(compared)):
            mean, half = value(result, one)
            half = half if has_interval and not math.isnan(half) else 0.0
            points.append(Point(index + 1, mean, mean - half, mean + half))
        return Curve(result.name, points)

    shown, cut = cut_far([curve(result, compared.bits, False) for result in compared.results])
    curves = {"of the text" + "".join(f"\n{name} is cut: it reaches {high:.2f}" for name, high in cut.items()): shown}
    ablated = [curve(result, compared.lost, True) for result in compared.results if result.memory != "none"]
    if ablated:
        curves["more than with its own memory"] = ablated
    trained = {result.trained_segments for result in compared.results} - {None}
    border = trained.pop() + 0.5 if len(trained) == 1 else None

    def decorate(axes: Any) -> None:
        _fit(axes, [point for one in curves[axes.get_title()] for point in one.points], border)

    names = [result.name for result in compared.results]
    ticks = [(float(number), str(number)) for number in range(1, compared.segments + 1)]
    draw_curves(
        Chart(title, "segment of the window", "bits per byte", names, ticks, decorate, y_max=1.0), curves, paths
    )


def cut_far(curves: list[Curve]) -> tuple[list[Curve], dict[str, float]]:
    """Curves without what stands so far above the lowest one that the others would look alike; and, by the name of each
    that lost points, the highest of them."""
    highest = {one.name: float(np.nanmax([point.y for point in one.points])) for one in curves}
    limit = FAR * min(highest.values())
    kept = [Curve(one.name, [p if p.y <= limit else Point(p.x, *[math.nan] * 3) for p in one.points]) for one in curves]
    return kept, {name: high for name, high in highest.items() if high > limit}


def _fit(axes: Any, points: list[Point], trained: float | None) -> None:
    """Limits around the points, and a shade over what was trained."""
    sides = [value for point in points for value in (point.low, point.high) if not math.isnan(value)]
    low, high = min(sides), max(sides)
    margin = 0.08 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    left, right = axes.get_xlim()
    if trained is not None and left < trained < right:
        axes.axvspan(left, trained, color="0.93", zorder=0)
        axes.annotate("trained", (trained, 1), (-4, -9), ("data", "axes fraction"), "offset points", ha="right",
                      fontsize=7, color="0.4")  # fmt: skip
        axes.set_xlim(left, right)
