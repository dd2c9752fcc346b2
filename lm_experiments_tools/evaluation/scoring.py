"""Right or wrong: the comparison of the public BABILong harness, and strict exact match.

The official comparison looks for the labels of a task (its possible answers) in the output; labels that the question
names do not count. It forgives sentences around the answer, not a second label.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..errors import UserError

Kind = Literal["official", "strict"]

ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
YES_NO = ("no", "yes")
LABELS = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), ROOMS),
    **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), YES_NO),
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
    "qa7": ("none", "one", "three", "two"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa10": ("maybe", *YES_NO),
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
    "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"),
    "qa19": ("e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w"),
    "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}
TASK_NAMES = tuple(sorted(LABELS, key=lambda task: int(task[2:])))
ENDS = re.compile(r"\.|<context>|<example>")  # of what counts in an output


def labels_of(task: str) -> tuple[str, ...]:
    """The possible answers of a task, `qa1` to `qa20`.

    Raises:
        UserError: no such task; the message lists them.
    """
    if task not in LABELS:
        raise UserError(f"no task {task!r}; the tasks are {', '.join(TASK_NAMES)}")
    return LABELS[task]


def officially_right(task: str, target: str, output: str, question: str) -> bool:
    """The comparison of the public harness.

    Where one label is part of another (qa7: `none`, `one`), labels are whole words; earlier versions of the harness
    count every `none` as wrong. All other labels are substrings there, so that `know` holds a `no`.
    """
    labels = [label.lower() for label in labels_of(task)]
    whole_words = any(one != other and one in other for one in labels for other in labels)

    def named(text: str) -> set[str]:
        if whole_words:
            return {label for label in labels if re.search(rf"\b{re.escape(label)}\b", text)}
        return {label for label in labels if label in text}

    target = target.lower()
    answers = {target} if target in labels else set(target.split(","))  # qa8 lists, where qa19 has labels with a comma
    return named(ENDS.split(output.lower(), maxsplit=1)[0]) - named(question.lower()) == answers


def strictly_right(target: str, output: str) -> bool:
    """The output is the answer and nothing else."""
    return output.strip() == target


class Grade(NamedTuple):
    """Whether one answer is right, by either comparison."""

    official: bool
    strict: bool


def grade(task: str, target: str, output: str, question: str) -> Grade:
    return Grade(officially_right(task, target, output, question), strictly_right(target, output))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 percent interval of a share observed on `count` samples (Wilson 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Score:
    """How many of some samples are right, by either comparison."""

    samples: int
    official: int
    strict: int

    @classmethod
    def of(cls, grades: Iterable[Grade]) -> "Score":
        grades = list(grades)
        return cls(len(grades), sum(one.official for one in grades), sum(one.strict for one in grades))

    def share(self, kind: Kind) -> float:
        """0 to 1."""
        return getattr(self, kind) / self.samples

    def interval(self, kind: Kind) -> tuple[float, float]:
        """95 percent interval of the share."""
        return wilson_interval(self.share(kind), self.samples)
