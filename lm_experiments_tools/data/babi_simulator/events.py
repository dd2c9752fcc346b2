"""Stories in which people move, take, leave and give things: qa1, qa2, qa3 and qa5 to qa8."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .story import QUESTIONS_PER_STORY, Answered, question_line
from .world import GIVERS, PEOPLE, PLACES, World

NUMBERS = ("none", "one", "two", "three")
ACTIONS = {"move": 0.58, "grab": 0.31, "drop": 0.21}  # weights among what is possible; outcome 0.65, 0.20, 0.15
ASKED_FACTS = 5  # qa1 and qa2 ask about one of so many last facts, each as likely as another: measured
GIVE_ACTIONS = {"move": 0.5, "grab": 0.2, "drop": 0.05, "give": 0.25}
COUNT_ACTIONS = {"move": 0.4, "grab": 0.22, "drop": 0.13, "give": 0.25}  # 0.58 of the answers are "one"


def ask_person(world: World, now: int) -> Answered | None:
    """qa1: where is a person?"""
    person = world.rng.choice(world.told[-ASKED_FACTS:])
    return f"Where is {person}?", world.place[person], [world.arrived[person]]


def ask_object(world: World, now: int) -> Answered | None:
    """qa2: where is an object? As published, not while its holder stands where it was taken."""
    askable = []
    for thing in filter(world.touched.get, world.told[-ASKED_FACTS:]):
        moved = thing in world.holder and world.arrived.get(world.holder[thing], 0) > world.touched[thing]
        known = bool(world.track[thing]) and world.track[thing][-1][1][0] == world.touched[thing]
        if moved or (known and thing not in world.holder):
            askable.append(thing)
    if not askable:
        return None
    thing = world.rng.choice(askable)
    place, lines = world.track[thing][-1]
    return f"Where is the {thing}?", place, lines


def ask_object_before(world: World, now: int) -> Answered | None:
    """qa3: where was an object before its holder brought it somewhere? The last time that it came there counts."""
    askable = []
    for thing, track in world.track.items():
        last_stay = {place: index for index, (place, _) in enumerate(track)}
        for place, index in last_stay.items():
            lines = sorted({*track[index - 1][1], *track[index][1]})
            if index and track[index - 1][0] != place and len(lines) == 3:
                askable.append((f"Where was the {thing} before the {place}?", track[index - 1][0], lines))
    return world.rng.choice(askable) if askable else None


def ask_give(world: World, now: int) -> Answered | None:
    """qa5: about the last give."""
    if world.last_give is None:
        return None
    line, giver, thing, receiver = world.last_give
    forms = [
        (f"What did {giver} give to {receiver}?", thing),
        (f"Who gave the {thing} to {receiver}?", giver),
        (f"Who did {giver} give the {thing} to?", receiver),
        (f"Who received the {thing}?", receiver),
        (f"Who gave the {thing}?", giver),
    ]
    question, answer = world.rng.choice(forms)
    return question, answer, [line]


def ask_whether(world: World, now: int) -> Answered | None:
    """qa6: is a person in a place? Yes every second time."""
    people = world.recent(world.arrived, now)
    if not people:
        return None
    person = world.rng.choice(people)
    place, answer = world.place[person], "yes"
    if world.rng.random() < 0.5:
        place, answer = world.rng.choice([other for other in PLACES if other != place]), "no"
    return f"Is {person} in the {place}?", answer, [world.arrived[person]]


def ask_count(world: World, now: int) -> Answered | None:
    """qa7: how many objects has a person who had one at some time?"""
    if not world.handled:
        return None
    person = world.rng.choice(sorted(world.handled))
    number = NUMBERS[len(world.carried(person))]
    return f"How many objects is {person} carrying?", number, world.handled[person]


def ask_list(world: World, now: int) -> Answered | None:
    """qa8: which objects has a person who had one at some time?"""
    if not world.handled:
        return None
    person = world.rng.choice(sorted(world.handled))
    things = ",".join(world.carried(person)) or "nothing"
    return f"What is {person} carrying?", things, world.handled[person]


@dataclass(frozen=True)
class Form:
    """A task of facts that happen: after every two facts, perhaps a question."""

    people: tuple[str, ...]
    actions: dict[str, float]
    ask: Callable[[World, int], Answered | None]
    ask_share: float = 1.0  # of the occasions at which a question can be asked


EVENTS = {
    "qa1": Form(PEOPLE, {"move": 1.0}, ask_person),
    "qa2": Form(PEOPLE, ACTIONS, ask_object),
    "qa3": Form(PEOPLE, ACTIONS, ask_object_before, ask_share=0.25),
    "qa5": Form(GIVERS, GIVE_ACTIONS, ask_give),
    "qa6": Form(PEOPLE, ACTIONS, ask_whether),
    "qa7": Form(PEOPLE, COUNT_ACTIONS, ask_count),
    "qa8": Form(PEOPLE, ACTIONS, ask_list),
}


def event_story(form: Form, rng: random.Random) -> Iterator[str]:
    """Lines of one story, without their numbers."""
    world = World(rng, form.people)
    line = asked = 0
    while asked < QUESTIONS_PER_STORY:
        for _ in range(2):
            line += 1
            yield world.act(line, form.actions)
        answered = form.ask(world, line + 1) if rng.random() < form.ask_share else None
        if answered:
            line, asked = line + 1, asked + 1
            yield question_line(*answered)
