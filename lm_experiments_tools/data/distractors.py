"""Background that looks like facts: pieces of facts between its words, as in "he saw Mary went with his brother".

A model that seldom saw a name or a place in its background takes one for a fact. In a million tokens of a novel that
happens some dozen times, and each time the memory is overwritten.
"""

from collections.abc import Iterable

import numpy as np


class Distractors:
    """Puts pieces of a task's facts into background. A piece is at most half a fact, so that it tells nothing."""

    def __init__(self, facts: Iterable[np.ndarray], ratio: float):
        """`facts`: token ids of each. `ratio`: share of the background's tokens to replace; pieces stand apart, so that
        large ones are not reached."""
        self.facts = [fact for fact in facts if len(fact) > 1]
        self.longest = np.array([len(fact) // 2 for fact in self.facts])
        self.start_ratio = ratio / ((1 + self.longest) / 2).mean()  # pieces for each token of background
        self.apart = 2 * int(self.longest.max())  # from start to start: two halves that meet would be a fact

    def __call__(self, text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A copy of token ids `text` (N,) with some replaced."""
        text = text.copy()
        starts = np.flatnonzero(rng.random(len(text)) < self.start_ratio)
        starts = starts[np.diff(starts, prepend=-self.apart) >= self.apart]
        chosen = rng.integers(len(self.facts), size=len(starts))
        sizes = rng.integers(1, self.longest[chosen], endpoint=True)
        for start, index, size, place in zip(starts, chosen, sizes, rng.random(len(starts))):
            fact = self.facts[index]
            first = int(place * (len(fact) - size + 1))
            text[start : start + size] = fact[first : first + size][: len(text) - start]
        return text
