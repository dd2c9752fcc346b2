"""Stories in which places lie beside each other: qa4."""

import random
from collections.abc import Iterator

from .story import question_line
from .world import PLACES

DIRECTIONS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}


def relation_story(rng: random.Random) -> Iterator[str]:
    """Two places beside a third, and one question; on the grid only one place answers it."""
    middle, *others = rng.sample(PLACES, 3)
    directions = rng.sample(list(DIRECTIONS), 2)
    at = {middle: (0, 0)} | {place: DIRECTIONS[direction] for place, direction in zip(others, directions)}
    facts = [(other, direction, middle) for other, direction in zip(others, directions)]
    facts = [fact if rng.random() < 0.5 else _turned(*fact) for fact in facts]
    rng.shuffle(facts)
    for first, direction, second in facts:
        yield f"The {first} is {direction} of the {second}."
    line = rng.choice((1, 2))
    first, direction, second = facts[line - 1]
    if rng.random() < 0.5:
        first, direction, second = _turned(first, direction, second)
    if rng.random() < 0.5:
        answer = next(place for place in at if _offset(at, place, second) == DIRECTIONS[direction])
        yield question_line(f"What is {direction} of the {second}?", answer, [line])
    else:
        answer = next(place for place in at if _offset(at, first, place) == DIRECTIONS[direction])
        yield question_line(f"What is the {first} {direction} of?", answer, [line])


def _turned(first: str, direction: str, second: str) -> tuple[str, str, str]:
    x, y = DIRECTIONS[direction]
    return second, next(name for name, offset in DIRECTIONS.items() if offset == (-x, -y)), first


def _offset(at: dict[str, tuple[int, int]], place: str, origin: str) -> tuple[int, int]:
    return at[place][0] - at[origin][0], at[place][1] - at[origin][1]
