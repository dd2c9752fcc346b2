"""Folders of results as an evaluation leaves them, written by hand."""

import json
import random

from lm_experiments_tools.evaluation.formats import as_csv
from lm_experiments_tools.evaluation.official_files import HEADER
from lm_experiments_tools.evaluation.scoring import labels_of
from lm_experiments_tools.evaluation.tables import tokens

PROMPT = "instruction_no_examples_no_post_prompt_no_chat_template_no_system_prompt_no"
BEFORE = 10  # tokens before each context


def write_result(folder, task, length, right, facts=None, context=700, prompt=PROMPT):
    """Results of one task at one length.

    Args:
        right: whether each answer is right. facts: for each sample the (start, stop) of its facts; None: no places.
    """
    folder.mkdir(parents=True, exist_ok=True)
    label = labels_of(task)[0]
    rows = [(n, label, label if ok else "wrong", "Where?") for n, ok in enumerate(right)]
    path = folder / f"{task}_{length}_{prompt}.csv"
    path.write_text(as_csv(HEADER, rows))
    if facts is not None:
        lines = [
            {"index": n, "context_tokens": context, "tokens_before_context": BEFORE, "supporting_facts": spans}
            for n, spans in enumerate(facts)
        ]
        path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_about(folder, segment_size=64, trained_tokens=256):
    folder.mkdir(parents=True, exist_ok=True)
    about = {"segment_size": segment_size, "trained_tokens": trained_tokens}
    (folder / "evaluation.json").write_text(json.dumps({"seed": 42, "about": about}))


def write_model(folder, tasks, lengths, share, seed=0, samples=100, places=True):
    """Results of a model; share(task, tokens, depth): how often it is right."""
    rng = random.Random(seed)
    for task in tasks:
        for length in lengths:
            context = max(tokens(length) - 300, 60)
            facts = [sorted(rng.randrange(context - 6) for _ in range(1 + (task == "qa2"))) for _ in range(samples)]
            right = [rng.random() < share(task, context, starts[-1] / context) for starts in facts]
            spans = [[[start, start + 6] for start in starts] for starts in facts]
            write_result(folder, task, length, right, spans if places else None, context)
