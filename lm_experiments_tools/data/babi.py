"""bAbI task files as published (version 1.2): one line a fact or a question, numbered from 1 in every story.

1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? <tab> bathroom <tab> 1
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError

TASKS = (
    "qa1_single-supporting-fact",
    "qa2_two-supporting-facts",
    "qa3_three-supporting-facts",
    "qa4_two-arg-relations",
    "qa5_three-arg-relations",
    "qa6_yes-no-questions",
    "qa7_counting",
    "qa8_lists-sets",
    "qa9_simple-negation",
    "qa10_indefinite-knowledge",
    "qa11_basic-coreference",
    "qa12_conjunction",
    "qa13_compound-coreference",
    "qa14_time-reasoning",
    "qa15_basic-deduction",
    "qa16_basic-induction",
    "qa17_positional-reasoning",
    "qa18_size-reasoning",
    "qa19_path-finding",
    "qa20_agents-motivations",
)


@dataclass(frozen=True)
class Question:
    """One sample: a question and the facts that stand before it in its story.

    Attributes:
        facts: in order. question, answer: as written. supporting: indexes into `facts`. story: number of the story.
        where: file and line it was read from.
    """

    facts: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...]
    story: int
    where: str = field(default="", compare=False)


def full_task_name(task: str) -> str:
    """`qa1` or `qa1_single-supporting-fact` -> the full name.

    Raises:
        UserError: no such task; the message lists them.
    """
    for name in TASKS:
        if task in (name, name.split("_")[0]):
            return name
    raise UserError(f"no bAbI task {task!r}; the tasks are {', '.join(TASKS)}")


def task_file(folder: str | Path, task: str, split: str) -> Path:
    """File of a task and a split, `train` or `test`.

    Raises:
        UserError: it is not there; the message names it and lists the tasks that are.
    """
    path = Path(folder) / f"{full_task_name(task)}_{split}.txt"
    if not path.is_file():
        found = sorted({file.name.rsplit("_", 1)[0] for file in Path(folder).glob("qa*_*.txt")})
        raise UserError(f"no bAbI file {path}; tasks found in the folder: {', '.join(found) or 'none'}")
    return path


def read_questions(path: str | Path) -> list[Question]:
    """All questions of a file, in order.

    Raises:
        UserError: a malformed line; the message names the file and the line.
    """
    questions: list[Question] = []
    facts: dict[int, str] = {}
    story, last = -1, 0
    for line_number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        where = f"{path}, line {line_number}"
        try:
            number, text = _split_number(line.decode("utf-8"))
            if number == 1:
                facts, story = {}, story + 1
            elif number != last + 1:
                raise ValueError(f"line number {number} follows {last}")
            last = number
            if "\t" in text:
                questions.append(_question(text, facts, story, where))
            elif text.endswith("?"):
                raise ValueError("a question without tabs before its answer")
            else:
                facts[number] = text
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
    if not questions:
        raise UserError(f"{path}: no question in the file")
    return questions


def _split_number(line: str) -> tuple[int, str]:
    number, _, text = line.partition(" ")
    if not number.isascii() or not number.isdigit() or not text.strip():
        raise ValueError("expected a line number, a space and a sentence")
    return int(number), text.strip()


def _question(text: str, facts: dict[int, str], story: int, where: str) -> Question:
    fields = [field.strip() for field in text.split("\t")]
    if len(fields) != 3 or not all(fields):
        raise ValueError("expected a question, a tab, the answer, a tab and the numbers of the supporting facts")
    numbers = list(facts)
    supporting = []
    for word in fields[2].split():
        if not word.isdigit() or int(word) not in facts:
            raise ValueError(f"supporting fact {word!r} is not the number of an earlier fact of the story")
        supporting.append(numbers.index(int(word)))
    return Question(tuple(facts.values()), fields[0], fields[1], tuple(supporting), story, where)
