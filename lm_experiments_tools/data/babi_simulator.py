"""Writes bAbI tasks 1 to 5 from a small simulated world, in the published file format.

    python -m lm_experiments_tools.data.babi_simulator FOLDER --tasks qa1 qa2 --seed 0

Vocabulary, sentence forms and proportions follow the published tasks (arXiv 1502.05698): qa1 and qa2 were measured
on the published files (see `tests/test_babi_simulator.py`), the others follow the examples of the paper. Answers
and supporting facts come from the simulated state, never from the text.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .babi import full_task_name

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
MOVES = ("journeyed to", "moved to", "travelled to", "went back to", "went to")
GRABS = ("got", "grabbed", "picked up", "took")
DROPS = ("discarded", "dropped", "left", "put down")
GIVES = ("gave", "handed", "passed")
DIRECTIONS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}

QUESTIONS_PER_STORY = 5
DROP_THERE = 0.2  # share of drops that end in "there", measured on the published qa2
ACTIONS = {"move": 0.58, "grab": 0.24, "drop": 0.18}  # weights among what is possible; outcome 0.65, 0.20, 0.15
GIVE_ACTIONS = {"move": 0.5, "grab": 0.2, "drop": 0.05, "give": 0.25}
RECENT = 7  # lines between a question and the fact it is about: no more in the published qa1 and qa2

Answered = tuple[str, str, list[int]]  # question, answer, line numbers of the supporting facts


@dataclass
class World:
    """Who is where and who holds what, with the lines that told it.

    Attributes:
        place: of every person and every object that lies; the world knows it before the reader does. An object
            lies nowhere until it is first taken: there it was.
        holder: of every object that is held. arrived: line of a person's last move, if any.
        track: of every object, the places the reader can know it was at, in order: (place, lines that tell it).
        touched: line of an object's last grab, drop or give. last_give: (line, giver, object, receiver).
    """

    rng: random.Random
    people: tuple[str, ...]
    place: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)
    track: dict[str, list[tuple[str, list[int]]]] = field(default_factory=dict)
    touched: dict[str, int] = field(default_factory=dict)
    last_give: tuple[int, str, str, str] | None = None

    def __post_init__(self):
        self.place = {name: self.rng.choice(PLACES) for name in self.people}
        self.track = {thing: [] for thing in OBJECTS}

    def act(self, line: int, weights: dict[str, float]) -> str:
        """Let something that is possible happen in line `line`; returns the fact."""
        possible = {
            "move": [(who, where) for who in self.people for where in PLACES if where != self.place[who]],
            "grab": [(who, thing) for who in self.people for thing in OBJECTS if self.can_take(who, thing)],
            "drop": [(who, thing) for thing, who in self.holder.items()],
            "give": [
                (who, thing, other)
                for thing, who in self.holder.items()
                for other in self.people
                if other != who and self.place[other] == self.place[who]
            ],
        }
        actions = [action for action in weights if possible[action]]
        action = self.rng.choices(actions, [weights[action] for action in actions])[0]
        return getattr(self, action)(line, *self.rng.choice(possible[action]))

    def can_take(self, person: str, thing: str) -> bool:
        return thing not in self.holder and self.place.get(thing, self.place[person]) == self.place[person]

    def recent(self, lines: dict[str, int], now: int) -> list[str]:
        """Those of `lines` that are at most RECENT lines behind line `now`."""
        return sorted(name for name, line in lines.items() if now - line <= RECENT)

    def move(self, line: int, person: str, place: str) -> str:
        self.place[person], self.arrived[person] = place, line
        for thing in OBJECTS:
            if self.holder.get(thing) == person:
                self.track[thing].append((place, [self.touched[thing], line]))
        return f"{person} {self.rng.choice(MOVES)} the {place}."

    def grab(self, line: int, person: str, thing: str) -> str:
        self.holder[thing], self.touched[thing] = person, line
        return f"{person} {self.rng.choice(GRABS)} the {thing} there."

    def drop(self, line: int, person: str, thing: str) -> str:
        del self.holder[thing]
        self.place[thing], self.touched[thing] = self.place[person], line
        if person in self.arrived:
            known = (self.place[person], [line, self.arrived[person]])
            if self.track[thing] and self.track[thing][-1][0] == known[0]:
                self.track[thing][-1] = known
            else:
                self.track[thing].append(known)
        there = " there" if self.rng.random() < DROP_THERE else ""
        return f"{person} {self.rng.choice(DROPS)} the {thing}{there}."

    def give(self, line: int, person: str, thing: str, receiver: str) -> str:
        self.holder[thing], self.touched[thing] = receiver, line
        self.last_give = (line, person, thing, receiver)
        return f"{person} {self.rng.choice(GIVES)} the {thing} to {receiver}."


def ask_person(world: World, now: int) -> Answered | None:
    """qa1: where is a person?"""
    person = world.rng.choice(world.recent(world.arrived, now))
    return f"Where is {person}?", world.place[person], [world.arrived[person]]


def ask_object(world: World, now: int) -> Answered | None:
    """qa2: where is an object? As published, not while its holder stands where it was taken."""
    askable = []
    for thing in world.recent(world.touched, now):
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


@dataclass(frozen=True)
class Form:
    """A task of facts that happen: after every `every` facts, perhaps a question."""

    people: tuple[str, ...]
    actions: dict[str, float]
    ask: Callable[[World, int], Answered | None]
    every: int = 2
    ask_share: float = 0.8  # of the occasions at which a question can be asked


FORMS = {
    "qa1": Form(PEOPLE, {"move": 1.0}, ask_person, ask_share=1.0),
    "qa2": Form(PEOPLE, ACTIONS, ask_object),
    "qa3": Form(PEOPLE, ACTIONS, ask_object_before, ask_share=0.2),
    "qa5": Form(GIVERS, GIVE_ACTIONS, ask_give),
}
SIMULATED = ("qa1", "qa2", "qa3", "qa4", "qa5")


def event_story(form: Form, rng: random.Random) -> Iterator[str]:
    """Lines of one story, without their numbers."""
    world = World(rng, form.people)
    line = asked = 0
    while asked < QUESTIONS_PER_STORY:
        for _ in range(form.every):
            line += 1
            yield world.act(line, form.actions)
        answered = form.ask(world, line + 1) if rng.random() < form.ask_share else None
        if answered:
            line, asked = line + 1, asked + 1
            yield _question_line(*answered)


def relation_story(rng: random.Random) -> Iterator[str]:
    """qa4: two places beside a third, and one question; on the grid only one place answers it."""
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
        yield _question_line(f"What is {direction} of the {second}?", answer, [line])
    else:
        answer = next(place for place in at if _offset(at, first, place) == DIRECTIONS[direction])
        yield _question_line(f"What is the {first} {direction} of?", answer, [line])


def _turned(first: str, direction: str, second: str) -> tuple[str, str, str]:
    x, y = DIRECTIONS[direction]
    return second, next(name for name, offset in DIRECTIONS.items() if offset == (-x, -y)), first


def _offset(at: dict[str, tuple[int, int]], place: str, origin: str) -> tuple[int, int]:
    return at[place][0] - at[origin][0], at[place][1] - at[origin][1]


def _question_line(question: str, answer: str, supporting: list[int]) -> str:
    return f"{question} \t{answer}\t{' '.join(map(str, supporting))}"


def write_task(folder: str | Path, task: str, split: str, num_questions: int, seed: int) -> Path:
    """Write one file of `num_questions` questions; returns its path. The same arguments give the same file.

    Raises:
        UserError: the task is not simulated.
    """
    name = full_task_name(task)
    short = name.split("_")[0]
    if short not in SIMULATED:
        raise UserError(f"task {short} is not simulated ({', '.join(SIMULATED)} are); give --babi_path")
    rng = random.Random(f"{short} {split} {seed}")
    lines: list[str] = []
    asked = 0
    while asked < num_questions:
        story = relation_story(rng) if short == "qa4" else event_story(FORMS[short], rng)
        for number, text in enumerate(story, start=1):
            lines.append(f"{number} {text}\n")
            asked += "\t" in text
    path = Path(folder) / f"{name}_{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the files go")
    parser.add_argument("--tasks", nargs="+", default=list(SIMULATED), help="tasks to write")
    parser.add_argument("--train_questions", type=int, default=10_000, help="questions in each training file")
    parser.add_argument("--test_questions", type=int, default=1_000, help="questions in each test file")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another world")
    args = parser.parse_args(argv)
    for task in args.tasks:
        for split, number in (("train", args.train_questions), ("test", args.test_questions)):
            print(write_task(args.folder, task, split, number, args.seed))


if __name__ == "__main__":
    main()
