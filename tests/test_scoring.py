"""The official comparison of answers, case by case, and strict exact match."""

import pytest

from lm_experiments_tools.data.babi import TASKS
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation.scoring import Score, grade, labels_of, officially_right, strictly_right

WHERE = "Where is Mary? "
CASES = [  # task, target, output, question, official score
    ("qa1", "kitchen", "kitchen", WHERE, True),
    ("qa1", "kitchen", "The most recent location of Mary is KITCHEN", WHERE, True),
    ("qa1", "kitchen", "kitchen. Before that, the garden.", WHERE, True),  # up to the first full stop
    ("qa1", "kitchen", "Well. Kitchen", WHERE, False),
    ("qa1", "kitchen", "kitchen or garden", WHERE, False),
    ("qa1", "kitchen", "kitchen\n<example>\ngarden", WHERE, True),
    ("qa1", "kitchen", "kitchen <context> garden", WHERE, True),
    ("qa1", "kitchen", "kitchen\nQuestion: is the garden far?", WHERE, False),  # 'Question' cuts nothing
    ("qa1", "kitchen", "kitchenette", WHERE, True),  # labels are substrings
    ("qa1", "kitchen", "", WHERE, False),
    ("qa1", "kitchen", "the kitchen, not the kitchen", WHERE, True),  # a set
    ("qa1", "kitchen", "balcony", WHERE, False),
    ("qa3", "garden", "Before the kitchen it was in the garden", "Where was the milk before the kitchen? ", True),
    ("qa3", "kitchen", "kitchen", "Where was the milk before the kitchen? ", False),  # labels of the question
    ("qa5", "Fred", "Mary gave it to fred", "Who did Mary give the milk to? ", True),
    ("qa5", "Fred", "Bill gave it to Fred", "Who did Mary give the milk to? ", False),
    ("qa6", "no", "no", "Is Mary in the kitchen? ", True),
    ("qa6", "yes", "yes, I know", "Is Mary in the kitchen? ", False),  # 'no' in 'know'
    ("qa7", "none", "none", "How many objects is Mary carrying? ", True),  # not also 'one'
    ("qa7", "one", "One", "How many objects is Mary carrying? ", True),
    ("qa7", "one", "none or one", "How many objects is Mary carrying? ", False),
    ("qa7", "two", "two of twos", "How many objects is Mary carrying? ", True),  # whole words here
    ("qa8", "apple,milk", "milk and apple", "What is Mary carrying? ", True),  # in any order
    ("qa8", "apple,milk", "apple", "What is Mary carrying? ", False),
    ("qa8", "apple,milk", "apple, milk, football", "What is Mary carrying? ", False),
    ("qa8", "nothing", "nothing", "What is Mary carrying? ", True),
    ("qa10", "maybe", "maybe yes", "Is Mary in the school? ", False),
    ("qa19", "n,w", "n,w", "How do you go from the kitchen to the garden? ", True),  # one label, with its comma
    ("qa19", "n,w", "w,n", "How do you go from the kitchen to the garden? ", False),
    ("qa20", "thirsty", "because he is Thirsty.", "Why did yann go to the kitchen? ", True),
]


@pytest.mark.parametrize("task,target,output,question,right", CASES)
def test_the_official_comparison(task, target, output, question, right):
    assert officially_right(task, target, output, question) is right


@pytest.mark.parametrize(
    "target,output,right",
    [
        ("kitchen", " kitchen\n", True),
        ("kitchen", "Kitchen", False),
        ("kitchen", "kitchen.", False),
        ("kitchen", "the kitchen", False),
        ("apple,milk", "milk,apple", False),
        ("apple,milk", "apple,milk", True),
    ],
)
def test_strict_exact_match_takes_the_answer_alone(target, output, right):
    assert strictly_right(target, output) is right


def test_every_task_has_labels_and_an_unknown_one_lists_them():
    assert all(len(labels_of(name.split("_")[0])) > 1 for name in TASKS)
    with pytest.raises(UserError, match="no task 'qa21'.*qa1, qa2.*qa20"):
        labels_of("qa21")


def test_a_score_counts_both_ways_and_has_intervals():
    rows = [("kitchen", "kitchen", WHERE), ("garden", "the garden", WHERE), ("office", "garden", WHERE)]
    score = Score.of(grade("qa1", *row) for row in rows)
    assert score == Score(samples=3, official=2, strict=1)
    assert score.share("official") == pytest.approx(2 / 3)
    low, high = score.interval("strict")
    assert 0 < low < 1 / 3 < high < 1
