"""Simulated qa6 to qa10: the published form, and answers that a reader of the story text alone confirms.

What is stated as published was read in arXiv 1502.05698 and in public copies of the files (the 0k samples of BABILong,
which are whole stories of en-10k): words, sentence forms, five questions a story, one after two facts. Shares of
answers are the simulator's own.
"""

import re
from collections import Counter

import pytest

from lm_experiments_tools.data import babi, babi_simulator

TASKS = ("qa6", "qa7", "qa8", "qa9", "qa10")
NUMBERS = ("none", "one", "two", "three")
PEOPLE = {task: "Daniel John Mary Sandra".split() for task in TASKS} | {"qa10": "Bill Fred Julie Mary".split()}
PLACES = {task: "bathroom bedroom garden hallway kitchen office".split() for task in TASKS}
PLACES["qa10"] = "bedroom cinema kitchen office park school".split()
OBJECTS = "apple football milk".split()

WHO, WHERE, WHAT = r"(?P<who>[A-Z]\w+)", r"the (?P<where>\w+)", r"the (?P<what>\w+)"
FORMS = {
    "move": rf"{WHO} (journeyed to|moved to|travelled to|went back to|went to) {WHERE}\.",
    "take": rf"{WHO} (got|grabbed|picked up|took) {WHAT} there\.",
    "leave": rf"{WHO} (discarded|dropped|left|put down) {WHAT}( there)?\.",
    "give": rf"{WHO} (gave|handed|passed) {WHAT} to (?P<whom>[A-Z]\w+)\.",
    "is": rf"{WHO} is in {WHERE}\.",
    "is not": rf"{WHO} is (not|no longer) in {WHERE}\.",
    "either": rf"{WHO} is either in {WHERE} or the (?P<other>\w+)\.",
}
USED = {
    "qa6": {"move", "take", "leave"},
    "qa7": {"move", "take", "leave", "give"},
    "qa8": {"move", "take", "leave"},
    "qa9": {"move", "is", "is not"},
    "qa10": {"move", "is", "either"},
}
QUESTIONS = {
    "qa6": rf"Is {WHO} in {WHERE}\?",
    "qa7": rf"How many objects is {WHO} carrying\?",
    "qa8": rf"What is {WHO} carrying\?",
    "qa9": rf"Is {WHO} in {WHERE}\?",
    "qa10": rf"Is {WHO} in {WHERE}\?",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("babi")
    return {task: babi.read_questions(babi_simulator.write_task(folder, task, "train", 3000, seed=5)) for task in TASKS}


def parse(fact):
    """The one form that a fact has, and its words."""
    ((kind, found),) = [(kind, match) for kind, form in FORMS.items() if (match := re.fullmatch(form, fact))]
    return kind, found.groupdict()


def possible_places(facts, person, places):
    """Where a reader must hold possible that `person` is: all of `places` at first."""
    possible = set(places)
    for kind, said in map(parse, facts):
        if said["who"] != person:
            continue
        if kind in ("move", "is"):
            possible = {said["where"]}
        elif kind == "either":
            possible = {said["where"], said["other"]}
        elif kind == "is not" and said["where"] in possible:
            possible = set(places) - {said["where"]}
    return possible


def carried(facts, person):
    """What `person` has, in the order in which each thing first came to them."""
    order, has = [], set()
    for kind, said in map(parse, facts):
        if (kind == "take" and said["who"] == person) or (kind == "give" and said["whom"] == person):
            order += [said["what"]] if said["what"] not in order else []
            has.add(said["what"])
        elif kind in ("leave", "give") and said["who"] == person:
            has.remove(said["what"])
    return [thing for thing in order if thing in has]


def expected_answer(task, question, facts):
    asked = re.fullmatch(QUESTIONS[task], question.question).groupdict()
    if task == "qa7":
        return NUMBERS[len(carried(facts, asked["who"]))]
    if task == "qa8":
        return ",".join(carried(facts, asked["who"])) or "nothing"
    possible = possible_places(facts, asked["who"], PLACES[task])
    return "no" if asked["where"] not in possible else "yes" if len(possible) == 1 else "maybe"


@pytest.mark.parametrize("task", TASKS)
def test_answers_equal_those_of_an_independent_reading(tasks, task):
    assert len(tasks[task]) == 3000
    for question in tasks[task]:
        assert expected_answer(task, question, question.facts) == question.answer, question


@pytest.mark.parametrize("task", TASKS)
def test_supporting_facts_are_enough(tasks, task):
    for question in tasks[task]:
        alone = [question.facts[i] for i in sorted(question.supporting)]
        assert expected_answer(task, question, alone) == question.answer, question


@pytest.mark.parametrize("task", ["qa6", "qa9", "qa10"])
def test_yes_no_and_maybe_rest_on_the_last_fact_that_places_the_person(tasks, task):
    for question in tasks[task]:
        person = question.question.split()[1]
        placed = [i for i, fact in enumerate(question.facts) if parse(fact)[1]["who"] == person and " the " in fact]
        placed = [i for i in placed if parse(question.facts[i])[0] not in ("take", "leave")]
        assert question.supporting == (placed[-1],)


@pytest.mark.parametrize("task", ["qa7", "qa8"])
def test_counts_and_lists_rest_on_all_facts_that_change_what_the_person_carries(tasks, task):
    for question in tasks[task]:
        person = re.fullmatch(QUESTIONS[task], question.question)["who"]
        said = [(kind, words) for kind, words in map(parse, question.facts)]
        changes = [
            i for i, (kind, words) in enumerate(said)
            if kind in ("take", "leave", "give") and person in (words["who"], words.get("whom"))
        ]  # fmt: skip
        assert question.supporting == tuple(changes) != ()


@pytest.mark.parametrize("task", TASKS)
def test_sentences_have_the_published_forms_and_words(tasks, task):
    said = [parse(fact) for fact in {fact for question in tasks[task] for fact in question.facts}]
    assert {kind for kind, _ in said} == USED[task]
    for name, words in {"who": PEOPLE[task], "where": PLACES[task], "what": OBJECTS, "whom": PEOPLE[task]}.items():
        found = {words[name] for _, words in said if words.get(name)}
        assert found in (set(words), set())
    for question in tasks[task]:
        asked = re.fullmatch(QUESTIONS[task], question.question).groupdict()
        assert asked["who"] in PEOPLE[task] and asked.get("where", PLACES[task][0]) in PLACES[task]


def test_all_verbs_and_both_negations_are_used(tasks):
    facts = " ".join(fact for task in ("qa7", "qa9") for question in tasks[task] for fact in question.facts)
    verbs = (*babi_simulator.MOVES, *babi_simulator.GRABS, *babi_simulator.DROPS, *babi_simulator.GIVES)
    for words in (*verbs, "is not in", "is no longer in"):
        assert f" {words} " in facts, words


@pytest.mark.parametrize("task", TASKS)
def test_a_story_has_five_questions_after_even_numbers_of_facts(tasks, task):
    assert set(Counter(question.story for question in tasks[task]).values()) == {5}
    assert all(len(question.facts) % 2 == 0 for question in tasks[task])


@pytest.mark.parametrize("task", ["qa9", "qa10"])
def test_told_stories_have_ten_facts(tasks, task):
    assert Counter(len(question.facts) for question in tasks[task]) == dict.fromkeys((2, 4, 6, 8, 10), 600)


@pytest.mark.parametrize("task", ["qa7", "qa8"])
def test_questions_about_what_is_carried_follow_each_other_after_two_facts(tasks, task):
    for before, after in zip(tasks[task], tasks[task][1:]):
        assert before.story != after.story or len(after.facts) == len(before.facts) + 2


ANSWERS = {
    "qa6": {"yes": 0.5, "no": 0.5},
    "qa7": dict.fromkeys(NUMBERS),
    "qa9": {"yes": 0.35, "no": 0.65},
    "qa10": {"yes": 0.42, "no": 0.4, "maybe": 0.18},
}


@pytest.mark.parametrize("task", ANSWERS)
def test_answers_have_their_words_and_shares(tasks, task):
    answers = Counter(question.answer for question in tasks[task])
    assert answers.keys() == ANSWERS[task].keys()
    for answer, share in ANSWERS[task].items():
        assert share is None or abs(answers[answer] / len(tasks[task]) - share) < 0.04, answers


@pytest.mark.parametrize("task", TASKS)
def test_no_answer_is_right_two_times_in_three(tasks, task):
    assert Counter(question.answer for question in tasks[task]).most_common(1)[0][1] < 2000 * 1.02


def test_lists_are_separated_by_commas_without_spaces(tasks):
    answers = Counter(question.answer for question in tasks["qa8"])
    assert all(re.fullmatch(r"nothing|(apple|football|milk)(,(apple|football|milk)){0,2}", text) for text in answers)
    assert {text.count(",") for text in answers} == {0, 1, 2} and answers["nothing"]
    assert {"apple,milk", "milk,apple"} <= answers.keys()  # in the order in which they came


@pytest.mark.parametrize("task", ["qa9", "qa10"])
def test_what_is_told_of_a_person_never_contradicts_or_repeats_what_was_told_before(tasks, task):
    for question in tasks[task]:
        if len(question.facts) < 10:
            continue
        told = {}  # of each person, the possible places and whether they were said
        for kind, said in map(parse, question.facts):
            places, person = {said["where"], said.get("other", said["where"])}, said["who"]
            before, known = told.get(person, (set(), False))
            if kind == "is not":
                assert not known or before == places  # they are gone from where they were
            else:
                assert not before & places and (kind != "either" or len(places) == 2)
            told[person] = (places, kind != "is not")


def test_published_file_names_and_sizes(tmp_path):
    for name in babi.TASKS[5:10]:
        for split, number in (("train", 100), ("test", 50)):
            path = babi_simulator.write_task(tmp_path, name, split, number, seed=0)
            assert path.name == f"{name}_{split}.txt" and len(babi.read_questions(path)) == number
            assert re.search(r"^3 .*\? \t[a-z,]+\t\d+( \d+)*$", path.read_text(), re.MULTILINE)
