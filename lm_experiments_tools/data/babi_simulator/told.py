"""Stories that tell where people are or are not: qa9 (negation) and qa10 (one of two places).

Each fact about a person replaces what the reader knew of them, and never agrees with it in part: a denial names the
place where the reader thought the person was, all other facts name places where they were not. So the last fact and
all facts together give the same answer. (The published qa10 sometimes names one place twice, "either in the park or
the park"; here the two differ.)
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .story import QUESTIONS_PER_STORY, RECENT, Answered, question_line
from .world import MOVES, PEOPLE, PLACES


@dataclass(frozen=True)
class Told:
    """The last fact about a person: its line, and the places where they may be, or the one where they are not."""

    line: int
    places: tuple[str, ...]
    absent: bool = False


@dataclass(frozen=True)
class Form:
    """A task of told places.

    Attributes:
        kinds: of facts, with their weights. named: share of questions about a place that the last fact names,
            where it says that the person may be there.
    """

    people: tuple[str, ...]
    places: tuple[str, ...]
    kinds: dict[str, float]
    named: float


# The published shares are not known; these give about those of a few dozen public samples.
TOLD = {
    "qa9": Form(PEOPLE, PLACES, {"move": 0.45, "is": 0.25, "is not": 0.3}, named=0.5),
    "qa10": Form(
        ("Bill", "Fred", "Julie", "Mary"),
        ("bedroom", "cinema", "kitchen", "office", "park", "school"),
        {"move": 0.5, "is": 0.2, "either": 0.3},
        named=0.6,
    ),
}


def told_story(form: Form, rng: random.Random) -> Iterator[str]:
    """Lines of one story, without their numbers: a question after every two facts."""
    known: dict[str, Told] = {}
    for line in range(1, 3 * QUESTIONS_PER_STORY + 1):
        if line % 3 == 0:
            yield question_line(*ask_told(form, rng, known, line))
        else:
            person = rng.choice(form.people)
            fact, known[person] = tell(form, rng, person, known.get(person), line)
            yield fact


def tell(form: Form, rng: random.Random, person: str, before: Told | None, line: int) -> tuple[str, Told]:
    """A fact about a person of whom the reader knew `before`, and what the reader knows then."""
    kind = rng.choices(list(form.kinds), list(form.kinds.values()))[0]
    place, other = rng.sample([place for place in form.places if not before or place not in before.places], 2)
    if kind == "either":
        return f"{person} is either in the {place} or the {other}.", Told(line, (place, other))
    if kind == "is not":
        if before and not before.absent:
            place = before.places[0]
        return f"{person} is {rng.choice(('not', 'no longer'))} in the {place}.", Told(line, (place,), absent=True)
    verb = rng.choice(MOVES) if kind == "move" else "is in"
    return f"{person} {verb} the {place}.", Told(line, (place,))


def ask_told(form: Form, rng: random.Random, known: dict[str, Told], now: int) -> Answered:
    """Is a person in a place? Yes, no, or maybe, by the last fact about them."""
    person = rng.choice(sorted(name for name, told in known.items() if now - told.line <= RECENT))
    told = known[person]
    if told.absent or rng.random() < form.named:
        place = rng.choice(told.places)
        answer = "no" if told.absent else "yes" if len(told.places) == 1 else "maybe"
    else:
        place, answer = rng.choice([place for place in form.places if place not in told.places]), "no"
    return f"Is {person} in the {place}?", answer, [told.line]
