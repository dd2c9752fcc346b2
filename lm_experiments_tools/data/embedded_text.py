"""Sentences for a quickstart without any download: an endless, seeded stream of plain English about harbours,
orchards and letters. None of its words is a person, a place or an object of the bAbI tasks.
"""

import random
from collections.abc import Iterator

SUBJECTS = (
    "captain fisherman widow baker miller shepherd carpenter traveller stranger sailor merchant teacher clerk "
    "painter soldier doctor blacksmith weaver innkeeper ferryman gardener's-boy astronomer printer mason"
).split()
ADJECTIVES = (
    "old quiet weary cheerful stubborn patient young grave curious honest pale careless proud gentle restless "
    "silent clever lonely famous humble"
).split()
NOUNS = (
    "lantern letter rope barrel bridge harbour river mountain orchard chimney ladder basket clock curtain violin "
    "candle wagon anchor mirror ribbon hammer blanket kettle map coat feather stone wheel bell boat"
).split()
VERBS = (
    "carried mended watched painted borrowed noticed polished remembered described measured counted sketched "
    "forgot admired examined repaired weighed hid praised lifted"
).split()
PLACES = (
    "beside the harbour wall;under the stone bridge;along the river bank;behind the old mill;near the chapel gate;"
    "above the narrow valley;at the edge of the forest;across the market square;below the lighthouse;"
    "on the road to the coast;inside the empty barn;among the low green hills"
).split(";")
TIMES = (
    "before sunrise;after a long silence;in the middle of winter;during the storm;late in the evening;"
    "on the first day of spring;when the rain had stopped;while the wind was rising;toward the end of autumn;"
    "without saying a word;as if nothing had happened;for the second time that week"
).split(";")
LINKS = ("and then", "but soon", "so that nobody", "although hardly anyone", "because no one", "until at last someone")
ENDINGS = (
    "thought of the {noun};could find the {adjective} {noun};spoke about the {noun} again;"
    "believed the story of the {noun};listened to the {adjective} {subject};asked for the {noun}"
).split(";")


def sentences(seed: int = 0) -> Iterator[str]:
    """Endless sentences of 11 to 28 words; the same seed gives the same stream."""
    rng = random.Random(f"embedded text {seed}")
    while True:
        words = {
            "subject": rng.choice(SUBJECTS).replace("-", " "),
            "adjective": rng.choice(ADJECTIVES),
            "noun": rng.choice(NOUNS),
        }
        start = f"The {rng.choice(ADJECTIVES)} {rng.choice(SUBJECTS).replace('-', ' ')} {rng.choice(VERBS)}"
        middle = f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(PLACES)}"
        if rng.random() < 0.5:
            yield f"{start} {middle} {rng.choice(TIMES)}."
        else:
            yield f"{start} {middle}, {rng.choice(LINKS)} {rng.choice(ENDINGS).format(**words)}."
