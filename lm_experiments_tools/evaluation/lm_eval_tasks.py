"""BABILong for lm-evaluation-harness, with the prompts and the scorer of the public BABILong harness.

    python -m lm_experiments_tools.evaluation.lm_eval_harness --model hf --model_args pretrained=gpt2 \
        --include_path configs/lm_eval --tasks babilong_official \
        --metadata '{"lengths": ["0k", "1k"], "data": "RMT-team/babilong-1k-samples"}'

The functions behind the YAML files of `configs/lm_eval`: tasks babilong_official_qa1 to qa20, and the group
babilong_official, the mean of qa1 to qa5 as in the leaderboard. They are for any model of lm_eval. `--metadata` takes

* `lengths`: one or more of 0k, 1k, ..., 10M; each has a metric of its own, as `official_1M`;
* `data`: a hub name or a folder (see `data/babilong_sets.py`); default: RMT-team/babilong, 100 samples a length;
* `prompt`: `official`, the default; or `trained`, context, question, GEN, for models of `run_finetuning_babilong.py`.

`--limit N` takes N samples of a task in all, from its lengths in turn. A sample of 10M tokens is 40 MB of text.
"""

from itertools import chain, zip_longest

from ..data.babilong_sets import LENGTHS, OfficialSet
from ..errors import UserError
from .prompts import TRAINED_TEMPLATE, Prompt, official_prompt
from .scoring import officially_right, strictly_right

STYLES = ("official", "trained")
METRICS = [
    {"metric": f"{kind}_{length}", "aggregation": "mean", "higher_is_better": True}
    for kind in ("official", "strict")
    for length in LENGTHS
]
MEANS = [{"metric": metric["metric"], "weight_by_size": False} for metric in METRICS]  # of a group's tasks


class Documents(list):
    """Rows in memory, with what else lm_eval asks of a data set."""

    features = dict.fromkeys(("task", "length", "prompt", "question", "target"))


def load(
    task: str, data: str, lengths: str | list[str] | None = None, prompt: str = "official", **others
) -> dict[str, Documents]:
    """The samples of a task at some lengths, in turn.

    Args:
        others: what lm_eval hands over besides, as the options of the model.

    Raises:
        UserError: no lengths, or unknown ones; an unknown prompt; no such data.
    """
    if not lengths:
        raise UserError(f"say which lengths: --metadata lengths=0k; the lengths are {', '.join(LENGTHS)}")
    if prompt not in STYLES:
        raise UserError(f"no prompt {prompt!r}; the prompts are {' and '.join(STYLES)}")
    style = official_prompt(task, True, True, True) if prompt == "official" else Prompt()
    lengths = [lengths] if isinstance(lengths, str) else lengths
    sets = [_documents(OfficialSet(data, length, task), style) for length in lengths]
    return {"test": Documents(row for row in chain.from_iterable(zip_longest(*sets)) if row)}


def _documents(rows: OfficialSet, style: Prompt):
    for row in rows:
        question = row["question"].strip()  # those of the published sets end with a space
        before, after = style.around_context(question)
        if style.template == TRAINED_TEMPLATE:
            before = " "  # as in front of each sentence of the training data
        known = {"task": rows.task, "length": rows.length, "question": question, "target": row["target"]}
        yield known | {"prompt": before + row["input"] + after}


def score(row: dict[str, str], outputs: list[str]) -> dict[str, float]:
    """Right or wrong, under the names of the row's length."""
    official = officially_right(row["task"], row["target"], outputs[0], row["question"])
    strict = strictly_right(row["target"], outputs[0])
    return {f"official_{row['length']}": float(official), f"strict_{row['length']}": float(strict)}
