"""What stands around a context: the default prompts of the public BABILong harness, byte for byte, and ours.

Their wording, with its slips, is part of the benchmark: answers depend on it.
"""

from dataclasses import asdict, dataclass

from ..errors import UserError
from . import prompts_qa1_to_10, prompts_qa11_to_20

TEMPLATE = "{instruction}\n\n{examples}\n\n{post_prompt}\n\n<context>\n{context}\n</context>\n\nQuestion: {question}"
TRAINED_TEMPLATE = "{context} {question}GEN"  # what `run_finetuning_babilong.py` trains on
DEFAULTS = prompts_qa1_to_10.PROMPTS | prompts_qa11_to_20.PROMPTS  # task -> instruction, examples, post_prompt
PARTS = ("instruction", "examples", "post_prompt", "chat_template", "system_prompt")  # in the order of file names


@dataclass(frozen=True)
class Prompt:
    """One prompt, with the fields of the harness's JSON files in their order."""

    instruction: str = ""
    examples: str = ""
    post_prompt: str = ""
    template: str = TRAINED_TEMPLATE
    chat_template: bool = False
    system_prompt: str = ""

    @property
    def name(self) -> str:
        """What the harness's file names say of it: `instruction_yes_examples_no_...`."""
        return "_".join(f"{part}_{'yes' if getattr(self, part) else 'no'}" for part in PARTS)

    def around_context(self, question: str) -> tuple[str, str]:
        """The text before the context and the text behind it."""
        values = {name: value for name, value in asdict(self).items() if name not in ("template", "context")}
        before, after = self.template.split("{context}")
        return before.format(question=question, **values).lstrip(), after.format(question=question, **values).rstrip()


def official_prompt(
    task: str, instruction: bool, examples: bool, post_prompt: bool, chat_template: bool = False, system: str = ""
) -> Prompt:
    """The harness's prompt of a task, with some parts left out.

    Raises:
        UserError: a system prompt, which only a chat has, without one.
    """
    if system and not chat_template:
        raise UserError("system_prompt is part of a chat: add --use_chat_template")
    wanted = (instruction, examples, post_prompt)
    return Prompt(*(text if use else "" for text, use in zip(DEFAULTS[task], wanted)), TEMPLATE, chat_template, system)
