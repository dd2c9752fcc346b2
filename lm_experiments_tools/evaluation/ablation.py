"""Is the memory used? Answers that are given with another memory than that of the sample's own segments.

none       the memory of all segments before the last: the true score
zero       an empty one: what the last segment alone tells
other      that of the next sample: what any text of its kind tells
freeze:K   that of the first K segments: later ones write nothing
"""

import re
from dataclasses import dataclass

from ..errors import UserError
from .official_files import ABLATED


@dataclass(frozen=True)
class Ablation:
    """One of them.

    Attributes:
        name: as given. from_next: the memory is that of the next sample. max_segments: only so many segments write.
    """

    name: str = "none"
    from_next: bool = False
    max_segments: int | None = None

    @property
    def folder(self) -> str:
        """Of its results, in that of the model."""
        return "" if self == TRUE else ABLATED + self.name.replace(":", "_")


TRUE = Ablation()
FIXED = {"none": TRUE, "zero": Ablation("zero", max_segments=0), "other": Ablation("other", from_next=True)}


def parse_ablation(name: str) -> Ablation:
    """An ablation by its name.

    Raises:
        UserError: no such name.
    """
    if name in FIXED:
        return FIXED[name]
    match = re.fullmatch(r"freeze:([1-9]\d*)", name)
    if match is None:
        raise UserError(f"no ablation {name!r}; there are none, zero, other, and freeze:K with a number of segments K")
    return Ablation(name, max_segments=int(match[1]))
