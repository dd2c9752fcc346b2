"""The bAbI reader: published form in, samples out; a malformed line is named."""

import os
from pathlib import Path

import pytest

from lm_experiments_tools.data import babi
from lm_experiments_tools.errors import UserError

STORY = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary took the milk there.
5 Mary went to the office.
6 Where is the milk? \toffice\t4 5
1 Sandra went to the garden.
2 Where is Sandra? \tgarden\t1
"""
DATA = Path(os.environ.get("BABI_DATA", Path(__file__).parents[2] / "shared" / "data" / "babi" / "en-10k"))


def write(folder, text, name="qa1_single-supporting-fact_train.txt"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_question_has_the_facts_before_it_in_its_story(tmp_path):
    first, second, third = babi.read_questions(write(tmp_path, STORY))
    assert first == babi.Question(
        ("Mary moved to the bathroom.", "John went to the hallway."), "Where is Mary?", "bathroom", (0,), 0
    )
    assert len(second.facts) == 4 and second.supporting == (2, 3) and second.answer == "office"
    assert third.facts == ("Sandra went to the garden.",) and third.story == 1


MALFORMED = {
    "no number": ("Mary moved.\n", "line 1: expected a line number"),
    "number skipped": ("1 Mary moved.\n3 John moved.\n", "line 2: line number 3 follows 1"),
    "no supporting fact": ("1 Mary moved.\n2 Where is Mary? \tbathroom\n", "line 2: expected a question, a tab"),
    "fact pointing forward": ("1 Mary moved.\n2 Where is Mary? \thall\t3\n3 John moved.\n", "line 2: .*'3'"),
    "supporting fact is a question": (
        "1 Mary moved.\n2 Where is Mary? \thall\t1\n3 Where is Mary? \thall\t2\n", "line 3: .*'2'"
    ),
    "question without answer": ("1 Mary moved.\n2 Where is Mary?\n", "line 2: a question without tabs"),
    "no question at all": ("1 Mary moved.\n", "no question"),
    "empty": ("", "no question"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_line_is_named(tmp_path, case):
    text, message = MALFORMED[case]
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        babi.read_questions(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"1 Mary moved.\n2 \xff\xfe\n", b"1 Mary moved.\n\x80\x04\x95"])
def test_bytes_that_are_not_text_are_refused_with_their_line(tmp_path, content):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.txt, line 2: 'utf-8' codec can't decode"):
        babi.read_questions(path)


def test_a_question_knows_where_it_was_read(tmp_path):
    path = write(tmp_path, STORY)
    assert [question.where for question in babi.read_questions(path)] == [f"{path}, line {n}" for n in (3, 6, 8)]


def test_a_missing_file_is_named_with_the_tasks_found(tmp_path):
    write(tmp_path, STORY, "qa2_two-supporting-facts_train.txt")
    with pytest.raises(UserError, match="qa1_single-supporting-fact_test.txt; tasks found.*qa2_two-supporting-facts"):
        babi.task_file(tmp_path, "qa1", "test")
    with pytest.raises(UserError, match="'qa21'.*qa20_agents-motivations"):
        babi.full_task_name("qa21")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no published bAbI files in {DATA}")
@pytest.mark.parametrize("task, supporting", [("qa1", 1), ("qa2", 2)])
@pytest.mark.parametrize("split, number", [("train", 10_000), ("test", 1_000)])
def test_published_files_are_read_whole(task, supporting, split, number):
    questions = babi.read_questions(babi.task_file(DATA, task, split))
    assert len(questions) == number
    assert {len(question.supporting) for question in questions} == {supporting}
    assert all(question.answer in question.facts[question.supporting[-1]] or task == "qa2" for question in questions)
