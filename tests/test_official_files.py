"""Files of results in the public format: written row by row, continued after a kill, read with their faults."""

import json

import pytest

from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation import official_files, prompts
from lm_experiments_tools.evaluation.official_files import Row, TaskFile, read_folder
from lm_experiments_tools.evaluation.scoring import TASK_NAMES, Score

NAME = "instruction_no_examples_no_post_prompt_no_chat_template_no_system_prompt_no"
ROWS = [Row(i, "kitchen", output, "Where is Mary? ") for i, output in enumerate(["kitchen", 'a, "b"\nc\rd\0', "ö€"])]
GENERATE = {"max_new_tokens": 20, "temperature": None}


def task_file(folder, prompt=None, length="1k"):
    return TaskFile(folder, "qa1", length, prompt or prompts.Prompt(), GENERATE)


def write(file, rows, rank=0):
    for row in rows:
        file.append(row, rank)


def test_files_have_the_public_names_columns_and_settings(tmp_path):
    file = task_file(tmp_path)
    with file.prepared():
        write(file, ROWS)
    assert file.csv.name == f"qa1_1k_{NAME}.csv"
    text = file.csv.read_bytes().decode()
    assert text.startswith(",target,output,question\n0,kitchen,kitchen,Where is Mary? \n1,kitchen,")
    settings = json.loads((tmp_path / f"qa1_1k_{NAME}.json").read_text())
    assert list(settings) == ["prompt", "generate_kwargs"] and settings["generate_kwargs"] == GENERATE
    assert list(settings["prompt"]) == [
        "instruction", "examples", "post_prompt", "template", "chat_template", "system_prompt",
    ]  # fmt: skip


def test_rows_come_back_whatever_is_in_them(tmp_path):
    file = task_file(tmp_path)
    with file.prepared():
        write(file, ROWS)
    assert file.rows() == [ROWS[0], ROWS[1]._replace(output='a, "b"\nc\nd'), ROWS[2]]


def test_pandas_reads_them_as_the_harness_does(tmp_path):
    pandas = pytest.importorskip("pandas")
    file = task_file(tmp_path)
    with file.prepared():
        write(file, ROWS)
    frame = pandas.read_csv(file.csv)
    assert list(frame.columns) == ["Unnamed: 0", "target", "output", "question"] and len(frame) == 3


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_cut_last_row_is_dropped_and_written_again(tmp_path, cut):
    file = task_file(tmp_path)
    with file.prepared():
        write(file, ROWS)
    whole = file.csv.read_bytes()
    file.csv.write_bytes(whole[:-cut])
    with file.prepared():
        left = file.rows()
        assert len(left) < 3 and left == [ROWS[0], ROWS[1]._replace(output='a, "b"\nc\nd')][: len(left)]
        write(file, ROWS[len(left) :])
    assert file.csv.read_bytes() == whole


def test_parts_of_several_ranks_are_merged_in_order(tmp_path):
    file = task_file(tmp_path)
    rows = [Row(i, "kitchen", str(i), "Where? ") for i in range(7)]
    with file.prepared():
        write(file, rows[0::3], rank=0)
        write(file, rows[1::3], rank=1)
        write(file, rows[2::3][:1], rank=2)
        file.merge()
    assert file.rows() == rows[:5] + rows[6:] and file.missing(7) == [5]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json"]


def test_a_folder_of_another_model_or_prompt_is_refused_in_one_line(tmp_path):
    official_files.claim_folder(tmp_path, {"weights": "1", "seed": 0}, {})
    with task_file(tmp_path).prepared():
        pass
    official_files.claim_folder(tmp_path, {"weights": "1", "seed": 0}, {"segment_size": 8})
    with pytest.raises(UserError, match="weights was '1' there and is '2' now") as error:
        official_files.claim_folder(tmp_path, {"weights": "2", "seed": 0}, {"segment_size": 8})
    assert "\n" not in str(error.value)
    changed = task_file(tmp_path, prompts.Prompt(template="{context} {question}"))
    with pytest.raises(UserError, match=f"qa1_1k_{NAME}.json.*other prompt"), changed.prepared():
        pass


def test_results_that_this_command_did_not_write_are_not_touched(tmp_path):
    (tmp_path / f"qa1_1k_{NAME}.csv").write_text(",target,output,question\n")
    with pytest.raises(UserError, match="not written by this command"):
        official_files.claim_folder(tmp_path, {"weights": "1"}, {})


def test_public_folders_are_read_and_a_malformed_file_is_named(tmp_path, capsys):
    model = tmp_path / "org" / "model"
    model.mkdir(parents=True)
    old = "instruction_yes_examples_yes_post_prompt_yes"
    (model / f"qa1_0k_{old}.csv").write_text("Unnamed: 0,target,output,question\n0,office,Office.,Where? \n")
    (model / f"qa2_10M_{NAME}.csv").write_text(",target,output,question\n0,office,Office,W? \n1,office,garden,W? \n")
    (model / f"qa3_1k_{NAME}.csv").write_text(",target,output\n0,office,garden\n")
    (model / f"qa4_1k_{NAME}.csv").write_text(",target,output,question\n")
    (model / f"qa99_1k_{NAME}.csv").write_text(",target,output,question\n0,a,b,c\n")
    (model / "notes.csv").write_text("anything")
    results = {(r.task, r.length): r for r in read_folder(tmp_path)}
    assert results.keys() == {("qa1", "0k"), ("qa2", "10M")}
    assert results["qa1", "0k"].score == Score(1, 1, 0) and results["qa1", "0k"].setting == old
    assert results["qa2", "10M"].score == Score(2, 1, 0) and results["qa2", "10M"].model == "org/model"
    said = capsys.readouterr().out
    assert "qa3_1k" in said and "no column question" in said
    assert "qa4_1k" in said and "qa99_1k" in said and "notes.csv" in said


def test_a_folder_without_results_says_so(tmp_path):
    with pytest.raises(UserError, match="no results"):
        read_folder(tmp_path)


def test_a_prompt_has_its_parts_around_the_context():
    prompt = prompts.official_prompt("qa1", True, True, True)
    before, after = prompt.around_context("Where is Mary? ")
    assert before.startswith("I will give you context with the facts about positions")
    assert before.endswith("’location’. Do not write anything else after that.\n\n<context>\n")
    assert "</example>\n\n<example>" in before and after == "\n</context>\n\nQuestion: Where is Mary?"
    assert prompt.name == "instruction_yes_examples_yes_post_prompt_yes_chat_template_no_system_prompt_no"
    bare = prompts.official_prompt("qa1", False, False, False)
    assert bare.around_context("W?")[0] == "<context>\n" and bare.name == NAME


def test_every_task_has_a_prompt_with_two_or_three_examples():
    assert prompts.DEFAULTS.keys() == set(TASK_NAMES)
    for instruction, examples, post_prompt in prompts.DEFAULTS.values():
        assert examples.count("<example>\n") == examples.count("\n</example>") == examples.count("\nAnswer: ") in (2, 3)
        assert instruction.count("only on the information from the facts.") == 1 and "{" not in instruction
        assert post_prompt.endswith(".")


def test_prompts_hold_the_slips_of_the_harness():
    """Where a sentence follows without a space, or an example ends with an open context, so do ours."""
    assert "and a question.You need" in prompts.DEFAULTS["qa2"][0]
    assert "and a question. You need" in prompts.DEFAULTS["qa3"][0]
    assert prompts.DEFAULTS["qa10"][1].endswith("Answer: yes\n</example>\n<context>\n")
    assert prompts.DEFAULTS["qa6"][1].endswith("Answer: no\n</example>\n")
    assert "Answer: yes\n</example><example>\nThe red sphere is above" in prompts.DEFAULTS["qa17"][1]
    assert "chocolate.The suitcase" in prompts.DEFAULTS["qa18"][1] and "there.Jason" in prompts.DEFAULTS["qa20"][1]


def test_a_system_prompt_needs_a_chat():
    with pytest.raises(UserError, match="use_chat_template"):
        prompts.official_prompt("qa1", True, True, True, system="You are helpful")
