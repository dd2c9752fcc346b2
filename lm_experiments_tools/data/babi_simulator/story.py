"""What the stories of all tasks share: how many questions, how far back, and the form of a question's line."""

QUESTIONS_PER_STORY = 5
RECENT = 7  # lines between a question and the fact it is about: no more in the published qa1 and qa2

Answered = tuple[str, str, list[int]]  # question, answer, line numbers of the supporting facts


def question_line(question: str, answer: str, supporting: list[int]) -> str:
    return f"{question} \t{answer}\t{' '.join(map(str, supporting))}"
