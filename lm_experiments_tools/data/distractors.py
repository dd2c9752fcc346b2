"""Background that looks like facts: "the ship lay still" becomes "the garden lay still".

A model that never saw an answer's word in its background takes the first one for a fact. In a million tokens of a novel
that happens a few times, and each time the memory may be overwritten.
"""

from collections.abc import Iterable

import numpy as np

from ..errors import UserError


class Distractors:
    """Puts answers of a task where background has another word.

    Attributes:
        leads: tokens that stand before an answer in some fact, as `the` does. answers: tokens that stand behind them.
    """

    def __init__(self, facts: Iterable[np.ndarray], answers: Iterable[np.ndarray], ratio: float):
        """Find out what stands before an answer.

        Args:
            facts, answers: token ids of each. ratio: probability that a word behind one of `leads` is replaced.

        Raises:
            UserError: no answer that is a single token stands inside a fact.
        """
        self.ratio = ratio
        single = {int(answer[0]) for answer in answers if len(answer) == 1}
        pairs = {pair for fact in facts for pair in zip(fact[:-1].tolist(), fact[1:].tolist()) if pair[1] in single}
        self.leads, self.answers = (np.array(sorted({pair[side] for pair in pairs}), np.int32) for side in (0, 1))
        if not pairs:
            raise UserError(
                "distractor_ratio needs answers that stand inside facts and are one token each; this task and "
                "tokenizer have none: leave it out"
            )

    def __call__(self, text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A copy of token ids `text` (N,) with some replaced; a word of several tokens keeps its end."""
        places = np.flatnonzero(np.isin(text[:-1], self.leads)) + 1
        places = places[rng.random(len(places)) < self.ratio]
        text = text.copy()
        text[places] = rng.choice(self.answers, len(places))
        return text
