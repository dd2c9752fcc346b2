"""A small world of people, places and objects, and the words of the published tasks for what happens in it."""

import random
from dataclasses import dataclass, field

from .story import RECENT

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
MOVES = ("journeyed to", "moved to", "travelled to", "went back to", "went to")
GRABS = ("got", "grabbed", "picked up", "took")
DROPS = ("discarded", "dropped", "left", "put down")
GIVES = ("gave", "handed", "passed")

DROP_THERE = 0.2  # share of drops that end in "there", measured on the published qa2


@dataclass
class World:
    """Who is where and who holds what, with the lines that told it.

    Attributes:
        place: of every person and every object that lies; the world knows it before the reader does.
        holder: of every object that is held. arrived: line of a person's last move, if any.
        told: of every fact, who moved, or which object was touched.
        track: of every object, the places the reader can know it was at, in order: (place, lines that tell it).
        touched: line of an object's last grab, drop or give. last_give: (line, giver, object, receiver).
        handled: of every person, the lines that changed what they hold. had: what they ever held, first things first.
    """

    rng: random.Random
    people: tuple[str, ...]
    place: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    track: dict[str, list[tuple[str, list[int]]]] = field(default_factory=dict)
    touched: dict[str, int] = field(default_factory=dict)
    last_give: tuple[int, str, str, str] | None = None
    handled: dict[str, list[int]] = field(default_factory=dict)
    had: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self):
        self.place = {name: self.rng.choice(PLACES) for name in (*self.people, *OBJECTS)}
        self.track = {thing: [] for thing in OBJECTS}
        self.had = {name: [] for name in self.people}

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
        return thing not in self.holder and self.place[thing] == self.place[person]

    def recent(self, lines: dict[str, int], now: int) -> list[str]:
        """Those of `lines` that are at most RECENT lines behind line `now`."""
        return sorted(name for name, line in lines.items() if now - line <= RECENT)

    def move(self, line: int, person: str, place: str) -> str:
        self.place[person], self.arrived[person] = place, line
        self.told.append(person)
        for thing in OBJECTS:
            if self.holder.get(thing) == person:
                self.track[thing].append((place, [self.touched[thing], line]))
        return f"{person} {self.rng.choice(MOVES)} the {place}."

    def grab(self, line: int, person: str, thing: str) -> str:
        self._receive(line, person, thing)
        return f"{person} {self.rng.choice(GRABS)} the {thing} there."

    def drop(self, line: int, person: str, thing: str) -> str:
        del self.holder[thing]
        self.handled[person].append(line)
        self.told.append(thing)
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
        self.handled[person].append(line)
        self._receive(line, receiver, thing)
        self.last_give = (line, person, thing, receiver)
        return f"{person} {self.rng.choice(GIVES)} the {thing} to {receiver}."

    def carried(self, person: str) -> list[str]:
        """What a person holds, in the order in which each thing first came to them."""
        return [thing for thing in self.had[person] if self.holder.get(thing) == person]

    def _receive(self, line: int, person: str, thing: str) -> None:
        self.holder[thing], self.touched[thing] = person, line
        self.told.append(thing)
        self.handled.setdefault(person, []).append(line)
        if thing not in self.had[person]:
            self.had[person].append(thing)
