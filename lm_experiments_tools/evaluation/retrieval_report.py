"""Models side by side on associative retrieval: exact match, and how many pairs a memory holds, by number of pairs.

    python -m lm_experiments_tools.evaluation.retrieval_report runs/armt runs/rmt --output report

RUNS are folders of finished runs or curricula (with `metrics.json`), or NAME=FOLDER. Leaves index.md with everything, a
table as CSV, and for each task pictures as PNG and SVG, the trained numbers of pairs shaded.

Capacity, of remember, is the estimate of arXiv 2407.04841, appendix B: a memory that holds k of n pairs, and
guesses among v values for the others, answers with accuracy a = k/n + (1 - k/n)/v, so k = n(va - 1)/(v - 1).
"""

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import cli
from ..args import option
from ..data.associative_retrieval import SYMBOLS
from ..errors import UserError
from ..loggers import say
from . import formats
from .canvas import Chart, Curve, Point, draw_curves
from .curves import shade_trained
from .scoring import Score
from .sections import INTERVALS, Section

BEFORE_FIRST, BEHIND_LAST = 0.6, 0.3  # doublings that are seen beside the first tick and the longest trained number
LABEL = {"color": "0.35", "fontsize": 7, "textcoords": "offset points", "va": "top", "ha": "right"}


@dataclass
class ReportArgs:
    """Options of the report."""

    output: str = option("report", "folder for tables and pictures")


@dataclass(frozen=True)
class Model:
    """What one run reached.

    Attributes:
        trained: most pairs of a training sample. num_values: different values. scores: by number of pairs.
    """

    name: str
    task: str
    trained: int
    num_values: int
    scores: dict[int, Score]

    def share(self, pairs: int) -> tuple[float, float, float]:
        """Exact match with the ends of its 95 percent interval."""
        score = self.scores[pairs]
        return score.share("strict"), *score.interval("strict")

    def capacity(self, pairs: int) -> tuple[float | None, ...]:
        """Pairs that the memory holds, with the ends of the interval; None where keys repeat."""
        if self.task != "remember":
            return None, None, None
        return tuple(capacity(pairs, self.num_values, share) for share in self.share(pairs))


def capacity(pairs: int, num_values: int, accuracy: float) -> float:
    """Of `pairs`, how many are known when the others are guessed; 0 where guessing alone explains the accuracy."""
    return max(0.0, pairs * (num_values * accuracy - 1) / (num_values - 1))


def read_model(word: str) -> Model:
    """The result of FOLDER or NAME=FOLDER.

    Raises:
        UserError: there is none, or it is of another experiment.
    """
    name, _, folder = word.rpartition("=")
    path = Path(folder) / "metrics.json"
    try:
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give folders of finished runs") from error
    if "trained_n_pairs" not in metrics:
        raise UserError(f"{path} is not of associative retrieval but of {metrics.get('task')}")
    scores = {}
    for pairs, row in metrics["test"].items():
        right = round(row["exact_match"] * row["samples"])
        scores[int(pairs)] = Score(row["samples"], right, right)
    num_values = len(SYMBOLS) ** metrics["config"]["value_size"]
    return Model(name or Path(folder).resolve().name, metrics["task"], metrics["trained_n_pairs"], num_values, scores)


def write_report(models: list[Model], folder: Path) -> Path:
    """Tables and pictures. Returns the path of the overview.

    Raises:
        UserError: two models of the same name and task.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for task in dict.fromkeys(model.task for model in models):
        chosen = [model for model in models if model.task == task]
        names = [model.name for model in chosen]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise UserError(f"two runs of {task} are named {min(repeated)!r}: give them as NAME=FOLDER")
        parts.append(of_scores(folder, task, chosen))
        if task == "remember":  # of pairs that are rewritten, a memory need not hold all
            parts.append(of_capacity(folder, task, chosen))
    (folder / "scores.csv").write_text(as_csv(models), encoding="utf-8")
    head = "# Associative retrieval\n\nMade by `python -m lm_experiments_tools.evaluation.retrieval_report`. "
    head += "All numbers with their intervals: [scores.csv](scores.csv)."
    path = folder / "index.md"
    path.write_text("\n\n".join([head, *(part.as_markdown() for part in parts)]) + "\n", encoding="utf-8")
    return path


def of_scores(folder: Path, task: str, models: list[Model]) -> Section:
    section = Section(folder, f"{task}: exact match, %", INTERVALS)
    draw(models, section.picture(task), "exact match, %", Model.share)
    section.table_shown = _table(
        models, lambda model, n: formats.with_interval(model.share(n)[0], model.scores[n], "strict")
    )
    return section


def of_capacity(folder: Path, task: str, models: list[Model]) -> Section:
    text = "Pairs that the memory holds: k = n(va - 1)/(v - 1) of n pairs with v values at accuracy a."
    section = Section(folder, f"{task}: capacity, pairs", text)
    draw(models, section.picture(f"{task}_capacity"), "pairs held (estimate)", Model.capacity)
    section.table_shown = _table(models, lambda model, n: f"{model.capacity(n)[0]:.1f}")
    return section


def _table(models: list[Model], cell) -> str:
    """A row for each model, with the most pairs that it was trained on, and a column for each number of pairs."""
    numbers = _numbers(models)
    rows = [
        [model.name, str(model.trained), *(cell(model, n) if n in model.scores else formats.MISSING for n in numbers)]
        for model in models
    ]
    return formats.as_markdown(("model", "trained on", *map(str, numbers)), rows)


def _numbers(models: Iterable[Model]) -> list[int]:
    return sorted({pairs for model in models for pairs in model.scores})


def draw(models: list[Model], paths: list[Path], y_label: str, values) -> None:
    """One quantity, `values(model, pairs)` with its interval, against the number of pairs."""
    numbers = _numbers(models)
    places = {str(n): math.log2(n) for n in numbers}
    is_share = values is Model.share
    trained = sorted({model.trained for model in models})

    def decorate(axes: Any) -> None:
        left, right = axes.get_xlim()
        left = min(left, math.log2(numbers[0]) - BEFORE_FIRST)
        axes.set_xlim(left, max(right, math.log2(trained[-1]) + BEHIND_LAST))
        for number in trained[:-1]:
            axes.axvline(math.log2(number), color="0.6", linewidth=0.8, linestyle=":", zorder=0)
        shade_trained(axes, left, math.log2(trained[-1]), places, height=0.4 if is_share else 0.85)
        if not is_share:
            axes.plot(list(places.values()), numbers, color="0.6", linewidth=1, zorder=1)
            axes.annotate("all pairs", (math.log2(numbers[-1]), numbers[-1]), xytext=(-22, -2), **LABEL)

    curves = [
        Curve(model.name, [Point(math.log2(n), *values(model, n)) for n in sorted(model.scores)]) for model in models
    ]
    samples = sorted({score.samples for model in models for score in model.scores.values()})
    title = f"{' or '.join(map(str, samples))} samples a point, bars: 95% intervals"
    ticks = [(place, number) for number, place in places.items()]
    chart = Chart(
        models[0].task, "key-value pairs of a sample", y_label, [model.name for model in models], ticks, decorate,
        None if is_share else float(numbers[-1]),
    )  # fmt: skip
    draw_curves(chart, {title: curves}, paths)


def as_csv(models: list[Model]) -> str:
    """A row for each model and number of pairs; shares from 0 to 1."""
    header = ["task", "model", "trained_pairs", "pairs", "samples"]
    header += [f"{name}{part}" for name in ("exact_match", "capacity") for part in ("", "_low", "_high")]
    rows = [
        [model.task, model.name, model.trained, n, score.samples, *formats.shares(model.share(n) + model.capacity(n))]
        for model in models
        for n, score in sorted(model.scores.items())
    ]
    return formats.as_csv(header, rows)


def main(argv: list[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    count = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    (args,) = cli.parse(words[count:], ReportArgs, description=__doc__)
    if not count:
        raise UserError("usage: python -m lm_experiments_tools.evaluation.retrieval_report RUNS... [--output FOLDER]")
    models = [read_model(word) for word in words[:count]]
    with cli.mendable(OSError):
        path = write_report(models, Path(args.output))
    say(f"{path.read_text(encoding='utf-8')}\nreport: {path}")


if __name__ == "__main__":
    cli.run(main)
