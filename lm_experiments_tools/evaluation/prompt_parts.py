"""Sentences that several prompts of the public BABILong harness share."""


def examples(*pairs: tuple[str, str], between: str = "\n", end: str = "") -> str:
    """Stories with their questions and answers."""
    return between.join(f"<example>\n{story}\nAnswer: {answer}\n</example>" for story, answer in pairs) + end


FACTS_ONLY = "You need to answer the question based only on the information from the facts."
LATEST = (
    "I will give you context with the facts about people and their locations hidden in some random text and a "
    f"question. {FACTS_ONLY} "
    "If a person was in different locations, use the latest location the person was in to answer the question."
)
SILENT = "Do not write anything else after that."
PLAIN = "Do not explain your answer."
ONE_LOCATION = f"Your answer should contain only one word - location. {SILENT}"
YES_OR_NO = "Your answer should contain only one word - $yes$ or $no$."
OPEN_CONTEXT = "\n<context>\n"
