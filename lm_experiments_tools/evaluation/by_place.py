"""Scores by where the facts stand: by depth in the context, by distance to the question, and by whether a border of
segments cuts them.

A sample is in the bin of its last supporting fact; by depth, if asked, once in every bin that one of its facts is in;
it is cut if any of its facts is.
Seeds of a group are pooled, so that intervals are of the samples and say nothing of another training. Samples without
places are left out.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from . import formats
from .official_files import Answer, Result
from .places import Place
from .scoring import Grade, Kind, Score
from .seeds import Group
from .tables import SCORE_COLUMNS, prompt_parts, score_cells, tokens

DEPTHS = 10  # bins
NEAREST = 64  # tokens: nearer facts are in one bin, where a distance is in tokens
POOLED = "pooled"  # lengths together

Facts = Literal["last", "every"]


@dataclass(frozen=True)
class Axis:
    """Bins of one quantity.

    Attributes:
        name: of files. title: what it is. unit: of its edges. bins_of: those of a sample, where it is one of a result.
        edges: (from, below) of a bin. label: of a bin. always: bins that are shown even when they are empty.
        pools_shared: only lengths that all models have are pooled, as longer ones are harder; false, where long ones
            have bins of their own. is_curve: its bins are many and follow one another: worth a picture.
    """

    name: str
    title: str
    unit: str
    bins_of: Callable[[Place, Result], list[int]]
    edges: Callable[[int], tuple[float, float]]
    label: Callable[[int], str]
    always: tuple[int, ...] = ()
    pools_shared: bool = False
    is_curve: bool = True


def depth_axis(facts: Facts) -> Axis:
    """Ten bins between the start of the context and its end."""
    which = "the last supporting fact" if facts == "last" else "every supporting fact"
    wanted = slice(-1, None) if facts == "last" else slice(None)
    return Axis(
        "depth",
        f"depth of {which} in the context",
        "part of the context",
        lambda place, result: sorted(set(place.depths(DEPTHS)[wanted])),
        lambda number: (number / DEPTHS, (number + 1) / DEPTHS),
        lambda number: f"{100 * number // DEPTHS}–{100 * (number + 1) // DEPTHS}%",
        always=tuple(range(DEPTHS)),
        pools_shared=True,
    )


def distance_axis(results: Iterable[Result]) -> Axis:
    """Bins from one power of two to the next, in segments; in tokens, where a model has no known segments."""
    in_segments = all(result.about.segment_size for result in results if any(map(_has_place, result.answers)))
    smallest = 1 if in_segments else NEAREST

    def bins_of(place: Place, result: Result) -> list[int]:
        return [(place.distance(result.about.segment_size if in_segments else None) // smallest).bit_length()]

    def edges(number: int) -> tuple[int, int]:
        return (smallest << number - 1 if number else 0), smallest << number

    def label(number: int) -> str:
        first, stop = edges(number)
        return f"{first}" if stop == first + 1 else f"{_short(first)}–{_short(stop - 1)}"

    unit = "segments" if in_segments else "tokens"
    title = f"distance from the last supporting fact to the question, in {unit}"
    return Axis("distance", title, unit, bins_of, edges, label)


def wholeness_axis() -> Axis:
    """Whether a supporting fact begins in one segment and ends in another; of models with known segments."""

    def bins_of(place: Place, result: Result) -> list[int]:
        size = result.about.segment_size
        return [min(place.borders(size), 1)] if size else []

    return Axis(
        "wholeness",
        "whether a border of segments cuts a supporting fact",
        "borders in the fact",
        bins_of,
        lambda number: (0, 1) if number == 0 else (1, math.inf),
        lambda number: "cut" if number else "whole",
        always=(0, 1),
        pools_shared=True,
        is_curve=False,
    )


def _short(number: int) -> str:
    for unit, letter in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if number >= unit:
            return f"{number / unit:.0f}{letter}"
    return str(number)


def _has_place(answer: Answer) -> bool:
    return answer.place is not None and bool(answer.place.facts)


def scores_by(axis: Axis, results: Iterable[Result]) -> dict[int, Score]:
    """The score of each bin that has samples."""
    grades: dict[int, list[Grade]] = defaultdict(list)
    for result in results:
        for answer in result.answers:
            if _has_place(answer):
                for number in axis.bins_of(answer.place, result):
                    grades[number].append(answer.grade)
    return {number: Score.of(grades[number]) for number in sorted(grades)}


def bins(axis: Axis, groups: Iterable[Group], task: str | None = None) -> list[int]:
    """All bins to show, of all tasks or of one; none, where no sample has a place."""
    results = [one for group in groups for name in group.tasks if task in (None, name) for one in group.results(name)]
    found = scores_by(axis, results)
    return sorted({*axis.always, *range(min(found), max(found) + 1)}) if found else []


def pooled_lengths(axis: Axis, groups: Iterable[Group]) -> list[str]:
    """Lengths to pool: those with places, of all groups or of any."""
    having = [
        {one.length for task in group.tasks for one in group.results(task) if scores_by(axis, [one])}
        for group in groups
    ]
    having = [lengths for lengths in having if lengths]
    shared = set.intersection(*having) if axis.pools_shared else set()
    return sorted(shared or set.union(*having), key=tokens)


def in_words(lengths: list[str]) -> str:
    """`lengths 0k to 32k pooled`."""
    return f"lengths {lengths[0]} to {lengths[-1]} pooled" if len(lengths) > 1 else f"length {lengths[0]}"


def as_csv(axis: Axis, groups: list[Group]) -> str:
    """A row for each group, prompt, task, length (or `pooled`) and bin from `from` to below `below`."""
    rows = []
    for group in groups:
        head = [group.model, prompt_parts(group.grids[0].setting)]
        for task in group.tasks:
            for length, scores in _by_length(axis, groups, group, task).items():
                for number, score in scores.items():
                    edges = [f"{edge:g}" if isinstance(edge, float) else edge for edge in axis.edges(number)]
                    rows.append([*head, task, length, *edges, axis.unit, score.samples, *score_cells(score)])
    header = ["model", "prompt", "task", "length", "from", "below", "unit", "samples", *SCORE_COLUMNS]
    return formats.as_csv(header, rows)


def _by_length(axis: Axis, groups: list[Group], group: Group, task: str) -> dict[str, dict[int, Score]]:
    """Scores by bin of one of some groups: pooled, and at each length that has places."""
    by_length = {POOLED: scores_by(axis, group.results(task, pooled_lengths(axis, groups)))}
    by_length |= {length: scores_by(axis, group.results(task, [length])) for length in group.lengths}
    return {length: scores for length, scores in by_length.items() if scores}


def pooled_markdown(axis: Axis, groups: list[Group], kind: Kind) -> str:
    """A row for each task and group; percent, 95 percent interval, number of samples."""
    shown, lengths = bins(axis, groups), pooled_lengths(axis, groups)
    rows = []
    for task in groups[0].tasks:
        for group in groups:
            scores = scores_by(axis, group.results(task, lengths))
            rows += [[task, group.title, *_cells(scores, shown, kind)]] if scores else []
    return formats.as_markdown(("task", "model", *map(axis.label, shown)), rows)


def by_length_markdown(axis: Axis, groups: list[Group], kind: Kind) -> str:
    """For each group and task a table with a row for each length."""
    shown = bins(axis, groups)
    lines = []
    for group in groups:
        for task in group.tasks:
            by_length = _by_length(axis, groups, group, task)
            rows = [[length, *_cells(scores, shown, kind)] for length, scores in by_length.items()]
            if rows:
                table = formats.as_markdown(("length", *map(axis.label, shown)), rows)
                lines += [f"## {group.title}: {task}", table]
    return "\n\n".join(lines)


def _cells(scores: dict[int, Score], shown: list[int], kind: Kind) -> list[str]:
    return [
        f"{formats.with_interval(scores[number].share(kind), scores[number], kind)} of {scores[number].samples}"
        if number in scores
        else formats.MISSING
        for number in shown
    ]
