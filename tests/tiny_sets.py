"""Published BABILong sets in small, for the tests."""

import json
import random

from lm_experiments_tools.evaluation.prompts import DEFAULTS, TEMPLATE
from lm_experiments_tools.evaluation.scoring import ROOMS

SENTENCES = [f"{name} went to the {room}." for name in ("Mary", "John", "Sandra") for room in ROOMS]


def story(sentences, seed):
    return " ".join(random.Random(seed).choices(SENTENCES, k=sentences))


def write_set(folder, task, length, sizes):
    """A set with stories of so many sentences; its rows. A question of the published sets ends with a space."""
    rows = [
        {"input": story(size, seed), "question": "Where is Mary? ", "target": "bedroom"}
        for seed, size in enumerate(sizes)
    ]
    path = folder / "data" / task / f"{length}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return rows


def whole_prompt(task, row):
    instruction, examples, post_prompt = DEFAULTS[task]
    values = dict(instruction=instruction, examples=examples, post_prompt=post_prompt)
    return TEMPLATE.format(context=row["input"], question=row["question"], **values).strip()
