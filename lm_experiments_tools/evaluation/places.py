"""Where the facts of samples stand: the `.jsonl` files that `samples.write_places` leaves beside results.

{"index": 0, "context_tokens": 700, "tokens_before_context": 0, "supporting_facts": [[31, 37], [402, 409]]}
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Of the supporting facts of one sample, all in tokens.

    Attributes:
        before: tokens before the context. context: tokens of it. facts: (start, stop) of each supporting fact, counted
            from the start of the context, in order.
    """

    before: int
    context: int
    facts: tuple[tuple[int, int], ...]

    def depths(self, count: int) -> list[int]:
        """In which of `count` equal parts of the context each fact starts."""
        return [count * start // self.context for start, _ in self.facts]

    def distance(self, segment_size: int | None) -> int:
        """From the end of the last fact to the question, in borders of segments between them; None: in tokens."""
        stop = max(stop for _, stop in self.facts)
        if segment_size is None:
            return self.context - stop
        return self._segment(self.context, segment_size) - self._segment(stop - 1, segment_size)

    def borders(self, segment_size: int) -> int:
        """Borders of segments within a fact: of the fact that has most of them."""
        return max(
            self._segment(stop - 1, segment_size) - self._segment(start, segment_size) for start, stop in self.facts
        )

    def _segment(self, token: int, segment_size: int) -> int:
        """Of a token of the context, counted from the context's start."""
        return (self.before + token) // segment_size


def read_places(path: Path) -> dict[int, Place]:
    """The places by the index of their sample; none, where there is no such file.

    Raises:
        ValueError: a malformed line; the message has its number.
    """
    places = {}
    if path.exists():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                index, place = _parse(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"line {number} does not tell where the facts of a sample are ({error!r})") from error
            places[index] = place
    return places


def _parse(line: dict) -> tuple[int, Place]:
    facts = sorted((int(start), int(stop)) for start, stop in line["supporting_facts"])
    place = Place(int(line["tokens_before_context"]), int(line["context_tokens"]), tuple(facts))
    if place.before < 0 or any(not 0 <= start < stop <= place.context for start, stop in facts):
        raise ValueError("a fact outside the context")
    return int(line["index"]), place
