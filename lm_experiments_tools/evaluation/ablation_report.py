"""Scores with other memories beside the true score of a model: whether it uses its memory.

Ablated results are in folders `ablate_zero`, `ablate_other`, `ablate_freeze_3` in that of the model.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from . import formats
from .official_files import ABLATED, Result
from .scoring import Kind, Score
from .tables import KINDS, SCORE_COLUMNS, named, prompt_parts, score_cells, task_number, tokens

TRUE = "true"

Scores = dict[tuple[str, str], Score]


@dataclass(frozen=True)
class Ablated:
    """One model with one prompt.

    Attributes:
        name: of the model, with the prompt where there are several. memories: the scores by task and length with each
            memory; the true one is first.
    """

    name: str
    model: str
    setting: str
    memories: dict[str, Scores]

    def pairs(self) -> list[tuple[str, str]]:
        """Tasks and lengths that have an ablated score."""
        pairs = {pair for memory, scores in self.memories.items() if memory != TRUE for pair in scores}
        return sorted(pairs, key=lambda pair: (task_number(pair[0]), tokens(pair[1])))


def split(results: Iterable[Result]) -> tuple[list[Result], list[Result]]:
    """True results and ablated ones."""
    results = list(results)
    return [one for one in results if not memory_of(one)], [one for one in results if memory_of(one)]


def memory_of(result: Result) -> str:
    """`model/ablate_freeze_3` -> `freeze:3`; of a true result nothing."""
    _, slash, folder = result.model.rpartition("/")
    return re.sub(r"freeze_(\d+)", r"freeze:\1", folder.removeprefix(ABLATED)) if folder.startswith(ABLATED) else ""


def true_model(result: Result) -> str:
    """The model that a result is of, whatever its memory."""
    return result.model.rpartition("/")[0] if memory_of(result) else result.model


def side_by_side(true: Iterable[Result], ablated: Iterable[Result]) -> list[Ablated]:
    """One for each model and prompt that has ablated results."""
    found: dict[tuple[str, str], dict[str, Scores]] = {}
    for result in sorted(ablated, key=lambda result: _order(memory_of(result))):
        memories = found.setdefault((true_model(result), result.setting), {TRUE: {}})
        memories.setdefault(memory_of(result), {})[result.task, result.length] = result.score
    for result in true:
        if (result.model, result.setting) in found:
            found[result.model, result.setting][TRUE][result.task, result.length] = result.score
    models = [model for model, _ in found]
    return [
        Ablated(named(model, setting, models.count(model) > 1), model, setting, memories)
        for (model, setting), memories in found.items()
    ]


def _order(memory: str) -> tuple[int, int, str]:
    """zero, other, freeze:1, freeze:2, ..., freeze:10, and what else there may be."""
    name, _, number = memory.partition(":")
    known = ("zero", "other", "freeze")
    return (known.index(name) if name in known else len(known), int(number or 0), name)


def memories(models: Iterable[Ablated]) -> list[str]:
    """All memories of some models, the true one first."""
    found = {memory for model in models for memory in model.memories}
    return [TRUE, *sorted(found - {TRUE}, key=_order)]


def as_csv(models: list[Ablated]) -> str:
    """A row for each model, prompt, task, length and memory; shares from 0 to 1."""
    rows = [
        [model.model, prompt_parts(model.setting), *pair, memory, scores[pair].samples, *score_cells(scores[pair])]
        for model in models
        for pair in model.pairs()
        for memory, scores in model.memories.items()
        if pair in scores
    ]
    return formats.as_csv(["model", "prompt", "task", "length", "memory", "samples", *SCORE_COLUMNS], rows)


def as_markdown(models: list[Ablated], kinds: Iterable[Kind] = tuple(KINDS), heading: str = "##") -> str:
    """For each model and kind of score a table with a column for each memory."""
    return "\n".join(
        f"{heading} {model.name}: {KINDS[kind]}, %, by memory\n\n"
        + formats.as_markdown(("task", "length", *model.memories), _rows(model, list(model.memories), kind, False))
        for model in models
        for kind in kinds
    )


def as_latex(models: list[Ablated]) -> str:
    """For each kind of score a `tabular` of all models, for a document with `booktabs`."""
    shown = memories(models)
    return "\n".join(
        formats.as_latex(
            f"{title}, percent, with 95 percent intervals, by memory",
            ("task", "length", *shown),
            [(model.name, _rows(model, shown, kind, True)) for model in models],
            labels=2,
        )
        for kind, title in KINDS.items()
    )


def _rows(model: Ablated, shown: list[str], kind: Kind, latex: bool) -> list[list[str]]:
    def cell(score: Score | None) -> str:
        return formats.with_interval(score and score.share(kind), score, kind, latex)

    return [[*pair, *(cell(model.memories.get(memory, {}).get(pair)) for memory in shown)] for pair in model.pairs()]
