"""What lm-evaluation-harness gets for BABILong, as far as it takes no lm_eval."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_sets import SENTENCES, story, whole_prompt, write_set

from lm_experiments_tools.data.babilong_sets import LENGTHS
from lm_experiments_tools.data.tokenizer import GEN, train_tokenizer
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation.lm_eval_tasks import METRICS, load, score

ROOT = Path(__file__).parents[1]
TASKS = [f"qa{number}" for number in range(1, 21)]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_the_official_prompt(task, tmp_path):
    rows = write_set(tmp_path, task, "0k", [3, 1])
    documents = load(task, str(tmp_path), "0k")["test"]
    assert [document["prompt"] for document in documents] == [whole_prompt(task, row) for row in rows]
    assert {document["task"] for document in documents} == {task} and documents.features.keys() == documents[0].keys()


def test_the_trained_prompt_has_the_tokens_of_the_training_data(tmp_path):
    write_set(tmp_path, "qa1", "0k", [3])
    (document,) = load("qa1", str(tmp_path), "0k", prompt="trained", pretrained="a model's option")["test"]
    words = train_tokenizer([f" {sentence}" for sentence in SENTENCES], "lm_eval_tasks", 400, tmp_path)
    facts = [f"{fact}." for fact in story(3, 0).removesuffix(".").split(". ")]
    parts = [f" {text}" for text in (*facts, "Where is Mary?")] + [GEN]
    assert words.encode(document["prompt"]) == [token for part in parts for token in words.encode(part)]


def test_lengths_come_in_turn(tmp_path):
    for length, sizes in (("0k", [1, 1]), ("1k", [1, 1, 1]), ("10M", [1])):
        write_set(tmp_path, "qa1", length, sizes)
    documents = load("qa1", str(tmp_path), ["0k", "1k", "10M"])["test"]
    assert [document["length"] for document in documents] == ["0k", "1k", "10M", "0k", "1k", "1k"]


def test_a_score_is_of_the_task_and_under_its_length():
    row = {"task": "qa6", "length": "1M", "target": "no", "question": "Is Mary in the kitchen?"}
    assert score(row, [" no"]) == {"official_1M": 1.0, "strict_1M": 1.0}
    assert score(row, ["No."]) == {"official_1M": 1.0, "strict_1M": 0.0}
    assert score(row, ["yes or no"]) == {"official_1M": 0.0, "strict_1M": 0.0}
    known = {metric["metric"] for metric in METRICS}
    assert all(name in known for length in LENGTHS for name in score(row | {"length": length}, ["no"]))


WRONG = {
    "no lengths": (dict(lengths=None), "--metadata lengths=0k; the lengths are 0k, 1k"),
    "unknown length": (dict(lengths="3k"), "no length '3k'; the lengths are 0k, 1k"),
    "unknown prompt": (dict(prompt="other"), "no prompt 'other'; the prompts are official and trained"),
    "no such set": (dict(lengths="8k"), "no length 8k, task qa1 in .*; found 0k: qa1"),
    "no such folder": (dict(data="/none/x"), "/none/x: no such folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_metadata_is_one_line_that_names_it(tmp_path, case):
    write_set(tmp_path, "qa1", "0k", [1])
    changes, message = WRONG[case]
    with pytest.raises(UserError, match=message) as error:
        load(**(dict(task="qa1", data=str(tmp_path), lengths="0k") | changes))
    assert "\n" not in str(error.value)


def test_lm_eval_is_imported_only_when_it_is_asked_for():
    code = """
import sys
sys.modules["lm_eval"] = None  # an import of it fails
from lm_experiments_tools import cli
from lm_experiments_tools.evaluation import lm_eval_harness, lm_eval_tasks
cli.run(lm_eval_harness.main)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: lm_eval cannot be imported") and last.endswith("pip install 'lm_eval[hf]'")
